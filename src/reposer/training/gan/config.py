"""The settings of a GAN training: frozen, typed, saved into the run folder; the defaults are SAN's.

Where the paper can be read in more than one way, an option has each reading (docs/explanation/san.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from reposer.config import Config
from reposer.errors import LARGEST, MOST_AT_ONCE, MOST_SOURCES
from reposer.training.config import EpochsConfig, OutputConfig, learning_rate


class DataConfig(Config):
    """Which prepared folder, which pairs of it, and how many of them make an epoch."""

    folder: Path  # written by `reposer prepare`
    pairs: str = "pairs_train.csv"  # inside the folder; both images must be of the split "train"
    validation_pairs: str = (
        "pairs_val.csv"  # inside the folder; empty: no validation, samples from training pairs
    )
    max_pairs: int | None = Field(default=None, ge=1)  # use the first N pairs only
    pairs_per_epoch: int = Field(default=4000, ge=1)  # draws that are called an epoch
    flip: bool = False  # mirror half of the pairs, labels and joints swapped
    # images of the source person that a pair has at most, one of them the pair's own; each number as often
    sources: int = Field(default=1, ge=1, le=MOST_SOURCES)


class OptimizerConfig(Config):
    """Adam, the same for both networks."""

    lr: float = Field(default=2e-4, gt=0)
    beta1: float = Field(default=0.5, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)


class ScheduleConfig(Config):
    """Constant learning rate, then a straight line to zero."""

    epochs_const: float = Field(default=300, ge=0)
    epochs_decay: float = Field(default=200, ge=0)


class LossWeights(Config):
    """Alpha, beta and gamma of eq. 7, and further terms; a term of weight 0 is not computed.

    Any other key of ``losses.image_gan.TERMS`` is a setting too, 0 where it is not given.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[float, Field(ge=0, le=LARGEST)]] = Field(init=False)

    adversarial: float = Field(default=10.0, ge=0)
    l1: float = Field(default=15.0, ge=0)
    perceptual: float = Field(default=5.0, ge=0)
    # Terms of RSA-GAN and its relatives; with these and ``perceptual`` at 0 no perceptual network is loaded.
    content: float = Field(default=0.0, ge=0)  # feature maps of perceptual.style_layers
    style: float = Field(default=0.0, ge=0)  # their Gram matrices
    contextual: float = Field(default=0.0, ge=0)  # of perceptual.contextual_layers
    correspondence: float = Field(default=0.0, ge=0)  # the source image warped by the generator
    parsing: float = Field(default=0.0, ge=0)  # cross-entropy of the generator's parsing head
    identity: float = Field(default=0.0, ge=0)  # features of identity.network, generated against wanted

    @classmethod
    def further_keys(cls) -> list[str]:
        """The terms without a field of their own."""
        from reposer.losses.image_gan import TERMS  # here, because it imports torchvision

        return [name for name in TERMS if name not in cls.model_fields]

    def of_terms(self) -> dict[str, float]:
        """The weight of each term that has one."""
        return {name: weight for name, weight in self.model_dump().items() if weight}


class PerceptualConfig(Config):
    """The network phi of eq. 6; its outside weights must be on this machine or be named by ``path``.

    A file that ends early (VGG-16 to relu3_3) wants the layers named that it has.
    """

    network: str = "vgg19"
    layers: tuple[str, ...] = ("relu1_2",)
    norm: Literal["l1", "l2"] = "l2"  # squared error as in eq. 6, or the absolute one of the prose
    style_layers: tuple[str, ...] = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
    contextual_layers: tuple[str, ...] = ("relu3_2", "relu4_2")
    path: Path | None = None  # weight file; default: where torchvision keeps it


class IdentityConfig(Config):
    """The Re-ID network of the identity term: frozen, and trained on the training people alone.

    It must not be the network that judges the generator or filters its pictures.
    """

    network: Path | None = None  # run of `reposer reid train`, or an exported folder
    maps: float = Field(default=0.0, ge=0)  # weight of its last maps beside that of its feature


class AdversarialConfig(Config):
    """The game between the two networks (eq. 4)."""

    mode: Literal["bce", "lsgan"] = "bce"
    real_label: float = Field(default=1.0, gt=0, le=1)  # 0.9 is the "soft label" reading
    pool: int = Field(default=50, ge=0)  # earlier fakes shown again to the discriminator
    loss_scale: float = Field(default=0.5, gt=0)  # of the discriminator's loss


class GanOutputConfig(OutputConfig):
    """What is written how often; every figure counts optimizer steps."""

    sample_every: int = Field(default=500, ge=1)
    sample_pairs: int = Field(default=8, ge=1, le=1024)  # rows of a sample grid
    validate_pairs: int = Field(default=256, ge=1)  # the first N validation pairs


class GanConfig(EpochsConfig):
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
    identity: IdentityConfig = IdentityConfig()
    gan: AdversarialConfig = AdversarialConfig()
    output: GanOutputConfig = GanOutputConfig()
    # pairs of one optimizer step, over all processes and accumulated parts
    batch_size: int = Field(default=32, ge=1, le=MOST_AT_ONCE)
    # parts in which a process works a batch off, one after the other
    accumulate: int = Field(default=1, ge=1)
    channels_last: bool = True
    compile: bool = False  # torch.compile of both networks; minutes of start-up, see docs/results
    # of the averaged generator, which is the one that is used
    ema_decay: float = Field(default=0.999, ge=0, lt=1)

    @property
    def epoch(self) -> int:
        """Pairs that are drawn in an epoch."""
        return self.data.pairs_per_epoch

    @property
    def epochs(self) -> float:
        """Epochs of the whole schedule."""
        return self.schedule.epochs_const + self.schedule.epochs_decay

    def rate(self, step: int, total: int) -> float:
        """Learning rate of the update that follows ``step`` completed ones, of both networks."""
        schedule = self.schedule
        const, decay = self.steps_of(schedule.epochs_const), self.steps_of(schedule.epochs_decay)
        return learning_rate(step, self.optimizer.lr, const, decay)

    def stretched(self, images: float) -> Self:
        """The same schedule over so many drawn pairs."""
        schedule, share = self.schedule, images / self.data.pairs_per_epoch / self.epochs
        const, decay = schedule.epochs_const * share, schedule.epochs_decay * share
        return self.changed(schedule=schedule.changed(epochs_const=const, epochs_decay=decay))

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

    @property
    def extra_terms(self) -> list[str]:
        """The terms in use that look at the generator's second result."""
        from reposer.models.generators import extra_terms

        return [term for term in extra_terms(self.generator) if self.weights.of_terms().get(term)]

    @model_validator(mode="after")
    def _terms_have_a_generator(self) -> Self:
        from reposer.models.generators import GENERATORS, extra_terms, option_is_on

        for term in self.weights.of_terms():
            offering = [name for name in GENERATORS if term in extra_terms(name)]
            if not offering:
                continue  # a term on the image, which every generator has
            name = self.generator if self.generator in offering else offering[0]
            option = extra_terms(name)[term]
            if name != self.generator or not option_is_on(name, option, self.generator_args):
                raise ValueError(f"weights.{term} needs generator={name} with {option}=true")
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if bool(self.weights.identity) != (self.identity.network is not None):
            raise ValueError("weights.identity above 0 and identity.network=RUN belong together")
        if self.gan.pool and self.discriminator_args.get("pairing") == "carried":
            raise ValueError("the pairing carried needs gan.pool=0: a pool keeps no further sources")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of accumulate {self.accumulate}"
            )
        if self.total_steps < 1:
            raise ValueError("schedule: epochs_const + epochs_decay must be above 0")
        return self
