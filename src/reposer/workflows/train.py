"""A training by its preset's name; the presets of Re-ID networks, parsers and predictors of label maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from reposer.config import apply_overrides, load_config, read_json
from reposer.data.parsing import LIP_LABELS
from reposer.errors import UserError, find
from reposer.storage.paths import printable
from reposer.training.config import TrainingConfig
from reposer.training.gan.config import DataConfig
from reposer.training.loop import TASKS, train
from reposer.training.parsing.config import (
    GuidedParserConfig,
    MapOptimizerConfig,
    MapOutputConfig,
    ParsingConfig,
    ParsingDataConfig,
    ParsingOptimizerConfig,
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
from reposer.workflows.gan_presets import PRESETS

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


# ---- Presets of parsers and predictors of label maps: functions that return a full configuration.


def parser_small() -> ParsingConfig:
    """MobileNetV2 and a light decoder at the packed size, for CPUs: 3 epochs, 51 people held out to watch.

    With Keras' weights: ``--set parser.keras=true --set initial_path=FILE``.
    """
    return ParsingConfig(data=ParsingDataConfig(folder=Path("prepared/market1501"), tuning_people=51))


# Rendered people wear more coats and dresses, and show their legs less, than people in summer streets.
_SUMMER = {
    **dict.fromkeys(("coat", "dress", "jumpsuits"), 0.1),
    **dict.fromkeys(("left-leg", "right-leg"), 7.0),
}


def rendered_parser() -> ParsingConfig:
    """The parser that the package ships: image, mask and joints (each of the latter may be missing) to a map.

    Learned from rendered people alone; colors, textures, scenes, lenses, masks and joints are randomized
    (data/randomization.py). About twenty minutes of one core; 40 people are held out to watch.
    """
    return ParsingConfig(
        data=ParsingDataConfig(folder=Path("prepared/rendered"), tuning_people=40),
        guided=GuidedParserConfig(priors=tuple(_SUMMER.get(label, 1.0) for label in LIP_LABELS)),
        initial="random",
        optimizer=ParsingOptimizerConfig(lr=2e-3, epochs=2.6, warmup_steps=100),
        output=MapOutputConfig(validate_every=500, checkpoint_every=100),
        batch_size=16,
    )


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
    "rendered_parser": rendered_parser,
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
    trackers: Sequence[str] = (),
) -> TrainingSummary:
    """Train a preset on a prepared folder, or go on with the run in ``out``.

    Args:
        name: a key of PRESETS, REID_PRESETS or PARSING_PRESETS.
        data: written by ``reposer prepare``.
        out: run folder.
        overrides: "a.b=c", on top of the preset.
        threads: of the CPU; default: PyTorch's choice.
        device, trackers: as in ``training.loop.train``.
        max_minutes: save and stop after so many.

    Raises:
        UserError: as the trainings, and for an unknown preset or setting, with the nearest name.
    """
    others = {**REID_PRESETS, **PARSING_PRESETS}
    config = others[name]() if name in others else find("preset", name, PRESETS, *others)()
    how: dict[str, Any] = {"device": device, "max_minutes": max_minutes, "trackers": trackers}
    return train_settings(config.changed(threads=threads), data, out, overrides, **how)


def read_settings(file: Path) -> TrainingConfig:
    """The settings of a training from JSON, as every run folder has them in its config.json.

    Which kind of training they are of is told by their keys.

    Raises:
        UserError: no such file, no settings of a training, or a setting that does not fit; names it.
    """
    keys = read_json(file, named=True).keys()
    shared = set.intersection(*(set(kind.model_fields) for kind in TASKS))
    kinds = [kind for kind in TASKS if keys & (kind.model_fields.keys() - shared)]
    best = max(kinds or TASKS, key=lambda kind: len(keys & kind.model_fields.keys()))
    if not kinds:
        raise UserError(f"{printable(file)}: holds no settings of a training", "give a run's config.json")
    return load_config(best, file, named=True)


def train_settings(
    config: TrainingConfig,
    data: Path,
    out: Path,
    overrides: Sequence[str] = (),
    *,
    threads: int | None = None,
    device: str = "auto",
    max_minutes: float | None = None,
    trackers: Sequence[str] = (),
) -> TrainingSummary:
    """As :func:`train_preset`, of settings that were read; a file's folder of data gives way to ``data``.

    Args:
        threads: None: as in ``config``.
    """
    values: dict[str, Any] = {"data": config.data.changed(folder=data)}  # type: ignore[attr-defined]
    config = config.changed(**values | ({} if threads is None else {"threads": threads}))
    how: dict[str, Any] = {"device": device, "max_minutes": max_minutes, "trackers": trackers}
    return train(apply_overrides(config, overrides), out, **how)
