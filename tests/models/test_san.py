"""SAN against a plain functional rewrite; what it reads, and what it must never read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from reposer.models.san import SAN
from reposer.structures import MISSING_LABEL, PairBatch

BatchMaker = Callable[..., PairBatch]
TINY: dict[str, Any] = {"ngf": 4, "blocks": 2, "deep_channels": (8, 12, 16)}


def seeded(**args: Any) -> SAN:
    torch.manual_seed(0)
    return SAN(**args)


def changed(batch: PairBatch, field: str) -> PairBatch:
    """The batch with one field turned around."""
    value: Tensor = getattr(batch, field)
    if value.dtype == torch.bool:
        return replace(batch, **{field: ~value})
    if field.endswith("parsing"):
        return replace(batch, **{field: (value + 7) % 20})
    return replace(batch, **{field: 255 - value if value.dtype == torch.uint8 else value + 3})


def reference(net: SAN, batch: PairBatch) -> Tensor:
    """SAN as the paper is read, in training mode, from the weights alone: no class of ours takes part."""
    w = net.state_dict()

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        edge = w[f"{name}.weight"].shape[-1] // 2
        x = F.pad(x, (edge,) * 4, mode="reflect")
        return F.conv2d(x, w[f"{name}.weight"], w.get(f"{name}.bias"), stride=stride)

    def bn_lrelu(x: Tensor, name: str) -> Tensor:
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
        scale, shift = (w[f"{name}.{k}"].view(1, -1, 1, 1) for k in ("weight", "bias"))
        x = (x - mean) / (var + 1e-5).sqrt() * scale + shift
        return torch.where(x > 0, x, 0.2 * x)

    def step(x: Tensor, name: str, stride: int = 1) -> Tensor:
        return bn_lrelu(conv(x, f"{name}.0", stride), f"{name}.1")

    def conv3(x: Tensor, name: str) -> Tensor:
        return conv(step(step(x, f"{name}.0"), f"{name}.1"), f"{name}.2")

    def up(x: Tensor, name: str) -> Tensor:
        return bn_lrelu(F.conv_transpose2d(x, w[f"{name}.0.weight"], stride=2, padding=1), f"{name}.1")

    def onehot(parsing: Tensor) -> Tensor:
        return F.one_hot(parsing.long(), 20).permute(0, 3, 1, 2).float()

    image = batch.source_image.float() / 127.5 - 1
    a = torch.cat([image, batch.source_mask[:, None].float(), onehot(batch.source_parsing)], dim=1)
    s = torch.cat([batch.target_mask[:, None].float(), onehot(batch.target_parsing)], dim=1)
    for i, stride in enumerate((1, 2, 2)):
        a = step(a, f"appearance_encoder.stages.{i}", stride)
        s = step(s, f"semantic_encoder.stages.{i}", stride)
    for t in range(len(net.blocks)):
        attention = 1 / (1 + torch.exp(-conv3(s, f"blocks.{t}.mask_conv")))
        a = attention * s + a
        s = conv3(torch.cat([s, a], dim=1), f"blocks.{t}.update_conv")
    maps = [(a, s)]
    for i in range(3):
        deep = zip(maps[-1], ("conv_a", "conv_s"), strict=True)
        maps.append(tuple(step(x, f"{name}.stages.{i}.0", 2) for x, name in deep))
    x = torch.cat(maps[3], dim=1)
    for i in range(3):
        x = torch.cat([up(x, f"decoder.stages.{i}"), *maps[2 - i]], dim=1)
    x = up(up(x, "decoder.stages.3"), "decoder.stages.4")
    return torch.tanh(conv(x, "to_image"))


def test_default_network_is_the_paper_as_read(make_batch: BatchMaker) -> None:
    net, batch = seeded(**TINY), make_batch(3, 64, 64)
    expected = reference(net, batch)
    assert expected.std() > 0.05
    torch.testing.assert_close(net(batch), expected, atol=2e-5, rtol=1e-4)


def test_inputs_are_image_mask_and_one_hot_labels(make_batch: BatchMaker) -> None:
    batch = make_batch(2, 8, 6)
    batch.source_parsing[1, 2, 3] = MISSING_LABEL
    x_a, x_t = seeded(**TINY).network_inputs(batch)
    assert (x_a.shape, x_t.shape) == ((2, 24, 8, 6), (2, 21, 8, 6))
    assert x_a.dtype == x_t.dtype == torch.float32
    torch.testing.assert_close(x_a[:, :3], batch.source_image / 127.5 - 1)
    for b, y, x in np.ndindex(2, 8, 6):
        for planes, which in ((x_a[b, 3:, y, x], "source"), (x_t[b, :, y, x], "target")):
            expected = torch.zeros(21)
            expected[0] = getattr(batch, f"{which}_mask")[b, y, x]
            label = int(getattr(batch, f"{which}_parsing")[b, y, x])
            if label != MISSING_LABEL:
                expected[1 + label] = 1
            assert torch.equal(planes, expected)


@pytest.mark.parametrize(
    ("schema", "labels"), [("atr18", 18), ("cihp20", 20), ("pascal7", 7), ("merged8", 8)]
)
def test_schema_sets_the_width_of_the_first_layers(schema: str, labels: int) -> None:
    net = seeded(**TINY, schema=schema)
    first = [encoder.stages[0][0].in_channels for encoder in (net.appearance_encoder, net.semantic_encoder)]
    assert first == [4 + labels, 1 + labels]


@pytest.mark.parametrize("mode", ["multiply_source", "multiply_both"])
def test_mask_modes_take_the_background_away(mode: str, make_batch: BatchMaker) -> None:
    net, batch = seeded(**TINY, mask_mode=mode), make_batch()
    shown = net.network_inputs(batch)[0][:, :3]
    off = ~batch.source_mask.unsqueeze(1).expand_as(shown)
    assert not shown[off].any()
    assert torch.equal(shown[~off], (batch.source_image / 127.5 - 1)[~off])
    wanted = batch.target_image / 127.5 - 1
    if mode == "multiply_both":
        wanted = torch.where(batch.target_mask.unsqueeze(1), wanted, 0.0)
    assert torch.equal(net.training_target(batch), wanted)


READ = ("source_image", "source_mask", "source_parsing", "target_mask", "target_parsing")
UNREAD = ("target_image", "source_keypoints", "target_keypoints", "pids")


def test_the_target_image_never_leaks_and_every_input_counts(make_batch: BatchMaker) -> None:
    net, batch = seeded(**TINY), make_batch()  # in training mode: there even tiny signals reach the output
    output = net(batch)
    for field in UNREAD:
        assert torch.equal(net(changed(batch, field)), output), field
    for field in READ:
        assert (net(changed(batch, field)) - output).abs().max() > 1e-3, field


def test_ablation_without_masks_never_reads_them(make_batch: BatchMaker) -> None:
    net, batch = seeded(**TINY, use_mask=False), make_batch()
    output = net(batch)
    for field in ("source_mask", "target_mask"):
        assert torch.equal(net(changed(batch, field)), output)
    assert not torch.equal(net(changed(batch, "source_parsing")), output)
