"""Presets of parsers and predictors of maps: functions that return a full configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from reposer.training.gan_config import DataConfig
from reposer.training.map_config import MapOptimizerConfig, MapOutputConfig
from reposer.training.parsing_config import ParsingConfig, ParsingDataConfig
from reposer.training.predictor_config import PredictorConfig


def parser_small() -> ParsingConfig:
    """MobileNetV2 and a light decoder at the packed size, for CPUs: 3 epochs, 51 people held out to watch.

    With Keras' weights: ``--set parser.keras=true --set initial_path=FILE``.
    """
    return ParsingConfig(data=ParsingDataConfig(folder=Path("prepared/market1501"), tuning_people=51))


def predictor_small() -> PredictorConfig:
    """The predictor of target maps for CPUs: 9 epochs of 4,000 pairs, mirrored half of the time."""
    return PredictorConfig(
        data=DataConfig(folder=Path("prepared/market1501"), flip=True),
        optimizer=MapOptimizerConfig(epochs=9),
    )


def predictor_demo() -> PredictorConfig:
    """The same on rendered people, in a minute or two."""
    small = predictor_small()
    return small.changed(
        data=small.data.changed(folder=Path("prepared/rendered")),
        predictor_args={"width": 16},
        optimizer=MapOptimizerConfig(epochs=1, warmup_steps=25),
        output=MapOutputConfig(log_every=10, validate_every=100, checkpoint_every=100),
        batch_size=16,
    )


PARSING_PRESETS: dict[str, Callable[[], ParsingConfig | PredictorConfig]] = {
    "parser_small": parser_small,
    "predictor_small": predictor_small,
    "predictor_demo": predictor_demo,
}
