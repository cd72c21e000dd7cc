"""The mean squared difference against PyTorch's own in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from reposer.losses.perceptual import mean_squared_error


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_value_and_gradient(layout):
    rng = torch.Generator().manual_seed(0)
    maps, wanted = (
        torch.randn(2, 16, 40, 30, generator=rng).contiguous(memory_format=layout) for _ in range(2)
    )
    maps.requires_grad_()
    loss = mean_squared_error(maps, wanted)
    (3 * loss).backward()
    exact = maps.detach().double().requires_grad_()
    expected = F.mse_loss(exact, wanted.double())
    (3 * expected).backward()
    torch.testing.assert_close(loss.double(), expected, atol=0, rtol=1e-6)
    torch.testing.assert_close(maps.grad.double(), exact.grad)


def test_equal_maps_have_loss_and_gradient_zero():
    maps = torch.ones(1, 2, 3, 4, requires_grad=True)
    mean_squared_error(maps, torch.ones(1, 2, 3, 4)).backward()
    assert not maps.grad.any()
