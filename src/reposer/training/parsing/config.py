"""The settings of the trainings of parsers and predictors: frozen, typed, saved into the run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from reposer.config import Config
from reposer.data.randomization import RandomizeConfig
from reposer.training.config import OutputConfig, TrainingConfig, half_cosine, steps_of
from reposer.training.gan.config import DataConfig

# ---- What the trainings of parser and predictor share: optimizer, schedule, output.


class MapOptimizerConfig(Config):
    """AdamW: warm-up, then a half cosine to 0."""

    lr: float = Field(default=2e-3, gt=0)
    weight_decay: float = Field(default=1e-2, ge=0)
    epochs: float = Field(default=3, gt=0)
    warmup_steps: int = Field(default=100, ge=0)


class MapOutputConfig(OutputConfig):
    """What is written how often; every figure counts optimizer steps."""

    validate_every: int = Field(default=300, ge=1)
    validation_images: int = Field(default=500, ge=1)  # or pairs; at most, evenly chosen
    checkpoint_every: int = Field(default=300, ge=1)


class MapTrainingConfig(TrainingConfig):
    """The part that the trainings of parser and predictor share."""

    optimizer: MapOptimizerConfig = MapOptimizerConfig()
    output: MapOutputConfig = MapOutputConfig()

    def rate(self, step: int, total: int) -> float:
        """Learning rate of the update that follows ``step`` completed ones of ``total``."""
        warmup = min(self.optimizer.warmup_steps, total // 2)
        if step < warmup:
            return self.optimizer.lr * (step + 1) / (warmup + 1)
        return self.optimizer.lr * half_cosine(step, warmup, total)


# ---- A parser.


class ParsingDataConfig(Config):
    """Which maps are learned, and which only watched."""

    folder: Path  # written by `reposer prepare`
    splits: tuple[str, ...] = ("train",)
    tuning_people: int = Field(default=0, ge=0)  # so many with the highest pids of these are held out


class ParsingAugmentConfig(Config):
    """How images and maps are changed together (data.transforms)."""

    zoom: float = Field(default=0.15, ge=0, lt=1)
    shift: float = Field(default=0.05, ge=0, lt=0.5)  # share of the image's size
    flip: float = Field(default=0.5, ge=0, le=1)
    light: float = Field(default=0.25, ge=0, lt=1)  # brightness and contrast


class ParsingNetworkConfig(Config):
    """The network; its keywords are those of ``models.parsing_networks.ParsingNetwork``."""

    widths: tuple[int, int, int, int] = (128, 96, 64, 32)  # of the decoder
    keras: bool = False  # MobileNetV2 in Keras' form


class GuidedParserConfig(Config):
    """The network that sees mask and joints too; its keywords are those of ``GuidedParser`` there."""

    widths: tuple[int, int, int, int] = (24, 48, 96, 128)  # at 1/2, 1/4, 1/8, 1/16
    blocks: int = Field(default=2, ge=0)  # residual ones at 1/16
    sigma: float = Field(default=0.025, gt=0)  # of joints and limbs, in image heights
    priors: tuple[float, ...] = ()  # 20 factors of the labels' probabilities in use; empty: all 1


class ParsingOptimizerConfig(MapOptimizerConfig):
    """The shared optimizer; ``lr`` is that of the decoder."""

    encoder_factor: float = Field(default=0.25, ge=0)  # times lr, for the encoder


class ParsingLossConfig(Config):
    """Weights of the losses, 0 leaves one out."""

    cross_entropy: float = Field(default=1.0, ge=0)
    dice: float = Field(default=0.5, ge=0)


class ParsingConfig(MapTrainingConfig):
    """Everything that a parser's weights depend on."""

    later: ClassVar[frozenset[str]] = frozenset({"guided", "randomize"})

    data: ParsingDataConfig
    augment: ParsingAugmentConfig = ParsingAugmentConfig()
    parser: ParsingNetworkConfig = ParsingNetworkConfig()
    guided: GuidedParserConfig | None = None  # this network in place of ``parser``
    randomize: RandomizeConfig = RandomizeConfig()  # of a guided network's images, in place of ``augment``
    optimizer: ParsingOptimizerConfig = ParsingOptimizerConfig()
    loss: ParsingLossConfig = ParsingLossConfig()
    initial: Literal["random", "imagenet"] = "imagenet"  # weights of the encoder before the first step
    initial_path: Path | None = None  # file for "imagenet"; default: the official one, in the weights folders

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if not (self.loss.cross_entropy or self.loss.dice):
            raise ValueError("every loss has weight 0")
        if self.guided is not None and self.initial != "random":
            raise ValueError("a guided parser begins with random weights: initial=random")
        factor = ParsingOptimizerConfig().encoder_factor
        unread = {
            "parser": self.parser != ParsingNetworkConfig(),
            "augment": self.augment != ParsingAugmentConfig(),
            "encoder_factor": self.optimizer.encoder_factor != factor,
        }
        for name, given in unread.items():
            if self.guided is not None and given:
                raise ValueError(f"{name} is given but a guided parser would not read it")
        if self.guided is None and self.randomize != RandomizeConfig():
            raise ValueError("randomize is given but only a guided parser would read it: set augment")
        if self.initial_path is not None and self.initial == "random":
            raise ValueError("initial_path is given but initial=random would not read it")
        return self


# ---- A predictor of label maps.


class PredictorLossConfig(Config):
    """Weights of the losses."""

    cross_entropy: float = Field(default=1.0, ge=0)
    dice: float = Field(default=0.5, ge=0)
    mask: float = Field(default=0.5, ge=0)  # binary cross-entropy of the person mask


class PredictorConfig(MapTrainingConfig):
    """Everything that a predictor's weights depend on; an epoch is ``data.pairs_per_epoch`` pairs."""

    data: DataConfig
    predictor: str = "parsing_predictor"  # a key of models.generators.PREDICTORS
    predictor_args: dict[str, Any] = Field(default_factory=dict)  # keywords of its constructor
    loss: PredictorLossConfig = PredictorLossConfig()

    @property
    def accumulate(self) -> int:
        """Parts of a batch: one, which GanData asks for."""
        return 1

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole schedule."""
        return steps_of(self.optimizer.epochs, self.data.pairs_per_epoch, self.batch_size)
