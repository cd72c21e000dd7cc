"""The settings of a Re-ID training: frozen, typed, saved into the run folder."""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from reposer.config import Config
from reposer.errors import MOST_AT_ONCE
from reposer.training.config import EpochsConfig, OutputConfig, half_cosine


class ReidDataConfig(Config):
    """Which people, how a batch is drawn from them, and how many images make an epoch."""

    folder: Path  # written by `reposer prepare`
    splits: tuple[str, ...] = ("train",)  # that are trained on
    sampler: Literal["images", "people", "pairs"] = "images"  # shuffled | P x K | pairs for verification
    images_per_person: int = Field(default=4, ge=2)  # K of P x K
    negatives: float = Field(default=1.0, gt=0)  # negative pairs per positive one at the start
    negatives_end: float = Field(default=4.0, gt=0)  # and at most
    # of the pairs per positive one (itself included), an epoch
    negatives_growth: float = Field(default=1.01, ge=1)
    images_per_epoch: int = Field(default=12_936, ge=1)  # draws that are called an epoch (a pair counts two)
    budget: float = Field(default=1.0, gt=0, le=1)  # share of each person's images, see data/samplers.py
    budget_seed: int = 0


class GeneratedConfig(Config):
    """Generated images in training: which, under which label, how many, from when to when."""

    folder: Path | None = None  # written by `reposer augment`; None: real images only
    label: Literal["source", "smoothed", "uniform", "teacher", "extra_class"] = "source"
    smoothing: float = Field(default=0.1, gt=0, lt=1)  # of label=smoothed (CamStyle's)
    weight: float = Field(default=1.0, gt=0)  # of a generated image in the losses
    real_share: float | None = Field(default=None, gt=0, lt=1)  # of every batch; None: drawn from one pool
    start_epoch: float = Field(default=0.0, ge=0)  # real images only before
    stop_epoch: float | None = Field(default=None, gt=0)  # and after; None: to the end
    teacher: Path | None = None  # Re-ID run of the same people, for label=teacher
    use_dropped: bool = False  # take the pictures that a filter dropped too

    @property
    def known(self) -> bool:
        """Whether the label says who a generated image shows, so that pairs and triplets are made of it."""
        return self.label in ("source", "smoothed")

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if (self.label == "teacher") != (self.teacher is not None):
            raise ValueError("label=teacher and teacher=RUN belong together")
        if self.stop_epoch is not None and self.stop_epoch <= self.start_epoch:
            raise ValueError("stop_epoch must be greater than start_epoch")
        if self.folder is None and self.model_dump(exclude_defaults=True):
            raise ValueError("settings are given but no folder, so nothing would read them")
        return self


class AugmentConfig(Config):
    """From packed images to what the network sees: resized, padded, cropped, mirrored, erased."""

    resize: tuple[int, int] = (128, 64)  # (H, W)
    pad: int = Field(default=0, ge=0)  # pixels on each side
    crop: tuple[int, int] = (128, 64)  # (H, W)
    flip: bool = True  # mirror half of the images
    erase: float = Field(default=0.0, ge=0, le=1)  # probability of random erasing


class EmbeddingConfig(Config):
    """The network; its keywords are those of ``models.embedding.Embedding``."""

    backbone: str = "resnet50"  # a key of models.embedding.EMBEDDINGS
    backbone_args: dict[str, Any] = Field(default_factory=dict)  # keywords of its constructor
    size: tuple[int, int] = (128, 64)  # (H, W) in use
    stripes: int = Field(default=1, ge=1)
    neck: Literal["none", "bn"] = "bn"
    window: int = Field(default=0, ge=0)
    mirror: bool = False
    freeze_norm: bool = False
    frozen: int = Field(default=0, ge=0)  # lowest parts of the backbone that do not learn


class HeadConfig(Config):
    """What is on top of the embedding during training only."""

    dropout: float = Field(default=0.0, ge=0, lt=1)  # before the classifier and the verification head
    bias: bool = True  # of the classifier; Bag of Tricks has none
    verification: Literal["square", "product", "abs"] = "square"  # what that head looks at
    # of its first weights, biases 0; None: torch's own
    verifier_std: float | None = Field(default=None, gt=0)


class ReidOptimizerConfig(Config):
    """SGD or Adam; the heads learn at ``lr``."""

    kind: Literal["sgd", "adam"] = "adam"
    lr: float = Field(default=3.5e-4, gt=0)
    backbone_factor: float = Field(default=1.0, ge=0)  # times lr, for the backbone
    bias_factor: float = Field(default=1.0, gt=0)  # times that, for the parameters of ``biases``
    bias_decay: bool = True  # weight decay for these too
    biases: Literal["all", "classifier"] = "all"  # all biases and norms, or the classifier's bias alone
    momentum: float = Field(default=0.9, ge=0, lt=1)  # of SGD
    weight_decay: float = Field(default=5e-4, ge=0)


class ReidScheduleConfig(Config):
    """Warm-up, then steps down or a half cosine to zero."""

    epochs: float = Field(default=60, gt=0)
    warmup_epochs: float = Field(default=0.0, ge=0)  # straight line from warmup_factor to 1
    warmup_factor: float = Field(default=0.01, gt=0, le=1)
    decay: Literal["steps", "cosine"] = "steps"
    milestones: tuple[float, ...] = ()  # epochs after which the rate is multiplied by gamma
    gamma: float = Field(default=0.1, gt=0, lt=1)


class ReidLossConfig(Config):
    """Weights of the losses, 0 leaves one out."""

    identity: float = Field(default=1.0, ge=0)
    smoothing: float = Field(default=0.0, ge=0, lt=1)  # of the labels
    triplet: float = Field(default=0.0, ge=0)
    margin: float = Field(default=0.3, gt=0)
    center: float = Field(default=0.0, ge=0)
    center_rate: float = Field(default=0.5, gt=0)  # of the centers' own SGD; not scheduled
    verification: float = Field(default=0.0, ge=0)


class ReidOutputConfig(OutputConfig):
    """What is written how often, and whether anybody is watched."""

    held_out: bool = True  # validate on held-out people; false: nobody looks at them during the training


class ReidConfig(EpochsConfig):
    """Everything that the numbers of a run depend on."""

    data: ReidDataConfig
    augment: AugmentConfig = AugmentConfig()
    embedding: EmbeddingConfig = EmbeddingConfig()
    head: HeadConfig = HeadConfig()
    optimizer: ReidOptimizerConfig = ReidOptimizerConfig()
    schedule: ReidScheduleConfig = ReidScheduleConfig()
    loss: ReidLossConfig = ReidLossConfig()
    generated: GeneratedConfig = GeneratedConfig()
    output: ReidOutputConfig = ReidOutputConfig()
    initial: Literal["random", "imagenet"] = "random"  # weights of the backbone before the first step
    initial_path: Path | None = None  # file for "imagenet"; default: the official one, in the weights folders
    batch_size: int = Field(default=64, ge=2, le=MOST_AT_ONCE)  # images of a step, over all processes
    compile: bool = False  # torch.compile of the network; about a minute of start-up

    @property
    def epoch(self) -> int:
        """Images that are drawn in an epoch."""
        return self.data.images_per_epoch

    @property
    def epochs(self) -> float:
        """Epochs of the whole schedule."""
        return self.schedule.epochs

    def rate(self, step: int, total: int) -> float:
        """Learning rate of the update that follows ``step`` completed ones of ``total``.

        Warm-up: from warmup_factor in a straight line to 1 over the warm-up's steps. Then either gamma for
        every milestone passed, or a half cosine over the remaining steps, which would reach 0 at the last.
        """
        schedule, lr = self.schedule, self.optimizer.lr
        warmup = self.steps_of(schedule.warmup_epochs)
        if step < warmup:
            return lr * (schedule.warmup_factor + (1 - schedule.warmup_factor) * step / warmup)
        if schedule.decay == "cosine":
            return lr * half_cosine(step, warmup, total)
        passed = bisect_right([self.steps_of(epoch) for epoch in sorted(schedule.milestones)], step)
        return float(lr * schedule.gamma**passed)

    def stretched(self, images: float) -> Self:
        """The same schedule over so many drawn images: epochs get shorter or longer.

        What is counted in epochs (warm-up, milestones, from when generated images are mixed in) keeps its
        place.
        """
        epochs = self.epochs
        per_epoch = max(1, round(images / epochs))
        if per_epoch * epochs != images:
            # steps are rounded up: half an image keeps floats on the right side
            epochs = (images - 0.5) / per_epoch
        data = self.data.changed(images_per_epoch=per_epoch)
        return self.changed(data=data, schedule=self.schedule.changed(epochs=epochs))

    def mixes(self, step: int) -> bool:
        """Whether the batch after ``step`` completed steps may hold generated images."""
        generated = self.generated
        if generated.folder is None or step < self.steps_of(generated.start_epoch):
            return False
        return generated.stop_epoch is None or step < self.steps_of(generated.stop_epoch)

    @property
    def people_per_batch(self) -> int:
        """P of P x K."""
        return self.batch_size // self.data.images_per_person

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        room = [self.augment.resize[i] + 2 * self.augment.pad - self.augment.crop[i] for i in (0, 1)]
        if min(room) < 0:
            raise ValueError("augment.crop is larger than the resized and padded image")
        if self.data.sampler == "people" and self.batch_size % self.data.images_per_person:
            raise ValueError("batch_size must be a multiple of data.images_per_person")
        if self.data.sampler == "pairs" and self.batch_size % 2:
            raise ValueError("batch_size must be even: pairs are drawn")
        if self.loss.verification and self.data.sampler != "pairs":
            raise ValueError("loss.verification needs data.sampler=pairs")
        if self.loss.triplet and self.data.sampler != "people":
            raise ValueError("loss.triplet needs data.sampler=people")
        if not (self.loss.identity or self.loss.triplet or self.loss.verification):
            raise ValueError("every loss has weight 0")
        if self.generated.folder is not None and not (self.generated.known or self.loss.identity):
            raise ValueError(f"generated.label={self.generated.label} needs loss.identity above 0")
        self._check_real_share()
        if self.initial_path is not None and self.initial == "random":
            raise ValueError("initial_path is given but initial=random would not read it")
        return self

    def _check_real_share(self) -> None:
        share, sampler = self.generated.real_share, self.data.sampler
        if share is None:
            return
        pairs, images = self.batch_size // 2, self.data.images_per_person
        whole = {"images": self.batch_size, "people": images, "pairs": pairs}[sampler]
        if not 1 <= int(whole * share + 0.5) < whole:
            raise ValueError(f"generated.real_share={share:g} of {whole} leaves none of one kind")
