"""The nearest-neighbor loss of Def-GAN against literal loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from reposer.losses.perceptual import nearest_neighbor_loss


def slow(maps: np.ndarray, wanted: np.ndarray, window: int) -> float:
    batch, _, height, width = maps.shape
    reach, values = window // 2, []
    for row in range(batch):
        for y in range(height):
            for x in range(width):
                around = [
                    np.abs(maps[row, :, y, x] - wanted[row, :, v, u]).mean()
                    for v in range(max(y - reach, 0), min(y + reach + 1, height))
                    for u in range(max(x - reach, 0), min(x + reach + 1, width))
                ]
                values.append(min(around))
    return float(np.mean(values))


@pytest.mark.parametrize("window", [1, 3, 5])
def test_it_is_the_smallest_difference_of_each_window(window: int) -> None:
    torch.manual_seed(0)
    maps, wanted = torch.randn(2, 4, 5, 3), torch.randn(2, 4, 5, 3)
    found = nearest_neighbor_loss([maps, maps], [wanted, maps], window)
    assert float(found) == pytest.approx(slow(maps.numpy(), wanted.numpy(), window), abs=1e-6)


def test_only_the_generated_maps_get_a_gradient_and_it_is_that_of_what_was_chosen() -> None:
    torch.manual_seed(1)
    maps, wanted = torch.randn(1, 3, 4, 4, requires_grad=True), torch.randn(1, 3, 4, 4, requires_grad=True)
    nearest_neighbor_loss([maps], [wanted]).backward()
    assert wanted.grad is None
    step = torch.zeros_like(maps)
    step[0, 1, 2, 2] = 1e-3

    def at(x: Tensor) -> float:
        return slow(x.detach().double().numpy(), wanted.detach().double().numpy(), 3)

    assert maps.grad is not None
    assert float(maps.grad[0, 1, 2, 2]) == pytest.approx((at(maps + step) - at(maps - step)) / 2e-3, abs=1e-4)


def test_a_picture_moved_within_the_window_costs_little() -> None:
    torch.manual_seed(2)
    wanted = torch.randn(1, 3, 12, 12)
    moved = wanted.roll(1, 3)
    assert nearest_neighbor_loss([moved], [wanted], 3) < nearest_neighbor_loss([moved], [wanted], 1) / 5
