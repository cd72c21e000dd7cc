"""PG2: the published size, its two stages, the masked loss by hand, what it reads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from reposer.errors import UserError
from reposer.images import to_float
from reposer.models.generators import build_generator
from reposer.models.pg2 import PG2, pg2_size
from reposer.models.pose_maps import limb_mask

TINY = {"size": (32, 16), "width": 4, "levels": 3, "fine_levels": 2, "code": 8}


def seeded(**args):
    torch.manual_seed(0)
    return PG2(**{**TINY, **args})


@pytest.mark.parametrize(
    ("size", "coarse", "fine", "work"),
    [
        ("paper", 70_795_075, 6_058_883, 47.6),
        ("paper_256", 122_103_235, 12_696_067, 403),
        ("small", 4_728_835, 381_155, 3.03),
    ],
)
def test_it_has_the_published_size(size, coarse, fine, work, make_batch, operations):
    with torch.device("meta"):
        net = PG2(**pg2_size(size))
    counts = [sum(p.numel() for p in part.parameters()) for part in (net.coarse, net.fine)]
    assert counts == [coarse, fine]  # all there is
    assert sum(p.numel() for p in net.parameters()) == coarse + fine
    assert operations(net, make_batch(1, *net.size).to("meta")) == pytest.approx(work, rel=0.005)


def test_in_the_first_stage_the_coarse_image_stands_alone(make_batch):
    net, batch = seeded(), make_batch(2, 32, 16)
    seen = []
    net.fine.register_forward_hook(lambda _module, inputs, out: seen.append((inputs[0], out)))
    both = net(batch)
    (given, difference), *_ = seen
    net.stage = "coarse"
    coarse = net(batch)
    assert len(seen) == 1
    torch.testing.assert_close(both, coarse + difference)
    assert torch.equal(given, torch.cat([coarse, to_float(batch.source_image)], 1))


def test_the_masked_loss_counts_the_body_twice(make_batch):
    net, batch = seeded(), make_batch(2, 32, 16)
    image, parts = net(batch, parts=True)
    image = image.detach()
    mask = limb_mask(batch.target_keypoints, 32, 16, 4.0)
    assert 0 < mask.mean() < 1
    wanted = sum(
        float((image[b, c, y, x] - to_float(batch.target_image)[b, c, y, x]).abs())
        * (1 + float(mask[b, 0, y, x]))
        for b in range(2)
        for c in range(3)
        for y in range(32)
        for x in range(16)
    ) / (2 * 3 * 32 * 16)
    assert float(parts.terms["masked_l1"]) == pytest.approx(wanted, rel=1e-4)


def test_it_reads_the_source_image_and_the_target_pose(make_batch):
    net, batch, other = seeded().eval(), make_batch(2, 32, 16), make_batch(2, 32, 16, seed=1)
    image = net(batch)
    assert image.abs().max() <= 1
    read = {
        field
        for field in batch.tensors()
        if not torch.equal(net(replace(batch, **{field: getattr(other, field)})), image)
    }
    assert read == set(net.needs)


@pytest.mark.parametrize("args", [{}, {"fine_skip": True}, {"levels": 1, "fine_levels": 3}])
def test_every_parameter_learns(args, make_batch):
    net = seeded(**args)
    net(make_batch(4, 32, 16), parts=True)[1].terms["masked_l1"].backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("args", "word"),
    [
        ({"size": (100, 64)}, "size"),
        ({"levels": 0, "fine_levels": 0}, "levels"),
        ({"fine_levels": 1}, "fine_levels"),
        ({"radius": 0.0}, "radius"),
        ({"width": 0}, "width"),
    ],
)
def test_impossible_arguments_are_named(args, word):
    with pytest.raises(UserError, match=word):
        build_generator("pg2", **args)
