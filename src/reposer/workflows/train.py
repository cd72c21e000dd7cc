"""Presets of every training, functions that return a full configuration; a training by its preset's name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from reposer.config import apply_overrides
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
from reposer.training.loop import train
from reposer.training.parsing.config import (
    MapOptimizerConfig,
    MapOutputConfig,
    ParsingConfig,
    ParsingDataConfig,
    PredictorConfig,
)
from reposer.training.reid.config import (
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
from reposer.training.run_writer import TrainingSummary

# ---- Trainings by name: functions that return a full configuration and derive from each other.


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
}


def find_preset(name: str) -> GanConfig:
    """The configuration of that name.

    Raises:
        UserError: there is none; names the nearest.
    """
    return find("preset", name, PRESETS)()


# ---- Re-ID recipes by name: functions that return a full configuration and derive from each other.

_MARKET = ReidDataConfig(folder=Path("prepared/market1501"))


def ide2016() -> ReidConfig:
    """IDE (Zheng et al. 2016), the ResNet-50 of the IDE baseline: plain classification, feature pool5.

    224x224, batch 16, SGD, 50,000 steps, rate 1e-3 divided by ten every 20,000; norm statistics frozen;
    the classifier's bias learns twice as fast and does not decay. Ours: torchvision's ImageNet weights
    instead of Caffe's (RGB, normalized), and every training image instead of nine tenths.
    The README's better variant has head.dropout=0.5.
    """
    return ReidConfig(
        data=_MARKET.changed(images_per_epoch=16_000),  # 1,000 steps
        augment=AugmentConfig(resize=(224, 224), crop=(224, 224)),
        embedding=EmbeddingConfig(backbone="resnet50", size=(224, 224), neck="none", freeze_norm=True),
        optimizer=ReidOptimizerConfig(
            kind="sgd", lr=1e-3, bias_factor=2.0, bias_decay=False, biases="classifier"
        ),
        schedule=ReidScheduleConfig(epochs=50, milestones=(20, 40)),
        initial="imagenet",
        batch_size=16,
    )


def siamese2017() -> ReidConfig:
    """Zheng, Zheng, Yang (arXiv 1611.05666): identification + verification by squared differences.

    256x256 stored, random 224 crops and flips per image, 48 pairs a step; every training image is the first
    of a pair once an epoch: 269 whole steps of Market-1501's 12,936 images, 20,175 in 75 epochs; positive
    pairs from 1:1 towards 1:4, dropout 0.9 before both heads, pool5 not normalized; trunk at 1e-4, heads at
    1e-3, biases and norms at 20 times that. In use a single stream at 256x256: the 7x7 averages at every
    place, normalized, summed over places and over the mirror image. The pair loss is that of the author's
    first (MATLAB) code. Positive pairs are 1 of min(5, 2 * 1.01^epoch). The first script had max(5, ...),
    which is 1:4 from the first epoch to the last, against its own comment; the author took the correction to
    min in June 2017 (pull request 7 of layumi/2016_person_re-ID), and so do we.
    Ours: BatchNorm statistics follow torch's rate of 0.1, theirs the learning rates of that code; the
    verification head learns at the heads' rate.
    """
    return ReidConfig(
        data=_MARKET.changed(
            sampler="pairs",
            negatives=1.0,
            negatives_end=4.0,
            negatives_growth=1.01,
            images_per_epoch=269 * 96,
        ),
        augment=AugmentConfig(resize=(256, 256), crop=(224, 224)),
        embedding=EmbeddingConfig(backbone="resnet50", size=(256, 256), neck="none", window=7, mirror=True),
        head=HeadConfig(dropout=0.9, verification="square", verifier_std=0.0038),
        optimizer=ReidOptimizerConfig(kind="sgd", lr=1e-3, backbone_factor=0.1, bias_factor=20.0),
        schedule=ReidScheduleConfig(epochs=75, milestones=(70,)),
        loss=ReidLossConfig(identity=1.0, verification=1.0),
        initial="imagenet",
        batch_size=96,
    )


def bot() -> ReidConfig:
    """Bag of Tricks (Luo et al., arXiv 1903.07071): the strong baseline.

    P16 x K4, Adam 3.5e-4 with a warm-up of 10 epochs, label smoothing, random erasing, last stride 1, triplet
    and center loss before and classification after the BNNeck; the feature in use is the one after it. Ours:
    every person is drawn equally often; the original draws people by their number of images (4 to 56 times an
    epoch), so that an epoch shows 90 % of the distinct images instead of 61 %.
    """
    return ReidConfig(
        data=_MARKET.changed(sampler="people", images_per_person=4),
        augment=AugmentConfig(resize=(256, 128), pad=10, crop=(256, 128), erase=0.5),
        embedding=EmbeddingConfig(
            backbone="resnet50", backbone_args={"last_stride": 1}, size=(256, 128), neck="bn"
        ),
        head=HeadConfig(bias=False),
        optimizer=ReidOptimizerConfig(kind="adam", lr=3.5e-4, weight_decay=5e-4),
        schedule=ReidScheduleConfig(epochs=120, warmup_epochs=10, warmup_factor=0.01, milestones=(40, 70)),
        loss=ReidLossConfig(identity=1.0, smoothing=0.1, triplet=1.0, margin=0.3, center=5e-4),
        initial="imagenet",
        batch_size=64,
    )


def reid_small() -> ReidConfig:
    """Bag of Tricks on MobileNetV2 at 128x64, for CPUs: 25 epochs, a half cosine, no center loss.

    With Keras' weights: ``--set embedding.backbone=mobilenet_v2_keras --set initial_path=FILE``.
    """
    strong = bot()
    return strong.changed(
        augment=strong.augment.changed(resize=(128, 64), pad=5, crop=(128, 64)),
        embedding=EmbeddingConfig(backbone="mobilenet_v2", backbone_args={"last_stride": 1}, neck="bn"),
        loss=strong.loss.changed(center=0.0),
        schedule=ReidScheduleConfig(epochs=25, warmup_epochs=2, warmup_factor=0.05, decay="cosine"),
    )


def ide_small() -> ReidConfig:
    """IDE's plain classification on MobileNetV2 at 128x64 (Keras' weights), for many trainings on CPUs.

    Flip and padded crop; the lowest third of the network stays as it is; Adam and a half cosine over 300
    steps of 64 images: about two minutes on a core. The weights: ``--set initial_path=FILE``.
    """
    ide, small = ide2016(), reid_small()
    return ide.changed(
        data=ide.data.changed(images_per_epoch=640),  # 10 steps
        augment=small.augment.changed(erase=0.0),
        embedding=EmbeddingConfig(backbone="mobilenet_v2_keras", neck="none", frozen=7),
        optimizer=small.optimizer,
        schedule=ReidScheduleConfig(epochs=30, warmup_epochs=2, warmup_factor=0.05, decay="cosine"),
        output=ReidOutputConfig(validate_every=300, checkpoint_every=150),
        batch_size=64,
        compile=True,
    )


def siamese_small() -> ReidConfig:
    """The losses and pairs of ``siamese2017`` on the network, size and optimizer of ``reid_small``.

    Without BNNeck; a dropout of 0.5, since 25 epochs are too few for 0.9; the pair schedule moves three times
    as fast, so that it comes as far.
    """
    small, siamese = reid_small(), siamese2017()
    return small.changed(
        data=siamese.data.changed(negatives_growth=1.03, images_per_epoch=small.data.images_per_epoch),
        embedding=small.embedding.changed(neck="none", mirror=True),
        augment=small.augment.changed(erase=0.0),
        head=HeadConfig(dropout=0.5, verification="square"),
        loss=siamese.loss,
    )


def reid_demo() -> ReidConfig:
    """The strong recipe on the small network, from scratch, on rendered people: a minute on two cores."""
    return reid_small().changed(
        data=ReidDataConfig(folder=Path("prepared/rendered"), sampler="people", images_per_epoch=1000),
        embedding=EmbeddingConfig(backbone="small", stripes=4, neck="bn"),
        optimizer=ReidOptimizerConfig(kind="adam", lr=2e-3, bias_decay=False),
        schedule=ReidScheduleConfig(epochs=6, warmup_epochs=0.5, warmup_factor=0.1, decay="cosine"),
        output=ReidOutputConfig(log_every=10, validate_every=100, checkpoint_every=100),
        initial="random",
    )


REID_PRESETS: dict[str, Callable[[], ReidConfig]] = {
    "ide2016": ide2016,
    "siamese2017": siamese2017,
    "bot": bot,
    "reid_small": reid_small,
    "ide_small": ide_small,
    "siamese_small": siamese_small,
    "reid_demo": reid_demo,
}


def find_reid_preset(name: str) -> ReidConfig:
    """The configuration of that name.

    Raises:
        UserError: there is none; names the nearest.
    """
    return find("Re-ID preset", name, REID_PRESETS)()


# ---- Presets of parsers and predictors of maps: functions that return a full configuration.


def parser_small() -> ParsingConfig:
    """MobileNetV2 and a light decoder at the packed size, for CPUs: 3 epochs, 51 people held out to watch.

    With Keras' weights: ``--set parser.keras=true --set initial_path=FILE``.
    """
    return ParsingConfig(data=ParsingDataConfig(folder=Path("prepared/market1501"), tuning_people=51))


def predictor_small() -> PredictorConfig:
    """The predictor of label maps for CPUs: 9 epochs of 4,000 pairs, mirrored half of the time."""
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


# ---- A training by the name of its preset, a generator's or a Re-ID network's: what ``reposer train`` does.


def train_preset(
    name: str,
    data: Path,
    out: Path,
    overrides: Sequence[str] = (),
    *,
    threads: int | None = None,
    device: str = "auto",
    max_minutes: float | None = None,
) -> TrainingSummary:
    """Train a preset on a prepared folder, or go on with the run in ``out``.

    Args:
        name: a key of PRESETS, REID_PRESETS or PARSING_PRESETS.
        data: written by ``reposer prepare``.
        out: run folder.
        overrides: "a.b=c", on top of the preset.
        threads: of the CPU; default: PyTorch's choice.
        device: as in ``training.loop.train``.
        max_minutes: save and stop after so many.

    Raises:
        UserError: as the trainings, and for an unknown preset or setting, with the nearest name.
    """
    others = {**REID_PRESETS, **PARSING_PRESETS}
    config = others[name]() if name in others else find("preset", name, PRESETS, *others)()
    config = config.changed(data=config.data.changed(folder=data), threads=threads)
    return train(apply_overrides(config, overrides), out, device=device, max_minutes=max_minutes)
