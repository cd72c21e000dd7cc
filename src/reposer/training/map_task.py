"""What a network of maps is trained for: the part of a training that parser and predictor do not share."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

from reposer.data.packed import PackedPeople
from reposer.runtime import Runtime
from reposer.training.map_config import MapTrainingConfig


class MapTask(Protocol):
    """Data, network and loss of a training."""

    @property
    def config(self) -> MapTrainingConfig:
        """All settings."""

    @property
    def people(self) -> PackedPeople:
        """The prepared people."""

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole schedule."""

    def build(self) -> tuple[nn.Module, dict[str, Any]]:
        """A new network with its first weights, and facts about them for environment.json."""

    def rate_factor(self, parameter: str) -> float:
        """What the learning rate is multiplied by for the parameter of that name."""

    def loss(
        self, network: nn.Module, step: int, runtime: Runtime
    ) -> tuple[Tensor, dict[str, Tensor], list[str]]:
        """Loss of a step, its detached parts, and the names of what it was computed on."""

    def validate(self, network: nn.Module, runtime: Runtime) -> dict[str, float]:
        """Figures on people who are only watched; empty where there are none. ``network`` is in eval mode."""

    def inputs(self) -> dict[str, str]:
        """sha256 of what a run must find unchanged, by name."""

    def facts(self) -> dict[str, Any]:
        """What a user of the network must know without the data at hand; goes into checkpoints."""
