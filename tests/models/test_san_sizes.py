"""SAN's parameters, multiply-accumulates and shapes against the tables measured at its design."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from quick import one_in
from torch import Tensor, nn

from reposer.models.san import SAN, san_size
from reposer.structures import PairBatch

BatchMaker = Callable[..., PairBatch]
Counter = Callable[..., float]


MEASURED = [  # arguments, parameters (millions), GMAC at 128x64, GMAC at 256x256
    ({}, 62.32, 15.25, 121.97),
    ({"gate_source": "appearance"}, 62.32, 15.25, 121.97),
    ({"gate_source": "appearance_conv"}, 71.17, 19.78, 158.21),
    ({"share_conv": True}, 56.42, 12.23, 97.81),
    ({"deep_channels": (256, 256, 256)}, 35.18, 14.20, 113.59),
    ({"skip_body": False}, 61.27, 14.71, 117.68),
    ({"use_mask": False}, 62.31, 15.20, 121.56),
    ({"blocks": 1}, 45.8, 6.8, 54.3),
    ({"blocks": 3}, 54.1, 11.0, 88.1),
    ({"blocks": 7}, 70.6, 19.5, 155.8),
    ({"blocks": 9}, 78.8, 23.7, 189.6),
    ({"ngf": 32, "deep_channels": (256, 256, 256)}, 15.62, 4.12, 32.96),
    ({"enc_strides": (1, 1, 1)}, 60.7, 205.5, None),
    (san_size("small"), 3.325, 1.079, 8.635),
]


def cost(args: dict[str, Any], batch: PairBatch, operations: Counter) -> tuple[float, float]:
    """Parameters in millions and 1e9 multiply-accumulates per image; the meta device computes nothing."""
    with torch.device("meta"):
        net = SAN(**args).eval()
    macs = operations(net, batch.to("meta")) / len(batch)
    return sum(p.numel() for p in net.parameters()) / 1e6, macs


def test_operations_are_those_of_loops_written_out(operations: Counter) -> None:
    """Every multiplication of each kind of call, one by one: small enough to loop over."""
    conv, up = nn.Conv2d(4, 6, 3, stride=2, groups=2), nn.ConvTranspose2d(4, 2, 2, stride=2)
    image, tokens = torch.zeros(2, 4, 7, 5), torch.zeros(2, 3, 5, 4)
    in_conv = sum(
        1 for _ in product(range(2), range(6), range(3), range(2), range(4 // 2), range(3), range(3))
    )
    in_up = sum(1 for _ in product(range(2), range(4), range(7), range(5), range(2), range(2), range(2)))
    in_attention = 2 * sum(1 for _ in product(range(2), range(3), range(5), range(5), range(4)))
    assert operations(conv, image) == in_conv / 1e9
    assert operations(up, image) == in_up / 1e9
    assert (
        operations(nn.functional.scaled_dot_product_attention, tokens, tokens, tokens) == in_attention / 1e9
    )
    assert operations(lambda x: x @ x.transpose(2, 3), tokens) == in_attention / 2 / 1e9
    assert operations(torch.einsum, "bhqd,bhkd->bhqk", tokens, tokens) == in_attention / 2 / 1e9
    with pytest.raises(NotImplementedError, match="conv3d"):
        operations(nn.Conv3d(1, 1, 1), torch.zeros(1, 1, 2, 2, 2))


@pytest.mark.parametrize(
    ("args", "params", "macs", "macs_256"),
    one_in(3, MEASURED),
)
def test_parameters_and_macs_are_those_of_the_design(
    args: dict[str, Any],
    params: float,
    macs: float,
    macs_256: float | None,
    make_batch: BatchMaker,
    operations: Counter,
) -> None:
    assert cost(args, make_batch(1, 128, 64), operations) == pytest.approx((params, macs), rel=0.005)
    if macs_256 is not None:
        assert cost(args, make_batch(1, 256, 256), operations)[1] == pytest.approx(macs_256, rel=0.005)


def test_256x176_costs_what_256x192_costs(make_batch: BatchMaker, operations: Counter) -> None:
    assert cost({}, make_batch(1, 256, 176), operations)[1] == pytest.approx(91.48, rel=0.005)


@pytest.mark.parametrize(("height", "width"), [(128, 64), (256, 256)])
def test_every_map_has_the_shape_of_the_design(height: int, width: int, make_batch: BatchMaker) -> None:
    with torch.device("meta"):
        net = SAN()
    seen: dict[str, tuple[int, ...]] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            for key, value in ((f"{name} in", inputs[0]), (name, output)):
                if isinstance(value, Tensor):
                    seen[key] = tuple(value.shape[1:])

        return hook

    for name, module in net.named_modules():
        module.register_forward_hook(note(name))
    net(make_batch(1, height, width).to("meta"))

    def at(stride: int, channels: int) -> tuple[int, ...]:
        return (channels, height // stride, width // stride)

    expected = {"appearance_encoder in": at(1, 24), "semantic_encoder in": at(1, 21)}
    for encoder in ("appearance_encoder", "semantic_encoder"):
        for i, (stride, channels) in enumerate([(1, 64), (2, 128), (4, 256)]):
            expected[f"{encoder}.stages.{i}"] = at(stride, channels)
    for t in range(5):
        expected[f"blocks.{t} in"] = expected[f"blocks.{t}.mask_conv"] = at(4, 256)
        expected[f"blocks.{t}.update_conv in"] = at(4, 512)
        expected[f"blocks.{t}.update_conv"] = at(4, 256)
    for deep in ("conv_a", "conv_s"):
        for i, stride in enumerate((8, 16, 32)):
            expected[f"{deep}.stages.{i}"] = at(stride, 512)
    ups = [(16, 512, 1536), (8, 512, 1536), (4, 256, 768), (2, 128, 128), (1, 64, 64)]
    expected["decoder.stages.0 in"] = at(32, 1024)
    for i, (stride, channels, joined) in enumerate(ups):
        expected[f"decoder.stages.{i}"] = at(stride, channels)
        following = f"decoder.stages.{i + 1} in" if i < 4 else "to_image in"
        expected[following] = at(stride, joined)
    expected["to_image"] = at(1, 3)
    assert {name: seen[name] for name in expected} == expected
