"""What networks of maps are trained for: parsers (an image to its map), predictors (a pair to one)."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from reposer.data.packed import PackedPeople
from reposer.data.samplers import draw_images, rank_slice
from reposer.data.transforms import draw_parsing_transforms, transform_parsing
from reposer.errors import UserError
from reposer.losses.segmentation import parsing_loss, person_loss
from reposer.metrics.pose_and_parsing import label_confusion, mean_iou
from reposer.models.generators import build_predictor
from reposer.models.parsing_network import ParsingNetwork, load_imagenet
from reposer.models.parsing_predictor import decide_maps
from reposer.runtime import Runtime
from reposer.storage.files import sha256_file
from reposer.structures import MISSING_LABEL, NUM_LABELS
from reposer.training.gan.data import GanData
from reposer.training.parsing.config import MapTrainingConfig, ParsingConfig, PredictorConfig

# ---- What a network of maps is trained for: the part of a training that parser and predictor do not share.


class MapTask(Protocol):
    """Data, network and loss of a training."""

    @property
    def config(self) -> MapTrainingConfig:
        """All settings."""

    @property
    def people(self) -> PackedPeople:
        """The prepared people."""

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole schedule."""

    def build(self) -> tuple[nn.Module, dict[str, Any]]:
        """A new network with its first weights, and facts about them for environment.json."""

    def rate_factor(self, parameter: str) -> float:
        """What the learning rate is multiplied by for the parameter of that name."""

    def loss(
        self, network: nn.Module, step: int, runtime: Runtime
    ) -> tuple[Tensor, dict[str, Tensor], list[str]]:
        """Loss of a step, its detached parts, and the names of what it was computed on."""

    def validate(self, network: nn.Module, runtime: Runtime) -> dict[str, float]:
        """Figures on people who are only watched; empty where there are none. ``network`` is in eval mode."""

    def inputs(self) -> dict[str, str]:
        """sha256 of what a run must find unchanged, by name."""

    def facts(self) -> dict[str, Any]:
        """What a user of the network must know without the data at hand; goes into checkpoints."""


# ---- The batches of a parser's training by step, and the people who are only watched.


class ParsingData:
    """A prepared folder as training batches of images and maps; images without a map are left out.

    Args:
        config: names the folder, the people and the augmentation.
        rank: number of this process.
        world_size: number of processes.

    Raises:
        UserError: no prepared folder, no map, nobody left to train on, or a batch that cannot be shared.
    """

    def __init__(self, config: ParsingConfig, rank: int = 0, world_size: int = 1) -> None:
        self.people = PackedPeople.open(config.data.folder / "packed")
        rows = np.flatnonzero(np.isin(self.people.splits, config.data.splits))
        rows = rows[[bool((self.people.parsing[row] != MISSING_LABEL).any()) for row in rows]]
        pids = np.unique(self.people.pids[rows])
        held = config.data.tuning_people
        if len(pids) <= held:
            problem = f"{len(pids)} people with maps in {', '.join(config.data.splits)}, {held} to hold out"
            raise UserError(f"{config.data.folder}: {problem}", "prepare a data set with parsing maps")
        tuning = np.isin(self.people.pids[rows], pids[len(pids) - held :])
        self.rows: NDArray[np.int64] = rows[~tuning]
        self.tuning: NDArray[np.int64] = rows[tuning]
        self.pids: NDArray[np.int64] = pids[: len(pids) - held]
        if config.batch_size % world_size:
            raise UserError(
                f"batch_size {config.batch_size} cannot be shared by {world_size} processes",
                f"make it a multiple of {world_size}",
            )
        self._config = config
        self._part = rank_slice(config.batch_size, rank, world_size)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole schedule."""
        return -int(-self._config.optimizer.epochs * len(self.rows) // self._config.batch_size)

    def batch(self, step: int) -> tuple[Tensor, Tensor, list[str]]:
        """Images (b, 3, H, W) uint8, maps (b, H, W) uint8 and names of this process in a step."""
        config, augment = self._config, self._config.augment
        rows = self.rows[draw_images(len(self.rows), config.batch_size, config.seed, step)][self._part]
        draws = draw_parsing_transforms(
            config.batch_size, augment.zoom, augment.shift, augment.flip, augment.light, config.seed, step
        )[self._part]
        images, maps = transform_parsing(*self.read(rows), draws)
        return images, maps, [self.people.names[row] for row in rows]

    def read(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """(b, 3, H, W) uint8 and (b, H, W) uint8 as they are stored."""
        images = torch.from_numpy(np.take(self.people.images, rows, axis=0)).permute(0, 3, 1, 2)
        return images, torch.from_numpy(np.take(self.people.parsing, rows, axis=0))


# ---- A parser's training: images to the maps that were given for them.

_VALIDATION_BATCH = 64


class ParserTask:
    """A MapTask.

    Args:
        config: of the training.
        runtime: which process of how many this is.
    """

    def __init__(self, config: ParsingConfig, runtime: Runtime) -> None:
        self.config = config
        self._data = ParsingData(config, runtime.rank, runtime.world_size)
        self._initial: dict[str, str] = {}  # hash of the first weights' file

    @property
    def people(self) -> PackedPeople:
        """See MapTask."""
        return self._data.people

    @property
    def total_steps(self) -> int:
        """See MapTask."""
        return self._data.total_steps

    def build(self) -> tuple[nn.Module, dict[str, Any]]:
        """See MapTask."""
        network = ParsingNetwork(**self.config.parser.model_dump())
        if self.config.initial == "random":
            return network, {"initial": "random weights"}
        file = load_imagenet(network, self.config.initial_path)
        self._initial = {"initial": sha256_file(file)}
        return network, {"initial": f"ImageNet weights {file.name}"}

    def rate_factor(self, parameter: str) -> float:
        """See MapTask."""
        return self.config.optimizer.encoder_factor if parameter.startswith("encoder.") else 1.0

    def loss(
        self, network: nn.Module, step: int, runtime: Runtime
    ) -> tuple[Tensor, dict[str, Tensor], list[str]]:
        """See MapTask."""
        images, maps, names = self._data.batch(step)
        with runtime.autocast():
            scores = network(images.to(runtime.device))
        weights = self.config.loss
        loss, parts = parsing_loss(scores, maps.to(runtime.device), weights.cross_entropy, weights.dice)
        return loss, parts, names

    def validate(self, network: nn.Module, runtime: Runtime) -> dict[str, float]:
        """See MapTask: agreement with the maps of the people who are held out."""
        rows, most = self._data.tuning, self.config.output.validation_images
        if not len(rows):
            return {}
        rows = rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64)]
        confusion = np.zeros((NUM_LABELS, NUM_LABELS), np.int64)
        for start in range(0, len(rows), _VALIDATION_BATCH):
            images, maps = self._data.read(rows[start : start + _VALIDATION_BATCH])
            with torch.inference_mode(), runtime.autocast():
                predicted = network(images.to(runtime.device)).argmax(1).to(torch.uint8).cpu()
            confusion += label_confusion(maps.numpy(), predicted.numpy())
        accuracy = float(np.trace(confusion) / max(confusion.sum(), 1))
        return {"validation/miou": mean_iou(confusion), "validation/accuracy": accuracy}

    def inputs(self) -> dict[str, str]:
        """See MapTask."""
        return {"prepared": self._data.people.content_hash} | self._initial

    def facts(self) -> dict[str, Any]:
        """See MapTask."""
        people = self._data.people
        return {
            "pids": self._data.pids.tolist(),
            **people.training_facts(*self.config.data.splits),
            "size": list(people.size),
        }


# ---- A predictor's training: pairs of one person to the target's maps.

DICE_SMOOTHING = 1.0  # pixels; rsa_gan.md's form of Dice


class PredictorTask:
    """A MapTask.

    Args:
        config: of the training.
        runtime: which process of how many this is.
    """

    def __init__(self, config: PredictorConfig, runtime: Runtime) -> None:
        self.config = config
        self._data = GanData(config, runtime.rank, runtime.world_size)

    @property
    def people(self) -> PackedPeople:
        """See MapTask."""
        return self._data.people

    @property
    def total_steps(self) -> int:
        """See MapTask."""
        return self.config.total_steps

    def build(self) -> tuple[nn.Module, dict[str, Any]]:
        """See MapTask."""
        network = build_predictor(self.config.predictor, **self.config.predictor_args)
        return network, {"initial": "random weights"}

    def rate_factor(self, parameter: str) -> float:
        """See MapTask."""
        return 1.0

    def loss(
        self, network: nn.Module, step: int, runtime: Runtime
    ) -> tuple[Tensor, dict[str, Tensor], list[str]]:
        """See MapTask."""
        (part,) = self._data.parts(step)
        batch = part.batch.to(runtime.device)
        with runtime.autocast():
            scores = network(batch)
        weights = self.config.loss
        loss, parts = parsing_loss(
            scores.parsing, batch.target_parsing, weights.cross_entropy, weights.dice, DICE_SMOOTHING
        )
        person = person_loss(scores.mask, batch.target_mask)
        return loss + weights.mask * person, parts | {"parsing/mask": person.detach()}, list(part.names)

    def validate(self, network: nn.Module, runtime: Runtime) -> dict[str, float]:
        """See MapTask: agreement with the true maps of the validation pairs."""
        pairs, most = self._data.validation_pairs, self.config.output.validation_images
        if not len(pairs):
            return {}
        pairs = pairs[np.linspace(0, len(pairs) - 1, min(most, len(pairs))).astype(np.int64)]
        confusion = np.zeros((NUM_LABELS, NUM_LABELS), np.int64)
        both = either = 0
        for start in range(0, len(pairs), _VALIDATION_BATCH):
            batch = self._data.batch(pairs[start : start + _VALIDATION_BATCH])
            with torch.inference_mode(), runtime.autocast():
                parsing, mask = (x.cpu() for x in decide_maps(network(batch.to(runtime.device))))
            confusion += label_confusion(batch.target_parsing.numpy(), parsing.numpy())
            both += int((mask & batch.target_mask).sum())
            either += int((mask | batch.target_mask).sum())
        return {"validation/miou": mean_iou(confusion), "validation/mask_iou": both / max(either, 1)}

    def inputs(self) -> dict[str, str]:
        """See MapTask."""
        return self._data.inputs()

    def facts(self) -> dict[str, Any]:
        """See MapTask."""
        people = self._data.people
        return people.training_facts("train") | {"size": list(people.size)}
