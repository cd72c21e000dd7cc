"""Adam against torch's plain one, the guard."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reposer.training.state import (
    NonFiniteStepError,
    build_adam,
    check_finite,
    gradient_norm,
    set_learning_rate,
)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_fused_adam_equals_the_plain_one(layout):
    torch.manual_seed(0)
    ours = nn.Conv2d(3, 4, 3).to(memory_format=layout)
    plain = nn.Conv2d(3, 4, 3)
    plain.load_state_dict(ours.state_dict())
    pairs = [
        (ours, build_adam(ours.parameters(), 1e-2, (0.5, 0.999))),
        (plain, torch.optim.Adam(plain.parameters(), 1e-2, (0.5, 0.999), foreach=False)),
    ]
    for step in range(5):
        x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(step))
        for network, optimizer in pairs:
            set_learning_rate(optimizer, 1e-2 / (step + 1))
            network(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(ours.weight, plain.weight.detach(), rtol=1e-5, atol=1e-6)


def test_the_gradient_norm_is_that_of_all_weights_together():
    network = nn.Linear(2, 1)
    network.weight.grad, network.bias.grad = torch.tensor([[3.0, 0.0]]), torch.tensor([4.0])
    assert gradient_norm(network).item() == pytest.approx(5.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_the_guard_names_what_is_not_finite(bad):
    with pytest.raises(NonFiniteStepError) as caught:
        check_finite({"a": torch.tensor(1.0), "generator/l1": torch.tensor(bad)}, 7, ("x.jpg -> y.jpg",))
    assert caught.value.quantity == "generator/l1"
    assert all(word in str(caught.value) for word in ("step 7", "generator/l1", "x.jpg -> y.jpg"))
    check_finite({"a": torch.tensor(1e30)}, 7, ())
