"""Re-ID recipes by name: functions that return a full configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from reposer.training.reid_config import (
    AugmentConfig,
    EmbeddingConfig,
    HeadConfig,
    ReidConfig,
    ReidDataConfig,
    ReidLossConfig,
    ReidOptimizerConfig,
    ReidOutputConfig,
    ReidScheduleConfig,
)


def reid_demo() -> ReidConfig:
    """The small network from scratch on rendered people: BNNeck, classification + triplets, P x K batches."""
    return ReidConfig(
        data=ReidDataConfig(
            folder=Path("prepared/rendered"), sampler="people", images_per_person=4, images_per_epoch=8000
        ),
        augment=AugmentConfig(pad=6, erase=0.3),
        embedding=EmbeddingConfig(backbone="small", stripes=4),
        head=HeadConfig(bias=False),
        optimizer=ReidOptimizerConfig(kind="adam", lr=2e-3, bias_decay=False),
        schedule=ReidScheduleConfig(epochs=5, warmup_epochs=0.5, warmup_factor=0.1, decay="cosine"),
        loss=ReidLossConfig(identity=1.0, smoothing=0.1, triplet=1.0),
        output=ReidOutputConfig(log_every=10, validate_every=200, checkpoint_every=200),
        batch_size=64,
    )


REID_PRESETS: dict[str, Callable[[], ReidConfig]] = {"reid_demo": reid_demo}
