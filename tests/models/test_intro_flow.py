"""Intro-Flow with key-point flow: the published sizes, its flows and terms by hand, its stages, any pose."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from network_checks import does_not_depend_on_its_batch, reads_image_and_poses_only

from reposer.errors import UserError
from reposer.models.discriminators import build_discriminator
from reposer.models.generators import build_generator
from reposer.models.intro_flow import IntroFlow, flow_in_parts, intro_flow_size, warp
from reposer.models.part_warps import BACKGROUND, HIDDEN, VISIBLE, KeypointFlow
from reposer.models.pose_maps import disc_maps
from reposer.workflows.gan_presets import find_preset

NAME = "intro_flow_keypoints"
TINY = {"width": 4, "widest": 8, "levels": 3, "warped": 2, "flow_width": 4, "flow_levels": 2}


def seeded(**args) -> IntroFlow:
    torch.manual_seed(0)
    return IntroFlow(**{**TINY, **args})


@pytest.fixture
def no_autocast(monkeypatch):
    """The meta device, which gives shapes without numbers, is none that torch.autocast knows."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())


@pytest.mark.usefixtures("no_autocast")
@pytest.mark.parametrize(
    ("size", "sides", "parts", "norms", "macs"),
    [
        ("paper", (128, 64), (16_744_011, 7_255_107, 5_044_353), 1088, 6.32),
        pytest.param(
            *("deepfashion", (256, 256), (29_338_189, 11_881_539, 8_358_017), 1600, 51.3),
            marks=pytest.mark.slow,
        ),
        ("small", (128, 64), (1_585_691, 1_818_147, 1_263_425), 544, 1.47),
    ],
)
def test_it_has_the_published_size(size, sides, parts, norms, macs, make_batch, operations):
    """But for the norms behind the shared halvings, of which each encoder has its own."""
    with torch.device("meta"):
        net = IntroFlow(**intro_flow_size(size))
        counts = [
            sum(p.numel() for p in part.parameters())
            for part in (net.flow_net, net.feature_net, net.blend_net)
        ]
        assert counts == [parts[0], parts[1] + norms, parts[2]]
        assert norms == sum(p.numel() for p in net.feature_net.source_norms.parameters())
        assert operations(net, make_batch(1, *sides).to("meta")) == pytest.approx(macs, rel=5e-3)


@pytest.mark.parametrize("preset", ["intro_flow_keypoints_market", "intro_flow_keypoints_deepfashion"])
def test_its_discriminator_has_the_published_size(preset):
    with torch.device("meta"):
        net = build_discriminator(**find_preset(preset).discriminator_args)
    assert sum(p.numel() for p in net.parameters()) == 2_787_137


def test_a_pose_is_discs():
    points = torch.full((1, 18, 2), torch.nan)
    points[0, 3] = torch.tensor([4.5, 6.0])
    found = disc_maps(points, 12, 10, 4.0)
    assert found.shape == (1, 18, 12, 10)
    for y in range(12):
        for x in range(10):
            assert found[0, 3, y, x] == float((x - 4.5) ** 2 + (y - 6) ** 2 <= 16)
    assert found.sum() == found[0, 3].sum()


def test_a_warp_takes_what_lies_where_the_flow_leads():
    maps = torch.arange(24.0).view(1, 1, 4, 6)
    flow = torch.zeros(1, 2, 4, 6)
    flow[:, 0], flow[:, 1] = 2.0, -1.0
    got = warp(maps, flow)
    torch.testing.assert_close(got[0, 0, 1:, :4], maps[0, 0, :3, 2:], atol=1e-4, rtol=0)
    assert not got[0, 0, 0].any()
    assert got[0, 0, :, 4:].abs().max() < 1e-4
    flow[:, 0] = 0.25
    flow[:, 1] = 0.0
    torch.testing.assert_close(warp(maps, flow)[..., :5], maps[..., :5] + 0.25, atol=1e-4, rtol=0)


@pytest.fixture
def flowing(monkeypatch):
    """Call it with a network, a flow in pixels and what shows, which are then what the flow net says."""

    def fix(net, flow, visibility):
        logits = F.one_hot(visibility, 3).permute(0, 3, 1, 2).float() * 50
        half = F.avg_pool2d(flow, 2) / 20
        monkeypatch.setattr(net.flow_net, "forward", lambda _: ([half], logits))

    return fix


def test_the_picture_is_source_and_painting_as_the_last_net_says(make_batch, flowing):
    net, batch = seeded().eval(), make_batch(1, 64, 32)
    flow, seen = torch.zeros(1, 2, 64, 32), torch.zeros(1, 64, 32, dtype=torch.int64)
    flow[:, 1] = 5.0
    seen[:, :20] = BACKGROUND
    flowing(net, flow, seen)
    source = batch.source_image / 127.5 - 1
    with torch.inference_mode():
        net.stage = "flow"
        moved = net(batch)
        assert (moved[:, :, :20] == -1).all()
        torch.testing.assert_close(moved[:, :, 21:59], source[:, :, 26:], atol=1e-4, rtol=0)
        net.stage = "features"
        painted = net(batch)
        net.stage = ""
        torch.nn.init.zeros_(net.blend_net.to_share.weight)
        for bias, share in ((-50.0, 0.0), (0.0, 0.5), (50.0, 1.0)):
            torch.nn.init.constant_(net.blend_net.to_share.bias, bias)
            wanted = share * moved + (1 - share) * painted
            torch.testing.assert_close(net(batch), wanted, atol=1e-5, rtol=0)


def test_levels_see_the_mean_flow_and_the_best_visibility(monkeypatch):
    net = seeded().feature_net
    seen = {}
    block = net.warps[1][0]
    monkeypatch.setattr(block, "forward", lambda x, beside: seen.update(x=x, beside=beside) or x)
    maps = torch.rand(1, 8, 4, 4)
    flow = torch.zeros(1, 2, 8, 8)
    flow[:, 0, :, 1::2] = 4.0  # a mean of 2 px at full size, 1 at half
    visibility = torch.full((1, 1, 8, 8), BACKGROUND)
    visibility[..., :2, :2], visibility[..., 1, 1], visibility[..., 4, 4] = HIDDEN, VISIBLE, HIDDEN
    net._warped(1, [maps, maps], flow, visibility)
    torch.testing.assert_close(seen["x"][..., :3], maps[..., 1:], atol=1e-4, rtol=0)
    first, second = seen["beside"].split(8, 1)
    shows = torch.zeros(4, 4, dtype=torch.bool)
    shows[0, 0] = True
    hides = torch.zeros(4, 4, dtype=torch.bool)
    hides[2, 2] = True
    assert torch.equal(first, seen["x"] * shows)
    assert torch.equal(second, seen["x"] * hides)


def test_the_flow_s_error_is_that_of_every_scale(make_batch, monkeypatch):
    net, batch = seeded(), make_batch(1, 32, 16)
    wanted, visibility = torch.randn(1, 2, 32, 16) * 9, torch.full((1, 32, 16), BACKGROUND)
    visibility[:, 4:20, 3:9] = VISIBLE
    monkeypatch.setattr("reposer.models.intro_flow.keypoint_flow", lambda _: KeypointFlow(wanted, visibility))
    flows = [torch.randn(1, 2, 16, 8), torch.randn(1, 2, 8, 4)]
    logits = torch.randn(1, 3, 32, 16)
    terms = net._flow_terms(batch, flows, logits)
    total = 0.0
    for scale, flow in ((1, flows[0]), (2, flows[1])):
        step, errors = 2**scale, []
        for y in range(32 // step):
            for x in range(16 // step):
                cell = (slice(y * step, y * step + step), slice(x * step, x * step + step))
                if (visibility[0][cell] < BACKGROUND).any():
                    target = 0.05 * wanted[0][(slice(None), *cell)].mean((1, 2))
                    errors.append(float((flow[0, :, y, x] - target).norm()))
        total += 0.32 / 2 ** (scale - 1) * sum(errors) / len(errors)
    assert float(terms["flow_error"]) == pytest.approx(total, rel=1e-4)
    chosen = logits.log_softmax(1).gather(1, visibility[:, None])
    assert float(terms["visibility"]) == pytest.approx(-float(chosen.mean()), rel=1e-5)


def test_a_flow_into_another_part_costs(make_batch):
    batch = make_batch(1, 16, 8)
    upper, legs = 5, 16
    parsing = torch.full((1, 16, 8), upper, dtype=torch.uint8)
    parsing[:, 8:] = legs
    mask = torch.ones(1, 16, 8, dtype=torch.bool)
    batch = replace(batch, source_parsing=parsing, target_parsing=parsing, source_mask=mask, target_mask=mask)
    wanted = KeypointFlow(torch.zeros(1, 2, 16, 8), torch.zeros(1, 16, 8, dtype=torch.int64))
    flow = torch.zeros(1, 2, 16, 8)
    assert float(flow_in_parts(flow, wanted, batch)) == 0
    flow[:, 1, 2, 3] = 8 / 20  # from upper garment to legs
    flow[:, 1, 2, 4] = 2 / 20  # stays on the garment
    assert float(flow_in_parts(flow, wanted, batch)) == pytest.approx(0.4, rel=1e-4)
    hidden = wanted._replace(visibility=torch.ones(1, 16, 8, dtype=torch.int64))
    assert float(flow_in_parts(flow, hidden, batch)) == 0


@pytest.mark.parametrize("args", [{}, {"warped": 0, "levels": 2}, {"levels": 5, "warped": 5}])
def test_every_parameter_learns_and_any_size_goes(args, make_batch):
    torch.manual_seed(0)
    net = build_generator(NAME, **{**TINY, **args})
    image, parts = net(make_batch(2, 61, 30), parts=True)
    assert image.shape == (2, 3, 61, 30)
    assert image.abs().max() <= 1
    (image.square().mean() + sum(parts.terms.values())).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("stage", ["flow", "features", "features_gan", "blend"])
def test_each_stage_reaches_what_learns_in_it(stage, make_batch):
    net = seeded()
    net.stage = stage
    image, parts = net(make_batch(2, 32, 16), parts=True)
    assert bool(parts.terms) == (stage == "flow")
    (image.square().mean() + sum(parts.terms.values())).backward()
    for name in net.stages[stage]:
        assert all(p.grad is not None for p in net.get_submodule(name).parameters())


def test_it_reads_image_and_poses_only(make_batch):
    net, batch = seeded().eval(), make_batch(2, 64, 32)
    reads_image_and_poses_only(net, batch)


def test_a_picture_does_not_depend_on_its_batch(make_batch):
    """The authors' does: their networks take the statistics of the test batch."""
    net, batch = seeded().eval(), make_batch(4)
    does_not_depend_on_its_batch(net, batch)


@pytest.mark.parametrize("value", [torch.nan, -500.0])
@pytest.mark.parametrize("size", [(64, 32), (32, 16)])
def test_nobody_without_keypoints_gives_nan(value, size, make_batch):
    nobody = torch.full((2, 18, 2), value)
    batch = replace(make_batch(2, *size), source_keypoints=nobody, target_keypoints=nobody)
    batch = replace(batch, target_mask=torch.zeros_like(batch.target_mask))
    image, parts = seeded()(batch, parts=True)
    (image.mean() + sum(parts.terms.values())).backward()
    assert image.isfinite().all()


@pytest.mark.parametrize(
    ("args", "word"),
    [({"levels": 0}, "levels"), ({"warped": 9}, "warped"), ({"width": 0}, "width"), ({"widht": 4}, "width")],
)
def test_impossible_arguments_are_named(args, word):
    with pytest.raises(UserError, match=word):
        build_generator(NAME, **{**TINY, **args})
