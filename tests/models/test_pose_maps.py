"""Pose maps against the formula evaluated pixel by pixel."""

from __future__ import annotations

import math

import torch

from reposer.models.pose_maps import gaussian_maps


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
