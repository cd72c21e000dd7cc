"""Presets of GAN trainings: functions that return a full configuration and derive from each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from reposer.errors import find
from reposer.models.san import san_size
from reposer.models.transport_unet import transport_unet_size
from reposer.training.gan.config import (
    AdversarialConfig,
    DataConfig,
    GanConfig,
    GanOutputConfig,
    LossWeights,
    OptimizerConfig,
    PerceptualConfig,
    ScheduleConfig,
)
from reposer.workflows import baseline_presets as baselines


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
    """A small SAN on Market-1501 for two CPU cores and about an hour (2,250 steps of 16 pairs).

    Deviations from ``san_market``: size "small"; an adversarial weight of 1 and a narrow discriminator (in a
    few thousand steps a strong one only adds noise); twice the learning rate; mirrored pairs; a shorter
    average; no image pool; the schedule. The perceptual network is VGG-19 as in the paper;
    ``--set perceptual.network=vgg16 --set perceptual.path=FILE`` names a stand-in.
    """
    market = san_market()
    return market.changed(
        data=market.data.changed(flip=True),
        generator_args=san_size("small"),
        discriminator_args={"ndf": 16, "padding": "zeros"},
        optimizer=OptimizerConfig(lr=4e-4),
        weights=LossWeights(adversarial=1.0, l1=15.0, perceptual=5.0),
        gan=AdversarialConfig(pool=0),
        schedule=ScheduleConfig(epochs_const=6, epochs_decay=3),
        output=GanOutputConfig(log_every=20, sample_every=250, validate_every=250, checkpoint_every=250),
        batch_size=16,
        ema_decay=0.998,
    )


def san_keypoints_market_small() -> GanConfig:
    """The small SAN with poses given by keypoint maps, not masks and parsing (the paper's claim 2)."""
    small = san_market_small()
    return small.changed(generator_args={**small.generator_args, "pose": "keypoints"})


def san_demo() -> GanConfig:
    """The small SAN on rendered people, without the perceptual term: it needs no outside weights.

    The shipped generator comes from this preset with the schedule in its model card.
    """
    small = san_market_small()
    return small.changed(
        data=small.data.changed(folder=Path("prepared/rendered")),
        weights=LossWeights(adversarial=1.0, l1=15.0, perceptual=0.0),
        perceptual=PerceptualConfig(),
        schedule=ScheduleConfig(epochs_const=0.2, epochs_decay=0.2),
        output=GanOutputConfig(log_every=10, sample_every=50, validate_every=50, checkpoint_every=100),
        batch_size=8,
    )


def rsa_deepfashion() -> GanConfig:
    """RSA-GAN (reconstruction from the abstract) on DeepFashion: CASD's weights, LSGAN, two critics."""
    return GanConfig(
        data=DataConfig(folder=Path("prepared/deepfashion")),
        generator="rsa_gan",
        discriminator_args={"pose": True, "norm": "instance"},
        weights=LossWeights(
            adversarial=5.0,
            l1=1.0,
            perceptual=1.0,
            content=0.5,
            style=200.0,
            contextual=0.1,
            correspondence=1.0,
        ),
        perceptual=PerceptualConfig(norm="l1"),
        gan=AdversarialConfig(mode="lsgan"),
        batch_size=8,
    )


def rsa_market() -> GanConfig:
    """RSA-GAN (reconstruction from the abstract) on Market-1501: L1 and VGG-L1 10 and BCE, as PATN there."""
    fashion = rsa_deepfashion()
    return fashion.changed(
        data=DataConfig(folder=Path("prepared/market1501")),
        weights=fashion.weights.changed(l1=10.0, perceptual=10.0),
        gan=AdversarialConfig(mode="bce"),
        batch_size=32,
    )


def rsa_market_small() -> GanConfig:
    """RSA-GAN (reconstruction from the abstract) at a fourth of the width, trained as ``san_market_small``.

    The same terms of eq. 7 with the same weights, optimizer, schedule, average and batch, plus the term of
    the correspondence and the discriminator of the pose: what differs from the small SAN is the generator.
    """
    market, small = rsa_market(), san_market_small()
    return small.changed(
        generator="rsa_gan",
        generator_args={"width": 64, "padding": "zeros"},
        discriminator_args={**small.discriminator_args, "pose": True, "norm": "instance"},
        weights=small.weights.changed(correspondence=market.weights.correspondence),
    )


def rsa_demo() -> GanConfig:
    """The small RSA-GAN on rendered people, without outside weights; see ``san_demo``."""
    demo, small = san_demo(), rsa_market_small()
    return small.changed(
        data=demo.data,
        weights=small.weights.changed(perceptual=0.0),
        schedule=demo.schedule,
        output=demo.output,
        batch_size=demo.batch_size,
    )


def patn_market() -> GanConfig:
    """PATN on Market-1501, its code's numbers: two critics without a last layer, BCE, 700 epochs of 4,000."""
    return GanConfig(
        data=DataConfig(folder=Path("prepared/market1501")),
        generator="patn",
        discriminator_args={"pose": True, "head": "none", "lrelu_slope": 0.0, "dropout": 0.5},
        weights=LossWeights(adversarial=5.0, l1=10.0, perceptual=10.0),
        perceptual=PerceptualConfig(norm="l1"),
        schedule=ScheduleConfig(epochs_const=500, epochs_decay=200),
    )


def patn_market_small() -> GanConfig:
    """A small PATN with losses, optimizer, schedule and batch of ``san_market_small``, and two critics."""
    small = san_market_small()
    return small.changed(
        generator="patn",
        generator_args={"ngf": 24, "enc_strides": (2, 2, 1), "blocks": 3, "dropout": 0.0, "padding": "zeros"},
        discriminator_args={**small.discriminator_args, "pose": True},
    )


def transport_market() -> GanConfig:
    """The generator that mends carried texture, for GPUs: SAN's schedule and pairs, up to four sources."""
    market = san_market()
    return market.changed(
        generator="transport_unet",
        generator_args=transport_unet_size("paper"),
        data=market.data.changed(flip=True, sources=4),
        discriminator_args={"pairing": "carried"},
        weights=LossWeights(adversarial=0.5, l1=5.0, perceptual=8.0),
        perceptual=PerceptualConfig(layers=("relu1_2", "relu2_2", "relu3_3"), norm="l1"),
        gan=AdversarialConfig(pool=0),
    )


def transport_market_small() -> GanConfig:
    """The same for two CPU cores and about two hours, at the small SAN's learning rate and batch."""
    small, large = san_market_small(), transport_market()
    return small.changed(
        generator=large.generator,
        generator_args=transport_unet_size("small"),
        data=small.data.changed(sources=4),
        discriminator_args={**small.discriminator_args, "pairing": "carried"},
        weights=large.weights,
        perceptual=large.perceptual,
    )


def transport_demo() -> GanConfig:
    """The small one on rendered people, without outside weights; see ``san_demo``."""
    demo, small = san_demo(), transport_market_small()
    return small.changed(
        data=demo.data.changed(sources=4),
        weights=small.weights.changed(perceptual=0.0),
        perceptual=PerceptualConfig(),
        schedule=demo.schedule,
        output=demo.output,
        batch_size=demo.batch_size,
    )


def _from_small_san(make: Callable[[GanConfig], GanConfig]) -> Callable[[], GanConfig]:
    def made() -> GanConfig:
        return make(san_market_small())

    made.__doc__ = make.__doc__
    return made


PRESETS: dict[str, Callable[[], GanConfig]] = {
    "san_market": san_market,
    "san_deepfashion": san_deepfashion,
    "san_market_small": san_market_small,
    "san_keypoints_market_small": san_keypoints_market_small,
    "san_demo": san_demo,
    "rsa_market": rsa_market,
    "rsa_deepfashion": rsa_deepfashion,
    "rsa_market_small": rsa_market_small,
    "rsa_demo": rsa_demo,
    "patn_market": patn_market,
    "patn_market_small": patn_market_small,
    "transport_market": transport_market,
    "transport_market_small": transport_market_small,
    "transport_demo": transport_demo,
    "vunet_market": baselines.vunet_market,
    "vunet_deepfashion": baselines.vunet_deepfashion,
    "vunet_market_small": _from_small_san(baselines.vunet_market_small),
    "pg2_market": baselines.pg2_market,
    "pg2_deepfashion": baselines.pg2_deepfashion,
    "pg2_market_small": _from_small_san(baselines.pg2_market_small),
    "dpig_market": baselines.dpig_market,
    "dpig_deepfashion": baselines.dpig_deepfashion,
    "dpig_market_small": _from_small_san(baselines.dpig_market_small),
    "def_gan_market": baselines.def_gan_market,
    "def_gan_deepfashion": baselines.def_gan_deepfashion,
    "def_gan_market_small": _from_small_san(baselines.def_gan_market_small),
    "gfla_market": baselines.gfla_market,
    "gfla_deepfashion": baselines.gfla_deepfashion,
    "gfla_market_small": _from_small_san(baselines.gfla_market_small),
    "intro_flow_keypoints_market": baselines.intro_flow_keypoints_market,
    "intro_flow_keypoints_deepfashion": baselines.intro_flow_keypoints_deepfashion,
    "intro_flow_keypoints_market_small": _from_small_san(baselines.intro_flow_keypoints_market_small),
}


def find_preset(name: str) -> GanConfig:
    """The configuration of that name.

    Raises:
        UserError: there is none; names the nearest.
    """
    return find("preset", name, PRESETS)()
