"""Pose maps against the formula evaluated pixel by pixel."""

from __future__ import annotations

import math

import pytest
import torch

from reposer.models.layers import pad_to_multiple
from reposer.models.pose_maps import PoseConv2d, convolve, gaussian_maps, pose_maps


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
