"""What every training of a network of maps can be told: optimizer, schedule, output, precision."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from reposer.config import Config
from reposer.errors import MOST_AT_ONCE, MOST_SIDE_BY_SIDE


class MapOptimizerConfig(Config):
    """AdamW: warm-up, then a half cosine to 0."""

    lr: float = Field(default=2e-3, gt=0)
    weight_decay: float = Field(default=1e-2, ge=0)
    epochs: float = Field(default=3, gt=0)
    warmup_steps: int = Field(default=100, ge=0)


class MapOutputConfig(Config):
    """What is written how often; every figure counts optimizer steps."""

    log_every: int = Field(default=25, ge=1)
    validate_every: int = Field(default=300, ge=1)
    validation_images: int = Field(default=500, ge=1)  # or pairs; at most, evenly chosen
    checkpoint_every: int = Field(default=300, ge=1)
    keep_last: int = Field(default=2, ge=2)  # checkpoints


class MapTrainingConfig(Config):
    """The part that the trainings of parser and predictor share."""

    optimizer: MapOptimizerConfig = MapOptimizerConfig()
    output: MapOutputConfig = MapOutputConfig()
    batch_size: int = Field(default=32, ge=2, le=MOST_AT_ONCE)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: int | None = Field(
        default=None, ge=1, le=MOST_SIDE_BY_SIDE
    )  # of the CPU; default: PyTorch's own choice
    seed: int = 0

    def rate(self, step: int, total: int) -> float:
        """Learning rate of the update after ``step`` completed ones: a pure function of the step."""
        warmup = min(self.optimizer.warmup_steps, total // 2)
        if step < warmup:
            return self.optimizer.lr * (step + 1) / (warmup + 1)
        return self.optimizer.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))
