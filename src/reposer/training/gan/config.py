"""What a GAN training can be told: frozen, typed, saved into the run folder; the defaults are SAN's.

Numbers in brackets of the comments are the ambiguities of the paper that an option answers (docs/method.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from reposer.config import Config
from reposer.errors import MOST_AT_ONCE, MOST_SIDE_BY_SIDE


class DataConfig(Config):
    """Which prepared folder, which pairs of it, and how many of them make an epoch."""

    folder: Path  # written by `reposer prepare`
    pairs: str = "pairs_train.csv"  # inside the folder; both images must be of the split "train"
    validation_pairs: str = (
        "pairs_val.csv"  # inside the folder; empty: no validation, samples from training pairs
    )
    max_pairs: int | None = Field(default=None, ge=1)  # use the first N pairs only (37)
    pairs_per_epoch: int = Field(default=4000, ge=1)  # draws that are called an epoch (38)
    flip: bool = False  # mirror half of the pairs, labels and joints swapped (40)


class OptimizerConfig(Config):
    """Adam, the same for both networks."""

    lr: float = Field(default=2e-4, gt=0)
    beta1: float = Field(default=0.5, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)


class ScheduleConfig(Config):
    """Constant learning rate, then a straight line to zero (39)."""

    epochs_const: float = Field(default=300, ge=0)
    epochs_decay: float = Field(default=200, ge=0)


class LossWeights(Config):
    """Alpha, beta and gamma of eq. 7, and further terms; a term of weight 0 is not computed."""

    adversarial: float = Field(default=10.0, ge=0)
    l1: float = Field(default=15.0, ge=0)
    perceptual: float = Field(default=5.0, ge=0)
    # Terms of RSA-GAN and its relatives; with these and ``perceptual`` at 0 no perceptual network is loaded.
    content: float = Field(default=0.0, ge=0)  # feature maps of perceptual.style_layers
    style: float = Field(default=0.0, ge=0)  # their Gram matrices
    contextual: float = Field(default=0.0, ge=0)  # of perceptual.contextual_layers
    correspondence: float = Field(
        default=0.0, ge=0
    )  # the source image warped by the generator's correspondence
    parsing: float = Field(default=0.0, ge=0)  # cross-entropy of the generator's parsing head


class PerceptualConfig(Config):
    """The network phi of eq. 6; its outside weights must be on this machine or be named by ``path``.

    A file that ends early (VGG-16 to relu3_3) wants the layers named that it has.
    """

    network: str = "vgg19"
    layers: tuple[str, ...] = ("relu1_2",)  # (28)
    norm: Literal["l1", "l2"] = "l2"  # squared error as in eq. 6, or the absolute one of the prose (27)
    style_layers: tuple[str, ...] = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
    contextual_layers: tuple[str, ...] = ("relu3_2", "relu4_2")
    path: Path | None = None  # weight file; default: where torchvision keeps it


class AdversarialConfig(Config):
    """The game between the two networks (eq. 4)."""

    mode: Literal["bce", "lsgan"] = "bce"  # (23)
    real_label: float = Field(default=1.0, gt=0, le=1)  # 0.9 is the "soft label" reading (23)
    pool: int = Field(default=50, ge=0)  # earlier fakes shown again to the discriminator
    loss_scale: float = Field(default=0.5, gt=0)  # of the discriminator's loss (25)


class OutputConfig(Config):
    """What is written how often; every figure counts optimizer steps."""

    log_every: int = Field(default=25, ge=1)
    sample_every: int = Field(default=500, ge=1)
    sample_pairs: int = Field(default=8, ge=1, le=1024)  # rows of a sample grid
    validate_every: int = Field(default=500, ge=1)
    validate_pairs: int = Field(default=256, ge=1)  # the first N validation pairs
    checkpoint_every: int = Field(default=500, ge=1)
    keep_last: int = Field(default=2, ge=2)  # checkpoints


class GanConfig(Config):
    """Everything that the numbers of a run depend on."""

    data: DataConfig
    generator: str = "san"  # a key of models.generators.GENERATORS
    generator_args: dict[str, Any] = Field(default_factory=dict)  # keywords of its constructor
    start_from: Path | None = None  # run folder whose networks a new run begins with; None: random weights
    discriminator_args: dict[str, Any] = Field(default_factory=dict)  # keywords of build_discriminator
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    weights: LossWeights = LossWeights()
    perceptual: PerceptualConfig = PerceptualConfig()
    gan: AdversarialConfig = AdversarialConfig()
    output: OutputConfig = OutputConfig()
    batch_size: int = Field(
        default=32, ge=1, le=MOST_AT_ONCE
    )  # pairs of one optimizer step, over all processes and accumulated parts
    accumulate: int = Field(
        default=1, ge=1
    )  # parts in which a process works a batch off, one after the other
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    channels_last: bool = True
    compile: bool = False  # torch.compile of both networks; minutes of start-up, see docs/results.md
    ema_decay: float = Field(
        default=0.999, ge=0, lt=1
    )  # of the averaged generator, which is the one that is used
    threads: int | None = Field(
        default=None, ge=1, le=MOST_SIDE_BY_SIDE
    )  # of the CPU; default: PyTorch's own choice
    seed: int = 0

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole schedule."""
        return self.steps_of(self.schedule.epochs_const + self.schedule.epochs_decay)

    def steps_of(self, epochs: float) -> int:
        """Optimizer steps of so many epochs, at least 1 where ``epochs`` > 0."""
        return -int(-epochs * self.data.pairs_per_epoch // self.batch_size)

    @property
    def feature_layers(self) -> dict[str, tuple[str, ...]]:
        """Layers of the perceptual network by loss term, of the terms in use."""
        phi, weights = self.perceptual, self.weights
        layers = {
            "perceptual": (weights.perceptual, phi.layers),
            "content": (weights.content, phi.style_layers),
            "style": (weights.style, phi.style_layers),
            "contextual": (weights.contextual, phi.contextual_layers),
        }
        return {term: names for term, (weight, names) in layers.items() if weight}

    @model_validator(mode="after")
    def _terms_have_a_generator(self) -> Self:
        args = self.generator_args
        for term, option, default in (
            ("correspondence", "correspondence", True),
            ("parsing", "parsing_head", False),
        ):
            if getattr(self.weights, term) and (self.generator != "rsa_gan" or not args.get(option, default)):
                raise ValueError(f"weights.{term} needs generator=rsa_gan with {option}=true")
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of accumulate {self.accumulate}"
            )
        if self.total_steps < 1:
            raise ValueError("schedule: epochs_const + epochs_decay must be above 0")
        return self
