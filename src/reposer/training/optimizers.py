"""Adam, its schedule as a function of the step, and the guard that stops before a non-finite update."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

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


# ---- The averaged generator: an exponential moving average of weights and BatchNorm statistics, with a
# warm-up.
#
# The average is torch's own (AveragedModel with get_ema_multi_avg_fn). Buffers are averaged like weights: the
# running statistics of a BatchNorm must belong to the averaged weights, not to those of the last step.


def warmed_up_decay(decay: float, updates: int) -> float:
    """The decay used after ``updates`` earlier updates: min(decay, (1 + n) / (10 + n)).

    Without it a run of a few hundred steps would still carry its random start: 0.999^500 = 0.6.
    """
    return min(decay, (1 + updates) / (10 + updates))


def build_ema(module: nn.Module, decay: float) -> AveragedModel:
    """A copy of ``module`` in eval mode that ``update_parameters(module)`` moves towards it.

    Args:
        module: the bare network (not wrapped for several processes).
        decay: weight of the old average in the long run, in [0, 1).
    """

    def average(averaged: Any, current: Any, updates: Tensor | int) -> None:
        blend: Any = get_ema_multi_avg_fn(warmed_up_decay(decay, int(updates)))  # type: ignore[no-untyped-call]
        blend(averaged, current, updates)

    ema = AveragedModel(module, multi_avg_fn=average, use_buffers=True)
    ema.requires_grad_(False)
    return ema.eval()


# ---- Means of a training's figures since the last line of its log, kept on the device: no transfer in a
# step.


class RunningMeans:
    """Sums of named scalars; part of the training's state, so that a resumed run logs the same lines."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}  # name -> (2,) float64 on the CPU or float32: sum, count

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Count one more value of each name (detached scalars)."""
        for name, value in values.items():
            entry = torch.stack([value.float(), torch.ones((), device=value.device)])
            self._sums[name] = self._sums[name] + entry if name in self._sums else entry

    def means(self) -> dict[str, Tensor]:
        """The mean of each name, scalars."""
        return {name: entry[0] / entry[1] for name, entry in self._sums.items()}

    def clear(self) -> None:
        """Start again."""
        self._sums = {}

    def state_dict(self) -> dict[str, Tensor]:
        """Sum and count of each name, (2,)."""
        return dict(self._sums)

    def load_state_dict(self, state: Mapping[str, Tensor], device: torch.device | str = "cpu") -> None:
        """Put back what ``state_dict`` returned."""
        self._sums = {name: entry.to(device) for name, entry in state.items()}
