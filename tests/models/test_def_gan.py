"""Def-GAN: the published sizes, its norm by hand, which skips are warped, what it reads, any size."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from network_checks import does_not_depend_on_its_batch, reads_image_and_poses_only

from reposer.errors import UserError
from reposer.models.def_gan import DefGAN, def_gan_size
from reposer.models.discriminators import build_discriminator
from reposer.models.generators import build_generator
from reposer.models.layers import LayerNorm
from reposer.workflows.gan_presets import find_preset

TINY = {"encoder": (4, 6, 8, 8), "decoder": (8, 6, 4)}


def seeded(**args) -> DefGAN:
    torch.manual_seed(0)
    return DefGAN(**{**TINY, **args})


@pytest.fixture
def no_autocast(monkeypatch):
    """The meta device, which gives shapes without numbers, is none that torch.autocast knows."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())


@pytest.mark.usefixtures("no_autocast")
@pytest.mark.parametrize(
    ("size", "sides", "parameters", "macs"),
    [
        ("paper", (128, 64), 61_109_085, 8.56),
        ("deepfashion", (256, 256), 82_080_611, 69.0),
        ("small", (128, 64), 4_773_901, 1.26),
    ],
)
def test_it_has_the_published_size(size, sides, parameters, macs, make_batch, operations, monkeypatch):
    monkeypatch.setattr("reposer.models.def_gan.part_warps", lambda *_: None)  # no numbers on this device
    monkeypatch.setattr("reposer.models.def_gan.deformable_skip", lambda maps, *_: maps)
    with torch.device("meta"):
        net = DefGAN(**def_gan_size(size))
        assert sum(p.numel() for p in net.parameters()) == parameters
        assert operations(net, make_batch(1, *sides).to("meta")) == pytest.approx(macs, rel=5e-3)


def test_its_discriminator_has_the_published_size():
    """Seven more than counted: scale and shift of three norms, and the bias of the logits."""
    with torch.device("meta"):
        net = build_discriminator(**find_preset("def_gan_market").discriminator_args)
    assert sum(p.numel() for p in net.parameters()) == 2_803_776 + 7


def test_the_norm_is_that_of_a_whole_map():
    norm = LayerNorm()
    torch.nn.init.constant_(norm.weight, 2.0)
    torch.nn.init.constant_(norm.bias, 0.5)
    x = torch.randn(2, 3, 4, 5)
    for row in range(2):
        values = x[row].numpy()
        wanted = (values - values.mean()) / (values.std() + 1e-3) * 2 + 0.5
        torch.testing.assert_close(norm(x)[row], torch.from_numpy(wanted), atol=1e-5, rtol=1e-5)


def test_a_flat_map_has_a_finite_gradient():
    x = torch.ones(1, 2, 3, 3, requires_grad=True)
    LayerNorm()(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_the_finest_levels_are_warped_and_the_others_are_not(make_batch, monkeypatch):
    seen = []

    def noted(maps, warps, level, nearest):
        seen.append((level, nearest, tuple(maps.shape[1:])))
        return maps

    monkeypatch.setattr("reposer.models.def_gan.deformable_skip", noted)
    seeded(warped=2, sampling="nearest").eval()(make_batch(1, 64, 32))
    assert seen == [(1, True, (6, 32, 16)), (0, True, (4, 64, 32))]


def test_a_source_in_the_target_s_pose_is_not_moved(make_batch):
    """With equal poses the warped skips are the positive part of the plain ones, which the decoder takes."""
    batch = make_batch(2, 64, 32)
    batch = replace(batch, target_keypoints=batch.source_keypoints)
    nets = [seeded(warped=count).eval() for count in (4, 0)]
    nets[0].load_state_dict(nets[1].state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(nets[0](batch), nets[1](batch), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "args",
    [{}, {"norm": "instance", "dropout": 0.0}, {"norm": "batch", "sampling": "nearest"}, {"warped": 0}],
)
def test_every_parameter_learns_and_any_size_goes(args, make_batch):
    torch.manual_seed(0)
    net = build_generator("def_gan", **{**TINY, **args})
    batch = make_batch(2, 61, 30)
    image = net(batch)
    assert image.shape == (2, 3, 61, 30)
    assert image.abs().max() <= 1
    image.square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_padding_moves_the_warps_with_the_picture(make_batch):
    """A picture with a border that repeats its edge is what padding makes of it."""
    net, batch = seeded().eval(), make_batch(1, 60, 30)
    wide = replace(
        batch,
        source_image=torch.nn.functional.pad(batch.source_image.float(), (1, 1, 2, 2), "replicate").byte(),
        source_keypoints=batch.source_keypoints + torch.tensor([1.0, 2.0]),
        target_keypoints=batch.target_keypoints + torch.tensor([1.0, 2.0]),
    )
    with torch.inference_mode():
        got, whole = net(batch), net(wide)
    assert (got - whole[..., 2:-2, 1:-1]).abs().mean() < 0.02  # the pose maps' own borders differ


def test_it_reads_image_and_poses_only(make_batch):
    net, batch = seeded().eval(), make_batch(2, 64, 32)
    reads_image_and_poses_only(net, batch)


def test_a_picture_does_not_depend_on_its_batch(make_batch):
    net, batch = seeded().eval(), make_batch(4)
    does_not_depend_on_its_batch(net, batch)


@pytest.mark.parametrize("value", [torch.nan, -500.0, 7.0])
def test_nobody_without_keypoints_gives_nan(value, make_batch):
    nobody = torch.full((2, 18, 2), value)
    image = seeded()(replace(make_batch(2, 64, 32), source_keypoints=nobody, target_keypoints=nobody))
    image.mean().backward()
    assert image.isfinite().all()


@pytest.mark.parametrize(
    ("args", "word"),
    [
        ({"encoder": (4,)}, "encoder"),
        ({"decoder": (4,)}, "decoder"),
        ({"warped": 9}, "warped"),
        ({"norm": "laier"}, "layer"),
        ({"encodr": (4, 4)}, "encoder"),
    ],
)
def test_impossible_arguments_are_named(args, word):
    with pytest.raises(UserError, match=word):
        build_generator("def_gan", **{**TINY, **args})


def test_an_unknown_size_is_named():
    with pytest.raises(UserError, match="small"):
        def_gan_size("smal")
