"""Means of a training's figures since the last line of its log, kept on the device: no transfer in a step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


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
