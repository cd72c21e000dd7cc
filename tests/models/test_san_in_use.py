"""SAN in use: batches, sizes, precisions, memory formats, compilation, initialization."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from reposer.models.san import SAN, san_size
from reposer.structures import PairBatch

BatchMaker = Callable[..., PairBatch]
TINY: dict[str, Any] = {"ngf": 4, "blocks": 2, "deep_channels": (8, 12, 16)}


def seeded(**args: Any) -> SAN:
    torch.manual_seed(0)
    return SAN(**args)


def calibrated(net: SAN, batch: PairBatch) -> SAN:
    """In evaluation mode, its batch norms holding the statistics of ``batch``."""
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
    with torch.no_grad():
        net.train()(batch)
    return net.eval()


def test_an_item_does_not_depend_on_its_neighbors_in_evaluation(make_batch: BatchMaker) -> None:
    batch = make_batch(4)
    net = calibrated(seeded(**TINY), batch)
    with torch.no_grad():
        together = net(batch)
        assert together.std() > 0.05
        for i in range(4):
            alone = PairBatch(**{name: x[i : i + 1] for name, x in batch.tensors().items()})
            torch.testing.assert_close(net(alone), together[i : i + 1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(256, 176), (33, 64), (100, 47), (20, 20)])
def test_any_size_is_padded_and_cropped(height: int, width: int, make_batch: BatchMaker) -> None:
    batch = make_batch(2, height, width)
    net = seeded(**TINY)
    output = net(batch)
    assert output.shape == (2, 3, height, width)

    top, left = (-height % 32) // 2, (-width % 32) // 2
    sides = ((top, -height % 32 - top), (left, -width % 32 - left))

    def pad(x: Tensor) -> Tensor:
        if x.dim() < 3 or x.shape[-1] != width:
            return x
        return torch.from_numpy(np.pad(x.numpy(), [(0, 0)] * (x.dim() - 2) + list(sides), mode="edge"))

    padded = PairBatch(**{name: pad(x) for name, x in batch.tensors().items()})
    assert padded.source_image.shape[-2] % 32 == padded.source_image.shape[-1] % 32 == 0
    expected = net(padded)[..., top : top + height, left : left + width]
    torch.testing.assert_close(output, expected, atol=1e-6, rtol=1e-6)


def test_weights_start_as_in_patn() -> None:
    net = seeded(**san_size("small"))
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and layer.weight.numel() > 20_000:
            assert layer.weight.mean().abs() < 1e-3
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert layer.bias is None or not layer.bias.any()
    scales = torch.cat([layer.weight for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)])
    assert scales.mean().item() == pytest.approx(1.0, abs=2e-3)
    assert scales.std().item() == pytest.approx(0.02, rel=0.1)


def test_bfloat16_autocast_trains_and_stays_near_float32(make_batch: BatchMaker) -> None:
    net, batch = seeded(**TINY), make_batch(2, 64, 64)
    plain = net(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = net(batch)
    assert mixed.dtype == torch.float32
    assert (mixed - plain).abs().mean() < 0.05 * plain.abs().mean()
    mixed.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_channels_last_gives_the_same_images(make_batch: BatchMaker) -> None:
    batch = make_batch(2, 64, 64)
    plain = seeded(**TINY)(batch)
    fast = seeded(**TINY).to(memory_format=torch.channels_last)(batch)  # type: ignore[call-overload]
    torch.testing.assert_close(fast, plain, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "args", [{}, {"skip_encoder": True, "gate_source": "appearance_conv", "up": "resize"}]
)
def test_compiles_without_a_graph_break(args: dict[str, Any], make_batch: BatchMaker) -> None:
    net, batch = seeded(**TINY, **args), make_batch(2, 48, 40)
    torch.compiler.reset()
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(batch), net(batch), atol=1e-5, rtol=1e-5)


def test_state_is_strict() -> None:
    net = seeded(**TINY)
    state = net.state_dict()
    del state["to_image.bias"]
    with pytest.raises(RuntimeError, match=r"to_image\.bias"):
        net.load_state_dict(state)
