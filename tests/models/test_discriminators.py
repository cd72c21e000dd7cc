"""The discriminator: its size, what each pairing lets it see, gradients to the image, use under autocast."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reposer.errors import UserError
from reposer.images import to_float
from reposer.models.discriminators import (
    DcganDiscriminator,
    ResidualBlock,
    ResidualDiscriminator,
    ResnetDiscriminator,
    build_discriminator,
    seen,
)
from reposer.models.pose_maps import gaussian_maps
from reposer.structures import PairBatch

BatchMaker = Callable[..., PairBatch]
Counter = Callable[..., float]


def seeded(**args: Any) -> ResnetDiscriminator:
    torch.manual_seed(0)
    return ResnetDiscriminator(**{"ndf": 4, **args})


def test_parameters_and_macs_are_those_of_the_design(make_batch: BatchMaker, operations: Counter) -> None:
    with torch.device("meta"):
        net = ResnetDiscriminator()
    for (height, width), macs in {(128, 64): 2.27, (256, 256): 18.15}.items():
        batch = make_batch(1, height, width).to("meta")
        logits = net(batch.source_image, batch.target_image, batch)
        assert logits.shape == (1, 1, height // 4, width // 4)
        counted = operations(net, batch.source_image, batch.target_image, batch)
        assert counted == pytest.approx(macs, rel=0.005)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(3.93, rel=0.005)


def test_without_a_head_the_residual_maps_are_the_logits(make_batch: BatchMaker) -> None:
    batch = make_batch(2, 32, 16)
    assert seeded(head="none")(batch.source_image, batch.target_image, batch).shape == (2, 16, 8, 4)


SEEN = {  # pairing, fake -> the fields that reach the logits besides the image itself
    ("source", False): {"source_image"},
    ("source", True): {"source_image"},
    ("as_printed", False): {"source_image"},
    ("as_printed", True): {"target_image"},
    ("shape", False): {"target_mask", "target_parsing"},
    ("shape", True): {"target_mask", "target_parsing"},
    ("source_pose", True): {"source_image", "target_keypoints"},
    ("poses", False): {"source_image", "source_keypoints", "target_keypoints"},
    ("poses", True): {"source_image", "source_keypoints", "target_keypoints"},
    ("none", True): set(),
}


@pytest.mark.parametrize(("pairing", "fake"), list(SEEN))
def test_pairing_decides_what_is_seen(pairing: str, fake: bool, make_batch: BatchMaker) -> None:
    net, batch, other = seeded(pairing=pairing), make_batch(2), make_batch(2, seed=1)
    image = torch.rand(2, 3, 64, 32) * 2 - 1

    def judge(batch: PairBatch, image: Tensor) -> Tensor:
        logits: Tensor = net(batch.source_image, image, batch, fake=fake)
        return logits

    logits = judge(batch, image)
    assert not torch.equal(judge(batch, -image), logits)
    seen = {
        field
        for field in PairBatch.__slots__
        if not torch.equal(judge(replace(batch, **{field: getattr(other, field)}), image), logits)
    }
    assert seen == SEEN[pairing, fake]


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"pairing": "shape"},
        {"norm": "instance", "dropout": 0.5, "lrelu_slope": 0.0},
        {"norm": "none", "pairing": "pose"},
    ],
)
def test_every_parameter_and_the_image_get_a_gradient(args: dict[str, Any], make_batch: BatchMaker) -> None:
    net, batch = seeded(**args), make_batch(2)
    image = torch.rand(2, 3, 64, 32, requires_grad=True)
    net(batch.source_image, image, batch).square().mean().backward()
    assert image.grad is not None
    assert image.grad.abs().amax((1, 2, 3)).min() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_residual_block_adds_its_input() -> None:
    block = ResidualBlock(3, dropout=0.0, norm="batch", lrelu_slope=0.2, padding="reflect").eval()
    last = block.branch[-1]
    assert isinstance(last, nn.BatchNorm2d)
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, 0.5)
    x = torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(block(x), x + 0.5)


@pytest.mark.slow
def test_bfloat16_and_compilation(make_batch: BatchMaker) -> None:
    net, batch = seeded(), make_batch(2)
    plain = net(batch.source_image, batch.target_image, batch)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(batch.source_image, batch.target_image, batch), plain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = net(batch.source_image, batch.target_image, batch)
    assert (mixed - plain).abs().mean() < 0.05 * plain.abs().mean()


@pytest.mark.parametrize("option", ["pairing", "head", "norm", "padding"])
def test_unknown_choices_are_named(option: str) -> None:
    with pytest.raises(UserError, match=option):
        seeded(**{option: "other"})


def test_the_second_discriminator_sees_the_pose_and_the_first_the_source(make_batch: BatchMaker) -> None:
    torch.manual_seed(0)
    both = build_discriminator(shape=True, ndf=4).eval()
    batch = make_batch(2, 32, 16)
    logits = both(batch.source_image, batch.target_image, batch)
    assert logits.shape == (2, 2, 8, 4)
    other_pose = replace(batch, target_mask=~batch.target_mask)
    changed = both(batch.source_image, batch.target_image, other_pose) != logits
    assert not changed[:, 0].any()
    assert changed[:, 1].any()
    changed = both(255 - batch.source_image, batch.target_image, batch) != logits
    assert changed[:, 0].any()
    assert not changed[:, 1].any()
    assert isinstance(build_discriminator(ndf=4), ResnetDiscriminator)


def test_the_second_discriminator_may_see_key_points(make_batch: BatchMaker) -> None:
    torch.manual_seed(0)
    both = build_discriminator(pose=True, ndf=4).eval()
    batch = make_batch(2, 32, 16)
    logits = both(batch.source_image, batch.target_image, batch)
    other_pose = replace(batch, target_keypoints=batch.target_keypoints / 2)
    changed = both(batch.source_image, batch.target_image, other_pose) != logits
    assert not changed[:, 0].any()
    assert changed[:, 1].any()
    other_maps = replace(batch, target_mask=~batch.target_mask)
    assert torch.equal(both(batch.source_image, batch.target_image, other_maps), logits)
    with pytest.raises(UserError, match="shape and pose"):
        build_discriminator(shape=True, pose=True)


def test_the_planes_of_a_pairing_stand_in_the_order_of_its_paper(make_batch: BatchMaker) -> None:
    batch = make_batch(2)
    image = torch.rand(2, 3, 64, 32) * 2 - 1
    poses = {
        side: gaussian_maps(getattr(batch, f"{side}_keypoints"), 64, 32) for side in ("source", "target")
    }
    source = to_float(batch.source_image)
    wanted = {
        "none": [image],
        "source_pose": [source, image, poses["target"]],
        "poses": [source, poses["source"], image, poses["target"]],
    }
    for pairing, parts in wanted.items():
        found = seen(pairing, batch.source_image, image, batch, fake=True, labels=20)
        assert torch.equal(found, torch.cat(parts, 1)), pairing


def test_the_residual_one_has_the_size_of_gfla(make_batch: BatchMaker) -> None:
    batch = make_batch(1, 128, 64).to("meta")
    with torch.device("meta"):
        market, fashion = (ResidualDiscriminator(widths=w) for w in ((32, 64, 128), (32, 64, 128, 128)))
    sizes = [sum(p.numel() for p in net.parameters()) for net in (market, fashion)]
    assert sizes == [238_209, 664_577]  # counted in the authors' code
    assert market(batch.source_image, batch.target_image, batch).shape == (1, 1, 16, 8)


def test_a_step_of_the_residual_one_is_its_branch_plus_its_shortcut(make_batch: BatchMaker) -> None:
    torch.manual_seed(0)
    net, batch = ResidualDiscriminator(widths=(4,)), make_batch(2)
    image = torch.randn(2, 3, 64, 32)
    branch, shortcut = net.branches[0], net.shortcuts[0][1]
    inner = torch.where(image > 0, image, 0.1 * image)
    inner = F.conv2d(inner, branch[1].weight, branch[1].bias, padding=1)
    inner = torch.where(inner > 0, inner, 0.1 * inner)
    inner = F.conv2d(inner, branch[3].weight, branch[3].bias, stride=2, padding=1)
    means = image.reshape(2, 3, 32, 2, 16, 2).mean((3, 5))
    x = inner + F.conv2d(means, shortcut.weight, shortcut.bias)
    wanted = F.conv2d(torch.where(x > 0, x, 0.1 * x), net.to_logit.weight, net.to_logit.bias)
    before = image.clone()
    torch.testing.assert_close(net(batch.source_image, image, batch), wanted)
    assert torch.equal(image, before)  # nothing works in place on what it was given


@pytest.mark.parametrize(
    "args", [{"kind": "residual", "widths": [4, 8]}, {"ndf": 4, "norm": "none", "blocks": 1, "pose": True}]
)
def test_spectral_norm_keeps_every_convolution_at_length_one(
    args: dict[str, Any], make_batch: BatchMaker
) -> None:
    torch.manual_seed(0)
    net, batch = build_discriminator(spectral=True, **args), make_batch(2)
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d)]
    for layer in layers:
        layer.parametrizations.weight.original.data *= 50
    for _ in range(30):  # a step of the power method each
        net(batch.source_image, batch.target_image, batch)
    net.eval()
    for layer in layers:
        length = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)
        assert length == pytest.approx(1, abs=0.05)
    net.train()
    net(batch.source_image, batch.target_image, batch).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_an_argument_that_a_kind_does_not_have_is_named() -> None:
    for args, word in (({"kind": "resnt"}, "resnet"), ({"kind": "residual", "ndf": 3}, "ndf")):
        with pytest.raises(UserError, match=word):
            build_discriminator(**args)
    with pytest.raises(UserError, match="widths"):
        build_discriminator(kind="residual", widths=[])


@pytest.mark.parametrize(
    ("args", "published"),
    [({}, 4_324_737), ({"size": (256, 256), "widths": (64, 128, 256, 512, 512)}, 10_896_257)],
)
def test_dcgan_has_the_size_of_pg2(args: dict[str, Any], published: int) -> None:
    with torch.device("meta"):
        net = build_discriminator(kind="dcgan", **args)
    assert sum(p.numel() for p in net.parameters()) == published


def test_dcgan_gives_one_logit_an_image_of_any_size(make_batch: BatchMaker) -> None:
    torch.manual_seed(0)
    net = DcganDiscriminator(size=(32, 16), widths=(4, 8))
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.weight.abs().max() <= 0.02 * 3**0.5
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not isinstance(net.steps[0][1], nn.BatchNorm2d)
    for height, width in ((32, 16), (64, 32), (20, 50)):
        batch = make_batch(3, height, width)
        assert net(batch.source_image, batch.target_image, batch).shape == (3, 1)
    with pytest.raises(UserError, match="divide by 16"):
        build_discriminator(kind="dcgan", size=(128, 60))


def test_the_patch_discriminator_has_a_logit_for_each_patch_of_any_size(make_batch: BatchMaker) -> None:
    torch.manual_seed(0)
    net = build_discriminator(kind="patch", pairing="source_pose", widths=[4, 6], strides=[2, 2, 1])
    for size, logits in (((32, 16), (8, 4)), ((30, 17), (8, 5)), ((4, 4), (1, 1))):
        batch = make_batch(2, *size)
        image = to_float(batch.target_image).requires_grad_()
        found = net(batch.source_image, image, batch)
        assert found.shape == (2, 1, *logits)
        found.square().sum().backward()
        assert image.grad is not None
        assert image.grad.abs().sum() > 0
        moved = replace(batch, target_keypoints=batch.target_keypoints.flip(1))
        assert not torch.equal(net(batch.source_image, image, moved), found)


def test_a_patch_logit_sees_so_many_pixels(make_batch: BatchMaker) -> None:
    """4x4 with strides 2, 2, 1 and one of 4x4: 4 + 2 (4 - 1) + 4 (4 - 1) = 22 of each side."""
    torch.manual_seed(0)
    net = build_discriminator(kind="patch", pairing="none", widths=[4, 6], strides=[2, 2, 1], norm="none")
    batch = make_batch(1, 64, 64)
    image = to_float(batch.target_image).requires_grad_()
    net(batch.source_image, image, batch)[0, 0, 8, 8].backward()
    assert image.grad is not None
    rows = image.grad.abs().sum((0, 1, 3)).nonzero()
    assert int(rows.max() - rows.min()) + 1 == 22


@pytest.mark.parametrize("args", [{"strides": [2, 2]}, {"widths": [4], "strides": [2, 3]}, {"widths": []}])
def test_impossible_patch_discriminators_are_named(args: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        build_discriminator(kind="patch", **args)
