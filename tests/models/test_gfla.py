"""GFLA: the published sizes, its tensor forms against loops, its stages, what it reads, any size and pose."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from math import floor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from network_checks import does_not_depend_on_its_batch, reads_image_and_poses_only

from reposer.errors import UserError
from reposer.models.discriminators import build_discriminator
from reposer.models.generators import build_generator
from reposer.models.gfla import GFLA, LocalAttention, blocks_at, flow_regularity, gfla_size, part_flow_loss
from reposer.models.part_warps import HIDDEN, VISIBLE, KeypointFlow
from reposer.workflows.gan_presets import find_preset

TINY = {"ngf": 4, "flow_ngf": 4, "hidden": 6}
TWO = {**TINY, "attention": (5, 3)}


def seeded(**args) -> GFLA:
    """With weights large enough that flow and attention differ from nothing."""
    torch.manual_seed(0)
    net = GFLA(**{**TINY, **args})
    for parameter in net.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return net


@pytest.fixture
def no_autocast(monkeypatch):
    """The meta device, which gives shapes without numbers, is none that torch.autocast knows."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())


@pytest.mark.usefixtures("no_autocast")
@pytest.mark.parametrize(
    ("size", "sides", "parts", "macs"),
    [
        # less the third step of the source net, which nothing reads here
        ("paper", (128, 64), (6_604_753, 1_434_758, 4_886_960), 2.21 - 0.142),
        ("deepfashion", (256, 256), (6_608_212, 1_434_758, 6_004_425), 20.5),
        ("small", (128, 64), (3_322_055,), 0.62 - 0.036),
    ],
)
def test_it_has_the_published_size(size, sides, parts, macs, make_batch, operations):
    with torch.device("meta"):
        net = GFLA(**gfla_size(size))
        counts = [
            sum(p.numel() for p in part.parameters())
            for part in (net.flow_net, net.source_net, net.target_net)
        ]
        assert sum(counts) == sum(parts)
        assert len(parts) == 1 or counts == list(parts)
        counted = operations(net, make_batch(1, *sides).to("meta"))
        assert counted == pytest.approx(macs, rel=0.01)


@pytest.mark.parametrize(
    ("preset", "count"),
    [("gfla_market", 238_209), pytest.param("gfla_deepfashion", 664_577, marks=pytest.mark.slow)],
)
def test_its_discriminator_has_the_published_size(preset, count):
    with torch.device("meta"):
        net = build_discriminator(**find_preset(preset).discriminator_args)
    assert sum(p.numel() for p in net.parameters()) == count


def bilinear(maps: np.ndarray, x: float, y: float) -> np.ndarray:
    """Channels of (C, h, w) at a place, the border repeated."""
    height, width = maps.shape[1:]
    x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
    left, top = min(floor(x), max(width - 2, 0)), min(floor(y), max(height - 2, 0))
    right, below = min(left + 1, width - 1), min(top + 1, height - 1)
    r, d = x - left, y - top
    upper = (1 - r) * maps[:, top, left] + r * maps[:, top, right]
    return (1 - d) * upper + d * ((1 - r) * maps[:, below, left] + r * maps[:, below, right])


def slow_blocks(maps: np.ndarray, flow: np.ndarray, kernel: int) -> np.ndarray:
    """The extractor's kernel: each k x k block laid out in a map of k h x k w."""
    channels, height, width = maps.shape
    out = np.zeros((channels, kernel * height, kernel * width))
    for y in range(height):
        for x in range(width):
            for u in range(kernel):
                for v in range(kernel):
                    place = (x + flow[0, y, x] + v - kernel // 2, y + flow[1, y, x] + u - kernel // 2)
                    out[:, kernel * y + u, kernel * x + v] = bilinear(maps, *place)
    return out


@pytest.mark.parametrize("kernel", [3, 5])
def test_blocks_and_attention_are_the_authors_kernels(kernel):
    torch.manual_seed(0)
    source, target = torch.randn(2, 3, 6, 4), torch.randn(2, 3, 6, 4)
    flow = torch.randn(2, 2, 6, 4) * 3
    net = LocalAttention(3, kernel, 7)
    torch.nn.init.normal_(net.weigh.weight)
    blocks, got = blocks_at(source, flow, kernel), net(source, target, flow)
    for row in range(2):
        theirs = slow_blocks(source[row].double().numpy(), flow[row].double().numpy(), kernel)
        ours = slow_blocks(target[row].double().numpy(), np.zeros((2, 6, 4)), kernel)
        laid = F.pixel_shuffle(blocks[row].flatten(0, 1)[None], kernel)[0]
        np.testing.assert_allclose(laid, theirs, atol=1e-5)
        mixed = net.mix(torch.from_numpy(np.concatenate([ours, theirs])).float()[None])
        share = net.weigh(F.leaky_relu(mixed, 0.1)).softmax(1)
        laid_share = F.pixel_shuffle(share, kernel)
        wanted = F.avg_pool2d(laid_share * torch.from_numpy(theirs).float()[None], kernel)
        torch.testing.assert_close(got[row : row + 1], wanted.detach(), atol=1e-5, rtol=1e-4)


def test_the_gradient_reaches_the_flow_exactly():
    torch.manual_seed(0)
    maps, flow = torch.randn(1, 2, 5, 4), torch.rand(1, 2, 5, 4) * 0.8 + 0.1
    flow.requires_grad_()
    weight = torch.randn(1, 2, 9, 5, 4)
    (blocks_at(maps, flow, 3) * weight).sum().backward()
    step = torch.zeros_like(flow)
    step[0, 1, 2, 1] = 1e-2
    ends = [(blocks_at(maps, flow.detach() + sign * step, 3) * weight).sum() for sign in (1, -1)]
    torch.testing.assert_close(flow.grad[0, 1, 2, 1], (ends[0] - ends[1]) / 2e-2, atol=1e-3, rtol=1e-3)


def test_a_patch_s_distance_from_affine_by_least_squares():
    torch.manual_seed(0)
    flow = torch.randn(2, 2, 5, 4)
    y, x = np.mgrid[:3, :3]
    plane = np.c_[x.ravel(), y.ravel(), np.ones(9)]
    total, count = 0.0, 0
    for row in range(2):
        for top in range(3):
            for left in range(2):
                count += 1
                for axis in range(2):
                    patch = flow[row, axis, top : top + 3, left : left + 3].double().numpy().ravel()
                    fit = plane @ np.linalg.lstsq(plane, patch, rcond=None)[0]
                    total += ((patch - fit) ** 2).sum()
    assert float(flow_regularity(flow, 3)) == pytest.approx(total / count, rel=1e-4)
    affine = torch.stack([2 * torch.arange(4.0).expand(5, 4) + 1, torch.ones(5, 4)])[None]
    assert float(flow_regularity(affine, 3)) < 1e-8
    assert float(flow_regularity(flow, 1)) == 0


def test_the_part_flow_counts_what_is_visible():
    flow, wanted = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 8, 8)
    wanted[:, 0, :4, :4], wanted[:, 1, 4:, 4:] = 12.0, 99.0
    visibility = torch.full((1, 8, 8), HIDDEN)
    visibility[:, :4, :2], visibility[:, :4, 4:] = VISIBLE, VISIBLE  # half a cell at 12 px, a cell at 0
    found = part_flow_loss(flow, wanted, visibility, 2)
    assert float(found) == pytest.approx(12 / 4 * 0.5 / 1.5, abs=1e-2)
    nothing = part_flow_loss(flow, wanted, torch.full((1, 8, 8), HIDDEN), 2)
    assert float(nothing) == 0


def test_the_masks_mix_target_and_attended_features(make_batch):
    net, batch = seeded().eval(), make_batch(1, 64, 32)
    torch.nn.init.zeros_(net.flow_net.mask_heads[0].weight)
    torch.nn.init.constant_(net.flow_net.mask_heads[0].bias, -200.0)
    with torch.inference_mode():
        closed = net(batch)
        moved = net(replace(batch, source_image=255 - batch.source_image))
        assert torch.equal(closed, moved)  # nothing of the source comes in but through the masks
        torch.nn.init.constant_(net.flow_net.mask_heads[0].bias, 80.0)
        assert not torch.equal(net(batch), closed)


@pytest.mark.parametrize("args", [TINY, TWO, {**TINY, "part_flow": True}])
def test_every_parameter_learns_and_any_size_goes(args, make_batch):
    torch.manual_seed(0)
    net = build_generator("gfla", **args)
    image, parts = net(make_batch(2, 61, 30), parts=True)
    assert image.shape == (2, 3, 61, 30)
    assert image.abs().max() <= 1
    assert [tuple(flow.shape[2:]) for flow in parts.flows] == [(15, 7), (7, 3)][: len(parts.flows)]
    (image.square().mean() + sum(parts.terms.values())).backward()
    for name, parameter in net.named_parameters():
        if len(parts.flows) == 1 and name.startswith("source_net.2"):
            continue  # counted by the authors and read by nothing
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_in_the_first_stage_the_image_is_the_source_where_the_flow_leads(make_batch):
    net, batch = GFLA(**TINY), make_batch(2, 64, 32)
    net.stage = "flow"
    torch.nn.init.zeros_(net.flow_net.flow_heads[0].weight)
    net.flow_net.flow_heads[0].bias.data = torch.tensor([0.5, -0.25])  # two pixels right, one up
    image, parts = net(batch, parts=True)
    source = batch.source_image / 127.5 - 1
    torch.testing.assert_close(image[..., 1:, :-2], source[..., :-1, 2:], atol=1e-4, rtol=0)
    (sum(flow.square().sum() for flow in parts.flows)).backward()
    assert all(p.grad is None for part in (net.source_net, net.target_net) for p in part.parameters())


def test_it_reads_image_and_poses_only(make_batch):
    net, batch = seeded().eval(), make_batch(2, 64, 32)
    reads_image_and_poses_only(net, batch)


def test_a_picture_does_not_depend_on_its_batch(make_batch):
    net, batch = seeded(attention=(3, 3)).eval(), make_batch(4)
    does_not_depend_on_its_batch(net, batch)


@pytest.mark.parametrize("value", [torch.nan, -500.0])
@pytest.mark.parametrize("size", [(64, 32), (32, 16)])
def test_nobody_without_keypoints_gives_nan(value, size, make_batch):
    nobody = torch.full((2, 18, 2), value)
    batch = replace(make_batch(2, *size), source_keypoints=nobody, target_keypoints=nobody)
    image, parts = seeded(part_flow=True)(batch, parts=True)
    (image.mean() + sum(parts.terms.values())).backward()
    assert image.isfinite().all()


@pytest.mark.parametrize(
    ("args", "word"),
    [({"attention": (4,)}, "attention"), ({"attention": ()}, "attention"), ({"ngf": 0}, "ngf")],
)
def test_impossible_arguments_are_named(args, word):
    with pytest.raises(UserError, match=word):
        build_generator("gfla", **{**TINY, **args})


def test_the_start_is_orthogonal_of_a_gain_but_for_the_heads():
    for args, gain in (({}, 0.02), ({"gain": 1.0}, 1.0)):
        net = GFLA(**TINY, **args)
        heads = {*net.flow_net.flow_heads, *net.flow_net.mask_heads, *net.target_net.to_image}
        for module in net.modules():
            if isinstance(module, torch.nn.Conv2d):
                weight = module.weight.detach().flatten(1)
                values = torch.linalg.svdvals(weight)
                wanted = 0.02 if module in heads else gain
                torch.testing.assert_close(values, torch.full_like(values, wanted), rtol=1e-4, atol=1e-6)


def test_the_flow_of_the_parts_is_looked_at_in_both_stages(make_batch):
    net = seeded(part_flow=True)
    for stage in ("flow", "all"):
        net.stage = stage
        assert "part_flow" in net(make_batch(1, 64, 32), parts=True)[1].terms


def test_the_flow_of_the_parts_is_its_target(make_batch, monkeypatch):
    flow, seen = torch.full((1, 2, 64, 32), 4.0), torch.zeros(1, 64, 32, dtype=torch.int64)
    monkeypatch.setattr("reposer.models.gfla.keypoint_flow", lambda _: KeypointFlow(flow, seen))
    net = GFLA(**TINY, part_flow=True)
    torch.nn.init.zeros_(net.flow_net.flow_heads[0].weight)
    net.flow_net.flow_heads[0].bias.data[:] = 1.0
    with torch.inference_mode():
        found = net(make_batch(1, 64, 32), parts=True)[1].terms["part_flow"]
    assert float(found) == pytest.approx(0, abs=2e-3)
