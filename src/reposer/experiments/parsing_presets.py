"""Presets of parser trainings: functions that return a full configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from reposer.training.parsing_config import ParsingConfig, ParsingDataConfig


def parser_small() -> ParsingConfig:
    """MobileNetV2 and a light decoder at the packed size, for CPUs: 3 epochs, 51 people held out to watch.

    With Keras' weights: ``--set parser.keras=true --set initial_path=FILE``.
    """
    return ParsingConfig(data=ParsingDataConfig(folder=Path("prepared/market1501"), tuning_people=51))


PARSING_PRESETS: dict[str, Callable[[], ParsingConfig]] = {"parser_small": parser_small}
