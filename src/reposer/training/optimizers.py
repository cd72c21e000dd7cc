"""Adam, its schedule as a function of the step, and the guard that stops before a non-finite update."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from reposer.errors import NonFiniteError


class NonFiniteStepError(NonFiniteError):
    """A loss or a gradient is NaN or infinite; raised before any weight is touched.

    Attributes:
        quantity: the loss or gradient by name.
        step: optimizer steps completed before.
        pairs: names of the images in this process's part of the batch, "source -> target".
    """

    def __init__(self, quantity: str, step: int, pairs: Sequence[str]) -> None:
        super().__init__(
            f"step {step}: {quantity} is not finite; batch: {', '.join(pairs)}",
            "nothing was updated or saved; look at these images or lower optimizer.lr",
        )
        self.quantity, self.step, self.pairs = quantity, step, tuple(pairs)


def build_adam(parameters: Iterable[nn.Parameter], lr: float, betas: tuple[float, float]) -> torch.optim.Adam:
    """Adam with the fused kernel, which reads and writes each weight once (also on a CPU)."""
    return torch.optim.Adam(parameters, lr=lr, betas=betas, fused=True)


def learning_rate(step: int, lr: float, steps_const: int, steps_decay: int) -> float:
    """Learning rate of the update that follows ``step`` completed ones: constant, then linear to 0.

    A pure function of the step, so that a resumed run cannot be off. The rate would reach 0 at step
    ``steps_const + steps_decay``, where training ends; the last update still has lr / steps_decay.
    """
    if step < steps_const:
        return lr
    return lr * max(0.0, 1.0 - (step - steps_const) / max(steps_decay, 1))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group of ``optimizer`` the learning rate, times the group's ``factor`` where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("factor", 1.0)


def gradient_norm(module: nn.Module) -> Tensor:
    """Euclidean norm of all gradients of ``module``, a scalar: not finite if any gradient is not."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


def check_finite(quantities: Mapping[str, Tensor], step: int, pairs: Sequence[str]) -> None:
    """Refuse to go on where a quantity is NaN or infinite; one transfer from the device for all of them.

    Raises:
        NonFiniteStepError: naming the first such quantity.
    """
    values = torch.stack([value.detach().float() for value in quantities.values()]).tolist()
    for name, value in zip(quantities, values, strict=True):
        if not math.isfinite(value):
            raise NonFiniteStepError(name, step, pairs)
