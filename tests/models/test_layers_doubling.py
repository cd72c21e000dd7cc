"""Up-sampling and convolution in one step against the two steps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reposer.models.layers import DoublingConv2d, UpNormAct


@pytest.mark.parametrize("padding", ["reflect", "zeros"])
@pytest.mark.parametrize("size", [(5, 4), (1, 3)])
def test_it_is_nearest_upsampling_and_a_convolution(padding, size):
    torch.manual_seed(0)
    layer = DoublingConv2d(6, 4, padding)
    x = torch.randn(2, 6, *size, requires_grad=True)
    expected = nn.Conv2d.forward(layer, F.interpolate(x, scale_factor=2, mode="nearest"))
    found = layer(x)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    away = torch.randn_like(expected)
    ours, theirs = (torch.autograd.grad((y * away).sum(), (x, layer.weight)) for y in (found, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_weights_saved_before_have_their_place():
    assert list(UpNormAct(6, 4, "resize", "instance").state_dict()) == ["1.weight"]
