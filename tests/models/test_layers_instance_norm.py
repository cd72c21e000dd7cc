"""Instance norm in channels-last memory against PyTorch's own in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from reposer.models.layers import InstanceNorm, instance_norm


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("shape", [(3, 5, 7, 4), (2, 1, 3, 3), (1, 8, 1, 2)])
def test_values_gradients_and_layout(shape, layout):
    rng = torch.Generator().manual_seed(0)
    x = (torch.randn(shape, generator=rng) * 3 + 5).contiguous(memory_format=layout).requires_grad_()
    away = torch.randn(shape, generator=rng)
    y = F.leaky_relu_(instance_norm(x), 0.2)  # in place, as the layers do
    y.backward(away)
    exact = x.detach().double().requires_grad_()
    expected = F.leaky_relu(F.instance_norm(exact), 0.2)
    expected.backward(away.double())
    torch.testing.assert_close(y.double(), expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(x.grad.double(), exact.grad, atol=2e-5, rtol=1e-4)
    assert y.is_contiguous(memory_format=layout)


def test_it_has_no_weights_and_refuses_a_single_pixel():
    norm = InstanceNorm(4)
    assert not norm.state_dict()
    with pytest.raises(ValueError, match="spatial"):
        norm(torch.zeros(2, 4, 1, 1))
