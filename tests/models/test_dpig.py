"""DPIG: the published size, boxes and crops against slow forms, codes of parts and background."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from reposer.errors import UserError
from reposer.images import to_float
from reposer.models.dpig import DPIG, cut, dpig_size, part_boxes
from reposer.models.generators import build_generator

TINY = {"size": (32, 16), "width": 4, "levels": 3, "crop": 8, "part_levels": 2}
TINY |= {"part_code": 3, "background_code": 5, "code": 8, "mask_radius": 2.0}


def seeded(**args):
    torch.manual_seed(0)
    return DPIG(**{**TINY, **args})


@pytest.mark.parametrize(
    ("size", "encoder", "decoder", "work"),
    [
        ("paper", 47_352_736, 71_197_123, 68.1),
        ("paper_256", 58_140_832, 82_088_387, 365),
        ("small", 2_094_640, 2_811_403, 2.94),
    ],
)
def test_it_has_the_published_size(size, encoder, decoder, work, make_batch, operations):
    with torch.device("meta"):
        net = DPIG(**dpig_size(size))
    count = sum(p.numel() for p in net.draw.parameters())
    assert count == decoder
    assert sum(p.numel() for p in net.parameters()) - count == encoder
    assert operations(net, make_batch(1, *net.size).to("meta")) == pytest.approx(work, rel=0.005)


def test_boxes_hold_their_joints_and_end_with_the_picture():
    points = torch.full((2, 18, 2), torch.nan)
    points[0, 0], points[0, 14], points[0, 4] = (
        torch.tensor([20.0, 3.0]),
        torch.tensor([22.5, 9.0]),
        torch.tensor([60.0, 70.0]),
    )
    points[1, 13] = torch.tensor([-40.0, 500.0])  # far outside
    boxes, known = part_boxes(points, 128, 64)
    assert known.tolist() == [
        [True, True, False, False, True, False, False],
        [False, False, True, False, False, True, False],
    ]
    assert boxes[0, 0].tolist() == [14.0, 0.0, 28.5, 15.0]  # 6 pixels beyond two joints
    assert boxes[0, 4].tolist() == [50.0, 60.0, 63.0, 80.0]  # 10 beyond one
    assert boxes[0, 2].tolist() == [0.0, 0.0, 1.0, 1.0]
    assert boxes[1, 5].tolist() == [0.0, 127.0, 0.0, 127.0] or boxes.isfinite().all()


def test_a_crop_is_that_of_tensorflow_written_out():
    torch.manual_seed(0)
    maps = torch.rand(1, 2, 12, 9)
    box = torch.tensor([[[1.5, 2.0, 7.0, 10.0]]])
    found = cut(maps, box, 5)[0]
    for row in range(5):
        for column in range(5):
            y = 2 * 11 / 12 + row * (10 - 2) * 11 / (12 * 4)
            x = 1.5 * 8 / 9 + column * (7 - 1.5) * 8 / (9 * 4)
            y0, x0 = int(y), int(x)
            for channel in range(2):
                square = maps[0, channel, y0 : y0 + 2, x0 : x0 + 2]
                across = square[:, 0] * (x0 + 1 - x) + square[:, 1] * (x - x0)
                wanted = across[0] * (y0 + 1 - y) + across[1] * (y - y0)
                assert float(found[channel, row, column]) == pytest.approx(float(wanted), abs=1e-5)


def test_a_part_without_a_joint_has_a_code_of_zeros_and_others_keep_theirs(make_batch):
    net, batch = seeded(background=False).eval(), make_batch(2, 32, 16)
    image, points = to_float(batch.source_image), batch.source_keypoints / 2
    code = net.encode(image, points).unflatten(1, (7, 3))
    armless = points.clone()
    armless[:, 5:8] = torch.nan
    lacking = net.encode(image, armless).unflatten(1, (7, 3))
    assert not lacking[:, 3].any()
    assert torch.equal(lacking[:, (4, 6)], code[:, (4, 6)])  # right arm, right leg
    assert code[:, 3].any()


def test_the_background_has_a_code_of_its_own(make_batch):
    net, batch = seeded().eval(), make_batch(2, 32, 16)
    image = to_float(batch.source_image)
    nobody = torch.full((2, 18, 2), torch.nan)
    code = net.encode(image, nobody)
    assert code.shape == (2, 7 * 3 + 5)
    assert not code[:, :21].any()  # no part
    assert code[:, 21:].any()
    assert not torch.equal(net.encode(-image, nobody), code)


def test_it_is_trained_on_the_target_and_used_on_the_source(make_batch):
    net, batch = seeded(), make_batch(2, 32, 16)
    first = net(batch)
    unseen = {"source_image": 255 - batch.source_image, "source_keypoints": batch.source_keypoints.flip(1)}
    assert torch.equal(net(replace(batch, **unseen)), first)
    used = net.eval()(batch)
    assert used.abs().max() <= 1
    assert torch.equal(net(replace(batch, target_image=255 - batch.target_image)), used)
    other = make_batch(2, 32, 16, seed=1)
    read = {
        field
        for field in batch.tensors()
        if not torch.equal(net(replace(batch, **{field: getattr(other, field)})), used)
    }
    assert read == set(net.needs)


@pytest.mark.parametrize("args", [{}, {"background": False}])
def test_every_parameter_learns(args, make_batch):
    net = seeded(**args)
    net(make_batch(4, 32, 16)).square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("args", "word"),
    [
        ({"size": (100, 64)}, "size"),
        ({"crop": 50}, "size"),
        ({"part_code": 0}, "part_code"),
        ({"levels": 0}, "levels"),
    ],
)
def test_impossible_arguments_are_named(args, word):
    with pytest.raises(UserError, match=word):
        build_generator("dpig", **args)
