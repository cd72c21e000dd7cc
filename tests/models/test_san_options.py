"""Every option of SAN builds a network that learns; impossible arguments are named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from reposer.errors import UserError
from reposer.models.generators import GENERATORS, build_generator
from reposer.models.san import SAN, san_size
from reposer.structures import PairBatch

BatchMaker = Callable[..., PairBatch]
TINY: dict[str, Any] = {"ngf": 4, "blocks": 2, "deep_channels": (8, 12, 16)}


VARIANTS: list[dict[str, Any]] = [
    {},
    {"mask_channels": 1},
    {"share_conv": True},
    {"gate_source": "appearance"},
    {"gate_source": "appearance_conv"},
    {"enc_strides": (2, 2, 1), "skip_encoder": True},
    {"skip_encoder": True},
    {"skip_body": False},
    {"deep_convs": 2, "n_convs": 1},
    {"up": "resize", "padding": "zeros"},
    {"norm": "instance", "dropout": 0.5},
    {"use_mask": False, "lrelu_slope": 0.01},
    {"pose": "keypoints"},
    {"pose": "both"},
]


@pytest.mark.parametrize("args", VARIANTS)
def test_every_parameter_of_every_variant_learns(args: dict[str, Any], make_batch: BatchMaker) -> None:
    torch.manual_seed(0)
    net, batch = SAN(**TINY, **args), make_batch(2, 64, 64)
    output = net(batch)
    assert output.shape == (2, 3, 64, 64)
    assert output.abs().max() <= 1
    (output - net.training_target(batch)).abs().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if parameter.dim() > 1:  # the constant part of a bias ahead of a norm may truly have none
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("args", "word"),
    [
        ({"gate_source": "both"}, "gate_source"),
        ({"mask_channels": 3}, "mask_channels"),
        ({"up": "pixelshuffle"}, "up"),
        ({"norm": "group"}, "norm"),
        ({"padding": "circular"}, "padding"),
        ({"schema": "coco"}, "schema"),
        ({"mask_mode": "none"}, "mask_mode"),
        ({"pose": "skeleton"}, "pose"),
        ({"pose": "keypoints", "mask_mode": "multiply_both"}, "mask_mode"),
        ({"share_conv": True, "mask_channels": 1}, "share_conv"),
        ({"use_mask": False, "mask_mode": "multiply_both"}, "use_mask"),
        ({"enc_strides": (1, 2)}, "enc_strides"),
        ({"enc_strides": (1, 2, 3)}, "enc_strides"),
        ({"blocks": 0}, "blocks"),
        ({"n_convs": 0}, "n_convs"),
        ({"deep_channels": ()}, "deep_channels"),
        ({"dropout": 1.5}, "dropout"),
        ({"block": 3}, "blocks"),
    ],
)
def test_impossible_arguments_are_named(args: dict[str, Any], word: str) -> None:
    with torch.device("meta"), pytest.raises(UserError, match=word):
        build_generator("san", **{**TINY, **args})


def test_generators_by_name() -> None:
    with torch.device("meta"):
        assert isinstance(build_generator("san", **TINY), GENERATORS["san"])  # type: ignore[arg-type]
    with pytest.raises(UserError, match="generator sann: unknown: did you mean san"):
        build_generator("sann")
    with pytest.raises(UserError, match="paper, lean, small"):
        san_size("tiny")


def test_changing_what_san_size_returns_changes_nothing_else() -> None:
    san_size("small")["ngf"] = 1
    assert san_size("small")["ngf"] == 24


@pytest.mark.parametrize(
    ("pose", "reads"),
    [("maps", {"parsing", "mask"}), ("keypoints", {"keypoints"}), ("both", {"parsing", "mask", "keypoints"})],
)
def test_the_pose_is_read_from_what_the_option_names_and_from_nothing_else(pose, reads, make_batch):
    torch.manual_seed(0)
    net, batch = SAN(**TINY, pose=pose).eval(), make_batch(1, 64, 64)
    changed = {
        "parsing": {"target_parsing": (batch.target_parsing + 1) % 20},
        "mask": {"target_mask": ~batch.target_mask},
        "keypoints": {"target_keypoints": batch.target_keypoints.nan_to_num(0.0) + 9},
    }
    with torch.inference_mode():
        before = net(batch)
        for name, fields in changed.items():
            same = torch.equal(net(replace(batch, **fields)), before)
            assert same == (name not in reads), name
