"""What the training of a parser can be told: frozen, typed, saved into the run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from reposer.config import Config
from reposer.training.map_config import MapOptimizerConfig, MapTrainingConfig


class ParsingDataConfig(Config):
    """Which maps are learned, and which only watched."""

    folder: Path  # written by `reposer prepare`
    splits: tuple[str, ...] = ("train",)
    tuning_people: int = Field(default=0, ge=0)  # so many with the highest pids of these are held out


class ParsingAugmentConfig(Config):
    """How images and maps are changed together (data.parsing_transforms)."""

    zoom: float = Field(default=0.15, ge=0, lt=1)
    shift: float = Field(default=0.05, ge=0, lt=0.5)  # share of the image's size
    flip: float = Field(default=0.5, ge=0, le=1)
    light: float = Field(default=0.25, ge=0, lt=1)  # brightness and contrast


class ParsingNetworkConfig(Config):
    """The network; its keywords are those of ``models.parsing_network.ParsingNetwork``."""

    widths: tuple[int, int, int, int] = (128, 96, 64, 32)  # of the decoder
    keras: bool = False  # MobileNetV2 in Keras' form


class ParsingOptimizerConfig(MapOptimizerConfig):
    """The shared optimizer; ``lr`` is that of the decoder."""

    encoder_factor: float = Field(default=0.25, ge=0)  # times lr, for the encoder


class ParsingLossConfig(Config):
    """Weights of the losses, 0 leaves one out."""

    cross_entropy: float = Field(default=1.0, ge=0)
    dice: float = Field(default=0.5, ge=0)


class ParsingConfig(MapTrainingConfig):
    """Everything that a parser's weights depend on."""

    data: ParsingDataConfig
    augment: ParsingAugmentConfig = ParsingAugmentConfig()
    parser: ParsingNetworkConfig = ParsingNetworkConfig()
    optimizer: ParsingOptimizerConfig = ParsingOptimizerConfig()
    loss: ParsingLossConfig = ParsingLossConfig()
    initial: Literal["random", "imagenet"] = "imagenet"  # weights of the encoder before the first step
    initial_path: Path | None = None  # file for "imagenet"; default: the official one, in the weights folders

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if not (self.loss.cross_entropy or self.loss.dice):
            raise ValueError("every loss has weight 0")
        if self.initial_path is not None and self.initial == "random":
            raise ValueError("initial_path is given but initial=random would not read it")
        return self
