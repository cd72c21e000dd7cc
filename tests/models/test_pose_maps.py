"""Pose maps against the formula evaluated pixel by pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from reposer.images import resize
from reposer.models.layers import pad_to_multiple
from reposer.models.pose_maps import (
    PoseConv2d,
    convolve,
    disc_maps,
    gaussian_maps,
    limb_mask,
    moved,
    pose_maps,
)
from reposer.structures import LIMBS


def test_maps_follow_the_formula_and_missing_joints_are_zero() -> None:
    points = torch.full((2, 18, 2), math.nan)
    points[0, 0] = torch.tensor([3.0, 5.0])
    points[1, 17] = torch.tensor([7.25, 0.5])
    points[1, 4, 0] = 2.0  # half a joint is none
    maps = gaussian_maps(points, height=12, width=8, sigma=2.5)
    assert maps.shape == (2, 18, 12, 8)
    assert maps.dtype == torch.float32
    expected = torch.zeros_like(maps)
    for sample, joint, x0, y0 in ((0, 0, 3.0, 5.0), (1, 17, 7.25, 0.5)):
        for y in range(12):
            for x in range(8):
                distance = (x - x0) ** 2 + (y - y0) ** 2
                expected[sample, joint, y, x] = math.exp(-distance / (2 * 2.5**2))
    torch.testing.assert_close(maps, expected)
    assert maps[0, 0].max() == maps[0, 0, 5, 3] == 1


def test_default_width_is_the_field_s_six_pixels() -> None:
    maps = gaussian_maps(torch.tensor([[[10.0, 20.0]]]), 64, 32)
    assert math.isclose(maps[0, 0, 20, 16].item(), math.exp(-0.5), rel_tol=1e-6)


def _factors():
    points = torch.rand(3, 18, 2, generator=torch.Generator().manual_seed(0)) * 30
    points[0, 3], points[1, 7] = math.nan, 500.0
    return pose_maps(points, 24, 14, 2.0)


@pytest.mark.parametrize(
    ("kernel", "stride", "mode"), [(7, 1, "reflect"), (7, 1, "zeros"), (3, 2, "reflect"), (3, 2, "zeros")]
)
def test_a_convolution_of_the_factors_is_that_of_the_maps(kernel, stride, mode):
    torch.manual_seed(0)
    layer = PoseConv2d(18, 5, kernel, stride, kernel // 2, bias=True, padding_mode=mode)
    maps = _factors()
    dense = torch.nn.Conv2d.forward(layer, maps.dense())
    found = layer(maps)
    torch.testing.assert_close(found, dense, atol=1e-5, rtol=1e-4)
    away = torch.randn_like(dense)
    ours, theirs = (torch.autograd.grad((y * away).sum(), layer.weight)[0] for y in (found, dense))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_a_map_is_lit_where_a_pixel_is_and_padding_repeats_the_border():
    maps = _factors()
    assert torch.equal(maps.lit(), maps.dense().amax((2, 3)) > 0)
    assert maps.lit().sum() == 3 * 18 - 2
    assert torch.equal(maps.padded(8).dense(), pad_to_multiple(maps.dense(), 8))
    assert torch.equal(convolve(maps, torch.zeros(4, 18, 3, 3)), torch.zeros(3, 4, 22, 12))


def _person(joints: dict[int, tuple[float, float]]) -> torch.Tensor:
    points = torch.full((1, 18, 2), math.nan)
    for joint, place in joints.items():
        points[0, joint] = torch.tensor(place)
    return points


def test_discs_are_the_pixels_within_the_radius_and_missing_joints_have_none():
    maps = disc_maps(_person({0: (9.9, 8.2), 3: (0.0, 0.0), 5: (math.inf, 4.0)}), 20, 18, truncate=True)
    assert maps[0, 0].sum() == 49
    assert maps[0, 0, 8, 13] == 1
    assert maps[0, 0, 8, 14] == 0
    assert maps[0, 3].sum() == 17  # a quarter of it
    assert maps[0, 5].sum() == maps[0, 1].sum() == 0
    exact = disc_maps(_person({0: (9.9, 8.2)}), 20, 18, radius=2.5)
    wanted = [[(x - 9.9) ** 2 + (y - 8.2) ** 2 <= 6.25 for x in range(18)] for y in range(20)]
    assert torch.equal(exact[0, 0].bool(), torch.tensor(wanted))


def test_the_pose_mask_is_that_of_discs_drawn_one_by_one():
    joints = {
        2: (3.7, 4.0),
        3: (14.2, 19.9),
        4: (14.0, 20.0),
        8: (24.0, 6.0),
        9: (24.0, 7.5),
        16: (1.0, 27.0),
    }
    radius = 3.0
    drawn = np.zeros((30, 28), bool)
    rows, columns = np.mgrid[:30, :28]
    for first, second in LIMBS:
        if first in joints and second in joints:
            a, b = (np.trunc(joints[joint]) for joint in (first, second))
            steps = max(int(np.hypot(*(b - a)) / radius), 1)
            for step in range(steps + 1):
                x, y = a + (b - a) * step / steps
                drawn |= (columns - x) ** 2 + (rows - y) ** 2 <= radius**2
    grown, closed = np.zeros_like(drawn), np.ones_like(drawn)
    for y, x in np.ndindex(drawn.shape):
        grown[y, x] = drawn[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3].any()
    for y, x in np.ndindex(drawn.shape):
        closed[y, x] = grown[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3].all()
    found = limb_mask(_person(joints), 30, 28, radius)[0, 0].numpy()
    np.testing.assert_array_equal(found, closed)
    assert not limb_mask(_person({2: (3.0, 4.0)}), 30, 28).any()  # a joint alone is no limb


def test_keypoints_move_with_the_picture_that_is_resized():
    image = torch.zeros(1, 1, 8, 6)
    image[0, 0, 2, 4] = 1.0
    large = resize(image, (16, 24))
    assert torch.equal(moved(torch.tensor([[[4.0, 2.0]]]), (8, 6), (16, 24)), torch.tensor([[[17.5, 4.5]]]))
    places = (large[0, 0] == large.max()).nonzero().float().mean(0)
    assert places.tolist() == [4.5, 17.5]
