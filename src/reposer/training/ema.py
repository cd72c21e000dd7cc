"""The averaged generator: an exponential moving average of weights and BatchNorm statistics, with a warm-up.

The average is torch's own (AveragedModel with get_ema_multi_avg_fn). Buffers are averaged like weights: the
running statistics of a BatchNorm must belong to the averaged weights, not to those of the last step.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


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
