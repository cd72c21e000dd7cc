"""The discriminator: its size, what each pairing lets it see, gradients to the image, use under autocast."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reposer.errors import UserError
from reposer.models.discriminators import ResidualBlock, ResnetDiscriminator, build_discriminator
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
    "args", [{}, {"pairing": "shape"}, {"norm": "instance", "dropout": 0.5, "lrelu_slope": 0.0}]
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
