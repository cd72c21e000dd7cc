"""What the training of a predictor of target maps can be told: frozen, typed, saved into the run folder."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from reposer.config import Config
from reposer.training.gan_config import DataConfig
from reposer.training.map_config import MapTrainingConfig


class PredictorLossConfig(Config):
    """Weights of the losses."""

    cross_entropy: float = Field(default=1.0, ge=0)
    dice: float = Field(default=0.5, ge=0)
    mask: float = Field(default=0.5, ge=0)  # binary cross-entropy of the person mask


class PredictorConfig(MapTrainingConfig):
    """Everything that a predictor's weights depend on; an epoch is ``data.pairs_per_epoch`` pairs."""

    data: DataConfig
    predictor: str = "parsing_predictor"  # a key of models.generators.PREDICTORS
    predictor_args: dict[str, Any] = Field(default_factory=dict)  # keywords of its constructor
    loss: PredictorLossConfig = PredictorLossConfig()

    @property
    def accumulate(self) -> int:
        """Parts of a batch: one, which GanData asks for."""
        return 1

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole schedule."""
        return -int(-self.optimizer.epochs * self.data.pairs_per_epoch // self.batch_size)
