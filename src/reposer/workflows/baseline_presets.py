"""Presets of the baselines that are re-built here: the papers' numbers, and small ones for a CPU.

A small one takes data, batch, learning rate, schedule and average of ``san_market_small``, which is given to
it; the terms and their ratios are the model's own, so that a row shows the method.
"""

from __future__ import annotations

from pathlib import Path

from reposer.models.dpig import dpig_size
from reposer.models.pg2 import pg2_size
from reposer.models.vunet import vunet_size
from reposer.training.gan.config import (
    AdversarialConfig,
    DataConfig,
    GanConfig,
    LossWeights,
    OptimizerConfig,
    PerceptualConfig,
    RampConfig,
    ScheduleConfig,
    StageConfig,
    StageWeights,
)

MARKET, DEEPFASHION = Path("prepared/market1501"), Path("prepared/deepfashion")
VGG_LAYERS = ("relu1_2", "relu2_2", "relu3_2", "relu4_2", "relu5_2")


def vunet_market() -> GanConfig:
    """VU-Net on Market-1501, its code's numbers: 100,000 steps of 16, VGG-19 and KL terms, no discriminator.

    The authors' loss over 637.5: their picture is 127.5 times ours and the terms on it have a weight of 5;
    VGG's maps are 57 times larger there. KL grows from step 50,000 to 75,000.
    """
    return GanConfig(
        data=DataConfig(folder=MARKET),
        generator="vunet",
        generator_args=vunet_size("paper"),
        optimizer=OptimizerConfig(lr=1e-3, beta1=0.5, beta2=0.9),
        weights=LossWeights(adversarial=0.0, l1=1.0, perceptual=0.45).changed(kl=1 / 637.5),
        perceptual=PerceptualConfig(layers=VGG_LAYERS, norm="l1"),
        gan=AdversarialConfig(pool=0, discriminator=False),
        schedule=ScheduleConfig(
            epochs_const=4, epochs_decay=396, ramps={"kl": RampConfig(start=1e-6, begin=0.5, end=0.75)}
        ),
        batch_size=16,
    )


def vunet_deepfashion() -> GanConfig:
    """VU-Net on DeepFashion, its code's numbers: 256x256, 100,000 steps of 8."""
    market = vunet_market()
    return market.changed(
        data=DataConfig(folder=DEEPFASHION),
        generator_args=vunet_size("paper_256"),
        schedule=market.schedule.changed(epochs_const=2, epochs_decay=198),
        batch_size=8,
    )


def vunet_market_small(small: GanConfig) -> GanConfig:
    """A small VU-Net for a CPU: its own terms, data, optimizer, schedule, batch and average of ``small``."""
    market = vunet_market()
    return small.changed(
        generator=market.generator,
        generator_args=vunet_size("small"),
        discriminator_args={},
        weights=market.weights,
        perceptual=market.perceptual,
        gan=market.gan,
        schedule=small.schedule.changed(ramps=market.schedule.ramps),
    )


def pg2_market() -> GanConfig:
    """PG2 on Market-1501, its code's numbers: 22,000 of 60,000 steps of 16 for the coarse network alone."""
    return GanConfig(
        data=DataConfig(folder=MARKET),
        generator="pg2",
        generator_args=pg2_size("paper"),
        discriminator_args={"kind": "dcgan"},
        optimizer=OptimizerConfig(lr=2e-5),
        weights=LossWeights(adversarial=1.0, l1=0.0, perceptual=0.0).changed(masked_l1=10.0),
        gan=AdversarialConfig(pool=0, together=True, source_fake=True),
        schedule=ScheduleConfig(epochs_const=240, epochs_decay=0, stages=_pg2_stages(22, 38)),
        batch_size=16,
    )


def pg2_deepfashion() -> GanConfig:
    """PG2 on DeepFashion, its code's numbers: 256x256, 22,000 of 80,000 steps of one pair."""
    market = pg2_market()
    return market.changed(
        data=DataConfig(folder=DEEPFASHION),
        generator_args=pg2_size("paper_256"),
        discriminator_args={"kind": "dcgan", "size": (256, 256), "widths": (64, 128, 256, 512, 512)},
        weights=market.weights.changed(masked_l1=50.0),
        schedule=ScheduleConfig(epochs_const=20, epochs_decay=0, stages=_pg2_stages(22, 58)),
        batch_size=1,
    )


def pg2_market_small(small: GanConfig) -> GanConfig:
    """A small PG2 for a CPU, at half the learning rate of ``small``: without a norm it bears no more."""
    market = pg2_market()
    return small.changed(
        generator=market.generator,
        generator_args=pg2_size("small"),
        discriminator_args={"kind": "dcgan", "widths": (16, 32, 64, 128)},
        optimizer=small.optimizer.changed(lr=small.optimizer.lr / 2),
        weights=market.weights,
        gan=market.gan,
        schedule=small.schedule.changed(stages=market.schedule.stages),
    )


def _pg2_stages(coarse: float, fine: float) -> tuple[StageConfig, ...]:
    alone = StageConfig(
        name="coarse", share=coarse, weights=StageWeights().changed(masked_l1=1.0), discriminator=False
    )
    return alone, StageConfig(name="fine", share=fine)


def dpig_market() -> GanConfig:
    """DPIG's pose transfer on Market-1501, its code's numbers: 120,000 steps of 16, halved every 50,000."""
    return GanConfig(
        data=DataConfig(folder=MARKET),
        generator="dpig",
        generator_args=dpig_size("paper"),
        discriminator_args={"kind": "dcgan"},
        optimizer=OptimizerConfig(lr=2e-5),
        weights=LossWeights(adversarial=1.0, l1=20.0, perceptual=0.0),
        gan=AdversarialConfig(pool=0),
        schedule=ScheduleConfig(epochs_const=480, epochs_decay=0, halve_every=200),
        batch_size=16,
    )


def dpig_deepfashion() -> GanConfig:
    """The same on DeepFashion: 256x256, parts alone, the discriminator sees real and generated together."""
    market = dpig_market()
    return market.changed(
        data=DataConfig(folder=DEEPFASHION),
        generator_args=dpig_size("paper_256"),
        discriminator_args={"kind": "dcgan", "size": (256, 256), "widths": (64, 128, 256, 512, 512)},
        gan=market.gan.changed(together=True),
    )


def dpig_market_small(small: GanConfig) -> GanConfig:
    """A small DPIG for a CPU, at half the learning rate of ``small``: without a norm it bears no more."""
    market = dpig_market()
    return small.changed(
        generator=market.generator,
        generator_args=dpig_size("small"),
        discriminator_args={"kind": "dcgan", "widths": (16, 32, 64, 128)},
        optimizer=small.optimizer.changed(lr=small.optimizer.lr / 2),
        weights=market.weights,
        gan=market.gan,
    )
