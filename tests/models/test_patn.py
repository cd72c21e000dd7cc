"""PATN: the published size, the update of a block by hand, what it reads, people who lack keypoints."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from network_checks import reads_image_and_poses_only

from reposer.errors import UserError
from reposer.models.generators import build_generator
from reposer.models.patn import PATN, PoseAttentionBlock

TINY = {"ngf": 4, "blocks": 2}


def test_it_has_the_published_size(make_batch, operations):
    batch = make_batch(1, 128, 64).to("meta")
    with torch.device("meta"):
        net = PATN()
        assert sum(p.numel() for p in net.parameters()) == 41_365_763  # counted in the authors' code
        assert operations(net, batch) == pytest.approx(22.52, rel=5e-3)
        fewer = sum(p.numel() for p in PATN(blocks=5).parameters())
        assert fewer == pytest.approx(22.48e6, rel=5e-3)


def test_a_block_changes_the_image_code_where_the_pose_code_says():
    torch.manual_seed(0)
    block = PoseAttentionBlock(3, True, 0.0, {"norm": "batch", "lrelu_slope": 0.0, "padding": "zeros"}).eval()
    last = block.pose_branch[-1]
    torch.nn.init.zeros_(last.weight)
    last.weight.data[:, :, 1, 1] = torch.eye(3)
    first = block.pose_branch[0][0]
    torch.nn.init.zeros_(first.weight)
    first.weight.data[:, :, 1, 1] = torch.eye(3)
    image, pose = torch.randn(1, 3, 6, 4), torch.full((1, 3, 6, 4), 0.0)
    pose[..., 2] = 400.0  # open in one column; elsewhere relu(0) -> sigmoid 0.5
    with torch.inference_mode():
        change = block.image_branch(image)
        got, after = block(image, pose)
    torch.testing.assert_close(got[..., 2], (image + change)[..., 2])
    torch.testing.assert_close(got[..., 0], (image + change / 2)[..., 0])
    assert after.shape == (1, 6, 6, 4)
    torch.testing.assert_close(after[:, 3:], got)


@pytest.mark.parametrize(
    "args", [{}, {"norm": "instance", "padding": "zeros"}, {"enc_strides": (2, 2, 1)}, {"blocks": 1}]
)
def test_every_parameter_learns_and_any_size_goes(args, make_batch):
    torch.manual_seed(0)
    net = build_generator("patn", **{**TINY, **args})
    image = net(make_batch(2, 61, 30))
    assert image.shape == (2, 3, 61, 30)
    assert image.abs().max() <= 1
    image.square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_it_reads_image_and_poses_only(make_batch):
    torch.manual_seed(0)
    net, batch = PATN(**TINY).eval(), make_batch(2, 64, 32)
    reads_image_and_poses_only(net, batch)


@pytest.mark.parametrize("value", [torch.nan, -500.0])
def test_nobody_without_key_points_gives_nan(value, make_batch):
    nobody = torch.full((2, 18, 2), value)
    net = PATN(**TINY)
    image = net(replace(make_batch(2, 64, 32), source_keypoints=nobody, target_keypoints=nobody))
    assert image.isfinite().all()


@pytest.mark.parametrize(
    ("args", "word"),
    [({"blocks": 0}, "blocks"), ({"enc_strides": (1, 3, 2)}, "enc_strides"), ({"nfg": 3}, "ngf")],
)
def test_impossible_arguments_are_named(args, word):
    with pytest.raises(UserError, match=word):
        build_generator("patn", **args)
