"""Trainings by name: functions that return a full configuration and derive from each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from reposer.models.san import san_size
from reposer.training.gan_config import (
    AdversarialConfig,
    DataConfig,
    GanConfig,
    LossWeights,
    OutputConfig,
    PerceptualConfig,
    ScheduleConfig,
)


def san_market() -> GanConfig:
    """SAN on Market-1501, the paper's numbers: 128x64, batch 32, 500 epochs of 4,000 pairs (62,500 steps)."""
    return GanConfig(data=DataConfig(folder=Path("prepared/market1501")), generator_args=san_size("paper"))


def san_deepfashion() -> GanConfig:
    """SAN on DeepFashion, the paper's numbers: 256x256, batch 8, 700 epochs, weights 15, 1, 5; no pool."""
    return san_market().changed(
        data=DataConfig(folder=Path("prepared/deepfashion")),
        weights=LossWeights(adversarial=15.0, l1=1.0, perceptual=5.0),
        gan=AdversarialConfig(pool=0),
        schedule=ScheduleConfig(epochs_const=500, epochs_decay=200),
        batch_size=8,
    )


def san_market_small() -> GanConfig:
    """A small SAN on Market-1501 for two CPU cores and about an hour.

    Deviations from ``san_market``: size "small"; an adversarial weight of 1 and a small discriminator (in a
    few thousand steps a strong one only adds noise, and it would cost as much as the generator); mirrored
    pairs; a shorter average; the schedule. The perceptual network is VGG-19 as in the paper; a stand-in is
    named by ``--set perceptual.network=vgg16 --set perceptual.path=FILE``.
    """
    market = san_market()
    return market.changed(
        data=market.data.changed(flip=True),
        generator_args=san_size("small"),
        discriminator_args={"ndf": 32, "blocks": 1, "padding": "zeros"},
        weights=LossWeights(adversarial=1.0, l1=15.0, perceptual=5.0),
        schedule=ScheduleConfig(epochs_const=16, epochs_decay=16),
        output=OutputConfig(log_every=10, sample_every=250, validate_every=250, checkpoint_every=250),
        ema_decay=0.995,
    )


def san_demo() -> GanConfig:
    """The small SAN on rendered people, without the perceptual term: it needs no outside weights."""
    small = san_market_small()
    return small.changed(
        data=small.data.changed(folder=Path("prepared/rendered")),
        weights=LossWeights(adversarial=1.0, l1=15.0, perceptual=0.0),
        perceptual=PerceptualConfig(),
        schedule=ScheduleConfig(epochs_const=1, epochs_decay=1),
        output=OutputConfig(log_every=5, sample_every=50, validate_every=50, checkpoint_every=100),
        batch_size=16,
    )


PRESETS: dict[str, Callable[[], GanConfig]] = {
    "san_market": san_market,
    "san_deepfashion": san_deepfashion,
    "san_market_small": san_market_small,
    "san_demo": san_demo,
}
