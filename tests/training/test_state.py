"""Adam against torch's plain one, the guard."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from reposer.runtime import setup
from reposer.training.state import (
    NonFiniteStepError,
    build_adam,
    check_finite,
    gradient_norm,
    place,
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


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_maps_of_one_column_are_strided_over_in_float32(kind: type[nn.Conv2d]) -> None:
    """Where a processor has bfloat16 instructions, torch reads the weights' gradient past the map's end."""
    runtime = setup("cpu", "bfloat16", threads=1)
    torch.manual_seed(0)
    network = place(nn.Sequential(nn.Conv2d(6, 32, 1), kind(32, 64, 3, stride=2, padding=1)), runtime)
    images = torch.randn(4, 6, 4, 1)
    for _ in range(8):
        filled = [torch.full((2**n,), torch.nan) for n in range(4, 16) for _ in range(20)]
        del filled  # what is read of memory that nobody wrote is seen
        gradients = []
        for precise in (False, True):
            network.zero_grad()
            with nullcontext() if precise else runtime.autocast():
                made = network(images)
            assert made.dtype == torch.float32
            made.square().sum().backward()
            gradients.append(network[1].weight.grad.clone())
        torch.testing.assert_close(*gradients, rtol=0.05, atol=0.05 * float(gradients[1].abs().max()))
    with runtime.autocast():
        assert network(torch.randn(4, 6, 4, 2)).dtype == torch.bfloat16
