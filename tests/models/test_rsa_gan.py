"""RSA-GAN: the sizes of its plan, every option learns, what it reads, people who lack something."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch

from reposer.errors import UserError
from reposer.models.discriminators import build_discriminator
from reposer.models.generators import build_generator
from reposer.models.rsa_gan import RSAGAN
from reposer.structures import PairBatch

BatchMaker = Callable[..., PairBatch]
TINY: dict[str, Any] = {"width": 32, "blocks": 1, "res_blocks": 1}

# The table of the reconstruction: millions of parameters, GMAC at 128x64, at 256x176.
PLAN = [
    ({}, 12.11, 9.64, 70.45),
    ({"blocks": 4}, 14.13, 11.21, 92.36),
    ({"attention": "channel"}, 13.16, 9.66, 57.26),
    ({"labels": "merged8"}, 12.08, 9.58, 70.10),
    ({"halvings": 3}, 14.14, 5.48, 31.23),
]
PARTS = {"image_encoder": 2.74, "pose_encoder": 0.43, "fusion": 1.63, "injection": 2.43, "decoder": 2.87}


@pytest.fixture
def no_autocast(monkeypatch):
    """The meta device, which gives shapes without numbers, is none that torch.autocast knows."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())


@pytest.mark.usefixtures("no_autocast")
@pytest.mark.parametrize(("args", "millions", "small", "large"), PLAN)
def test_parameters_and_operations_are_those_of_the_plan(
    args, millions, small, large, make_batch, plain, operations
):
    plain()  # the plan counts the operations of the plain form
    batches = [make_batch(1, *size).to("meta") for size in ((128, 64), (256, 176))]
    with torch.device("meta"):
        net = RSAGAN(**args)
        assert _millions(net) == pytest.approx(millions, rel=5e-3)
        assert [operations(net, batch) for batch in batches] == pytest.approx([small, large], rel=5e-3)


@pytest.mark.usefixtures("no_autocast")
def test_ours_takes_fewer_operations_than_the_plan(make_batch, operations):
    batch = make_batch(1, 128, 64).to("meta")
    with torch.device("meta"):
        assert operations(RSAGAN(), batch) < 0.9 * PLAN[0][2]


@pytest.fixture
def in_doubles(monkeypatch):
    """Both forms in float64: what differs then is the mathematics, not the order of a processor's sums."""
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    single = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(single)


@pytest.mark.parametrize(
    "args",
    [
        {"padding": "zeros"},
        {"labels": "merged8", "partition": "merged_sides", "limb_prior": False},
        {"partition": "labels", "fusion": "film"},
        {"region_tokens": True, "parsing_head": True, "halvings": 3},
        {"attention": "channel", "keys": "pose+image"},
        {"norm": "batch", "semantics": False},
    ],
)
@pytest.mark.parametrize("size", [(58, 35), pytest.param((64, 32), marks=pytest.mark.slow)])
def test_the_plain_form_gives_the_same_pictures_and_gradients(args, size, make_batch, plain, in_doubles):
    torch.manual_seed(0)
    blunt = {"temperature": 0.5}  # a sharp softmax multiplies the rounding a hundredfold
    net = RSAGAN(**{**TINY, **blunt, **args}).to(memory_format=torch.channels_last)
    critic = build_discriminator(pose=True, ndf=4, norm="instance", padding=args.get("padding", "reflect"))
    for parameter in net.parameters():  # the weights of the start are too small to tell anything
        torch.nn.init.normal_(parameter, std=0.2)
    batch = make_batch(2, *size)
    batch.source_keypoints[0, [3, 5, 6, 7]] = torch.nan

    def run():
        net.zero_grad()
        image, parts = net(batch, parts=True)
        logits = critic(batch.source_image, image, batch)
        loss = logits.square().mean() + image.sum() / 1e3
        if parts.warped_source is not None:
            loss = loss + parts.warped_source.square().mean()
        if parts.parsing_logits is not None:
            loss = loss + parts.parsing_logits.square().mean()
        loss.backward()
        return image.detach(), logits.detach(), {name: p.grad.clone() for name, p in net.named_parameters()}

    ours = run()
    plain()
    theirs = run()
    assert ours[0].dtype == torch.float64
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(ours[1], theirs[1], atol=1e-9, rtol=1e-9)
    largest = max(gradient.norm() for gradient in theirs[2].values())
    for name, gradient in theirs[2].items():
        close = (ours[2][name] - gradient).norm() <= 1e-7 * gradient.norm() + 1e-12 * largest
        assert close, (name, ours[2][name].norm(), gradient.norm())


def test_the_parts_have_the_sizes_of_the_plan():
    with torch.device("meta"):
        net = RSAGAN()
    for name, millions in PARTS.items():
        assert _millions(getattr(net, name)) == pytest.approx(millions, abs=0.005), name
    assert all(_millions(block) == pytest.approx(1.01, abs=0.005) for block in net.blocks)


def _millions(module: torch.nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"labels": "merged8", "partition": "merged_sides"},
        {"partition": "labels", "fusion": "film"},
        {"fusion": "concat", "limb_prior": False},
        {"keys": "pose+semantics"},
        {"keys": "pose+image", "halvings": 3},
        {"attention": "channel", "gate": "attn"},
        {"gate": "none", "blocks": 2},
        {"semantics": False},
        {"semantics": False, "attention": "channel"},
        {"correspondence": False},
        {"region_tokens": True, "parsing_head": True},
        {"norm": "batch", "padding": "zeros"},
    ],
)
def test_every_parameter_of_every_option_learns(args: dict[str, Any], make_batch: BatchMaker) -> None:
    torch.manual_seed(0)
    net, batch = build_generator("rsa_gan", **{**TINY, **args}), make_batch(2, 64, 32)
    batch.target_keypoints[:, 5] = torch.nan
    batch.source_keypoints[0, 5:8] = torch.nan  # a left arm without joints: the learned vector learns
    image, parts = net(batch, parts=True)
    assert image.shape == (2, 3, 64, 32)
    assert image.abs().max() <= 1
    loss = image.square().mean()
    if parts.warped_source is not None:
        loss = loss + parts.warped_source.square().mean()
    if parts.parsing_logits is not None:
        loss = loss + parts.parsing_logits.square().mean()
    loss.backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_the_targets_maps_and_image_are_never_read(make_batch):
    torch.manual_seed(0)
    net, batch = RSAGAN(**TINY).eval(), make_batch(2, 64, 32)
    blind = replace(
        batch,
        target_image=255 - batch.target_image,
        target_parsing=(batch.target_parsing + 1) % 20,
        target_mask=~batch.target_mask,
        source_mask=~batch.source_mask,
    )
    with torch.inference_mode():
        torch.testing.assert_close(net(batch), net(blind), rtol=0, atol=0)
        for field in ("source_image", "source_parsing", "source_keypoints", "target_keypoints"):
            value = getattr(batch, field).flip(1)
            assert not torch.equal(net(batch), net(replace(batch, **{field: value}))), field


@pytest.mark.parametrize(
    "change",
    [
        {"source_keypoints": torch.full((2, 18, 2), torch.nan)},
        {"target_keypoints": torch.full((2, 18, 2), torch.nan)},
        {"target_keypoints": torch.full((2, 18, 2), -500.0)},
        {"source_parsing": torch.full((2, 64, 32), 255, dtype=torch.uint8)},
        {"source_parsing": torch.zeros((2, 64, 32), dtype=torch.uint8)},
    ],
)
@pytest.mark.parametrize("args", [{}, {"region_tokens": True}])
def test_people_who_lack_something_still_give_finite_pictures(change, args, make_batch):
    torch.manual_seed(0)
    net = RSAGAN(**TINY, **args)
    image, parts = net(replace(make_batch(2, 64, 32), **change), parts=True)
    assert image.isfinite().all()
    (image.mean() + parts.warped_source.mean()).backward()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


def test_sizes_that_do_not_divide_are_padded_inside(make_batch):
    net = RSAGAN(**TINY).eval()
    with torch.inference_mode():
        assert net(make_batch(1, 61, 30)).shape == (1, 3, 61, 30)


@pytest.mark.parametrize(
    ("args", "word"),
    [
        ({"width": 40}, "width"),
        ({"blocks": 0}, "blocks"),
        ({"labels": "coco"}, "labels"),
        ({"partition": "seven"}, "partition"),
        ({"fusion": "sum"}, "fusion"),
        ({"keys": "image"}, "keys"),
        ({"attention": "linear"}, "attention"),
        ({"gate": "all"}, "gate"),
        ({"semantics": False, "region_tokens": True}, "region_tokens"),
        ({"semantics": False, "keys": "pose+semantics"}, "pose\\+semantics"),
        ({"semantic": False}, "semantics"),
    ],
)
def test_impossible_arguments_are_named(args, word):
    with pytest.raises(UserError, match=word):
        build_generator("rsa_gan", **{**TINY, **args})
