"""The reconstruction loss by hand."""

from __future__ import annotations

import pytest
import torch

from reposer.losses.image_gan import l1_loss


def test_l1_is_the_mean_absolute_difference() -> None:
    generated = torch.tensor([[[[0.5, -1.0]]], [[[1.0, 0.0]]]])
    target = torch.tensor([[[[-0.5, -1.0]]], [[[-1.0, 0.25]]]])
    assert l1_loss(generated, target).item() == pytest.approx((1.0 + 0.0 + 2.0 + 0.25) / 4)


def test_l1_adds_up_in_float32() -> None:
    ones = torch.full((1, 3, 64, 64), 1.0, dtype=torch.bfloat16)
    assert l1_loss(ones, torch.full((1, 3, 64, 64), 0.999)).item() == pytest.approx(0.001, rel=1e-3)
