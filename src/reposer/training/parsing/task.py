"""Trainings of networks of label maps: parsers (an image to its map) and predictors (a pair to the target's).

With several processes, the Dice loss and BatchNorm statistics on CPUs are those of each process's own images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from reposer.data.packed import PackedPeople, has_maps
from reposer.data.parsing import convert
from reposer.data.randomization import STREAM, Guided, Person, randomize
from reposer.data.samplers import draw_images, rank_slice
from reposer.data.transforms import draw_parsing_transforms, transform_parsing
from reposer.errors import UserError
from reposer.losses.segmentation import parsing_loss, person_loss
from reposer.metrics.similarity import label_confusion, mean_iou, merged_confusion
from reposer.models.generators import build_predictor
from reposer.models.parsing_networks import GuidedParser, ParsingNetwork, decide_maps, load_imagenet
from reposer.runtime import Runtime
from reposer.storage.files import sha256_file
from reposer.structures import MISSING_LABEL, NUM_LABELS
from reposer.training.config import steps_of
from reposer.training.gan.data import GanData, Part
from reposer.training.parsing.config import MapTrainingConfig, ParsingConfig, PredictorConfig
from reposer.training.state import TrainingState, place, wrap

_VALIDATION_BATCH = 64
DICE_SMOOTHING = 1.0  # pixels, for predictors (see dice_loss)

# ---- What the two tasks share.


class MapTask:
    """A Task of :mod:`reposer.training.loop`; subclasses bring data, network and loss.

    Args:
        config: everything that the result depends on.
        runtime: device and process group.
        network: with its first weights.
        factors: what the learning rate is multiplied by, by the beginning of a parameter's name.
        initial: what the first weights are.
    """

    counted: str  # see Task
    wrote = "checkpoints/, metrics.jsonl, config.json, environment.json"

    def __init__(
        self,
        config: MapTrainingConfig,
        runtime: Runtime,
        network: nn.Module,
        initial: str = "random weights",
        factors: Mapping[str, float] | None = None,
    ) -> None:
        self.notes = {"initial": initial}
        self._runtime = runtime
        self._bare = place(network, runtime)
        optimizer = build_optimizer(self._bare, config, factors or {})
        self.state = TrainingState({"network": self._bare}, {"optimizer": optimizer})
        self._network = wrap(self._bare, runtime)
        self._network.train()

    def learn(self, loss: Tensor, parts: Mapping[str, Tensor], images: Sequence[str]) -> None:
        """The end of a step: backward, figures, update."""
        self._runtime.accelerator.backward(loss)
        self.state.means.add(parts)
        self.state.update("parsing", "network", parts, images)

    def validate(self) -> dict[str, float]:
        """See Task: how far maps agree with those of people who are only watched."""
        self._bare.eval()
        figures = self.agreement()
        self._bare.train()
        return figures

    def agreement(self) -> dict[str, float]:
        """Figures of the network in eval mode; empty where nobody is watched."""
        raise NotImplementedError

    def show(self, last: bool) -> None:
        """See Task: there is nothing to see."""

    def begin(self) -> None:
        """See Task."""


def build_optimizer(
    network: nn.Module, config: MapTrainingConfig, factors: Mapping[str, float]
) -> torch.optim.Optimizer:
    """AdamW; two groups for each learning rate, slowest first: biases and norms, without decay; the rest."""
    options = config.optimizer
    named = [
        (next((factor for start, factor in factors.items() if name.startswith(start)), 1.0), parameter)
        for name, parameter in network.named_parameters()
    ]
    groups = []
    for factor in sorted({factor for factor, _ in named}):
        for small in (True, False):
            chosen = [p for rate, p in named if rate == factor and (p.dim() < 2) == small]
            decay = 0.0 if small else options.weight_decay
            groups.append({"params": chosen, "factor": factor, "weight_decay": decay})
    return torch.optim.AdamW(groups, lr=options.lr, fused=True)


# ---- A parser's training: images to the maps that were given for them; of a guided one, images, masks and
# joints, all of them randomized.

_PARTS = convert(np.arange(NUM_LABELS, dtype=np.uint8)[None], "lip20", "parts8")[
    0
]  # (20,) part of each label


class ParserTask(MapTask):
    """See MapTask.

    Raises:
        UserError: data, weights or configuration are not in order; names what.
    """

    counted = "images"

    def __init__(self, config: ParsingConfig, runtime: Runtime) -> None:
        self.config = config
        self._data = ParsingData(config, runtime.rank, runtime.world_size)
        self.total_steps = self._data.total_steps
        self._initial: dict[str, str] = {}  # hash of the first weights' file
        network: nn.Module = ParsingNetwork(**config.parser.model_dump())
        initial = "random weights"
        if config.guided is not None:
            network = GuidedParser(**config.guided.model_dump())
        elif config.initial != "random":
            assert isinstance(network, ParsingNetwork)
            file = load_imagenet(network, config.initial_path)
            self._initial, initial = {"initial": sha256_file(file)}, f"ImageNet weights {file.name}"
        super().__init__(config, runtime, network, initial, {"encoder.": config.optimizer.encoder_factor})

    def fetch(self, step: int) -> Labeled:
        """See Task."""
        if self.config.guided is not None:
            return self._data.guided_batch(step)
        images, maps, names = self._data.batch(step)
        return Labeled((images,), maps, names)

    def step(self, batch: Labeled) -> None:
        """See Task: cross-entropy and Dice of the image's own map."""
        inputs, labels, names = batch
        with self._runtime.autocast():
            scores = self._network(*(x.to(self._runtime.device) for x in inputs))
        weights = self.config.loss
        labels = labels.to(self._runtime.device)
        loss, parts = parsing_loss(scores, labels, weights.cross_entropy, weights.dice)
        self.learn(loss, parts, names)

    def agreement(self) -> dict[str, float]:
        """See MapTask: with the maps of the people who are held out."""
        rows, most = self._data.tuning, self.config.output.validation_images
        if not len(rows):
            return {}
        rows = rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64)]
        confusion = np.zeros((NUM_LABELS, NUM_LABELS), np.int64)
        for start in range(0, len(rows), _VALIDATION_BATCH):
            part = rows[start : start + _VALIDATION_BATCH]
            images, maps = self._data.read(part)
            inputs = (images, *(self._data.guides(part) if self.config.guided is not None else ()))
            with torch.inference_mode(), self._runtime.autocast():
                scores = self._bare(*(x.to(self._runtime.device) for x in inputs))
            predicted = scores.argmax(1).to(torch.uint8).cpu()
            confusion += label_confusion(maps.numpy(), predicted.numpy())
        accuracy = float(np.trace(confusion) / max(confusion.sum(), 1))
        figures = {"validation/miou": mean_iou(confusion), "validation/accuracy": accuracy}
        if self.config.guided is not None:
            figures["validation/parts_miou"] = mean_iou(merged_confusion(confusion, _PARTS))
        return figures

    def inputs(self, new: bool) -> dict[str, str]:
        """See Task."""
        return {"prepared": self._data.people.content_hash} | self._initial

    def facts(self) -> dict[str, Any]:
        """See Task."""
        people = self._data.people
        return {
            "pids": self._data.pids.tolist(),
            **people.training_facts(*self.config.data.splits),
            "size": list(people.size),
        }


class Labeled(NamedTuple):
    """Images of a step with their maps."""

    inputs: tuple[Tensor, ...]  # of the network: images (b, 3, H, W) uint8; of a guided one masks, joints
    maps: Tensor  # (b, H, W) uint8
    names: list[str]


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
        self.people = PackedPeople.open(config.data.folder / "packed", verify=rank == 0)
        rows = np.flatnonzero(np.isin(self.people.splits, config.data.splits))
        rows = rows[has_maps(self.people, rows)]
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
        return steps_of(self._config.optimizer.epochs, len(self.rows), self._config.batch_size)

    def batch(self, step: int) -> tuple[Tensor, Tensor, list[str]]:
        """Images (b, 3, H, W) uint8, maps (b, H, W) uint8 and names of this process in a step."""
        config, augment = self._config, self._config.augment
        rows = self.rows[draw_images(len(self.rows), config.batch_size, config.seed, step)][self._part]
        draws = draw_parsing_transforms(
            config.batch_size, augment.zoom, augment.shift, augment.flip, augment.light, config.seed, step
        )[self._part]
        images, maps = transform_parsing(*self.read(rows), draws)
        return images, maps, [self.people.names[row] for row in rows]

    def guided_batch(self, step: int) -> Labeled:
        """Randomized images, masks (b, H, W) uint8 with MISSING_LABEL, joints (b, 18, 2) and maps."""
        config = self._config
        rows = self.rows[draw_images(len(self.rows), config.batch_size, config.seed, step)]
        samples = [self._randomized(rows, step, p) for p in range(config.batch_size)[self._part]]
        images = torch.from_numpy(np.stack([s.image for s in samples])).permute(0, 3, 1, 2)
        maps, masks, joints = (
            torch.from_numpy(np.stack([getattr(s, name) for s in samples]))
            for name in ("parsing", "mask", "keypoints")
        )
        return Labeled((images, masks, joints), maps, [self.people.names[row] for row in rows[self._part]])

    def _randomized(self, rows: NDArray[np.int64], step: int, position: int) -> Guided:
        """The sample at a position of the global batch."""
        rng = np.random.default_rng([self._config.seed, STREAM, step, position])
        person, companion = (
            self._person(rows[position]),
            self._person(self.rows[rng.integers(len(self.rows))]),
        )
        return randomize(person, companion, self._config.randomize, rng)

    def _person(self, row: int) -> Person:
        people = self.people
        parsing = np.where(people.parsing[row] == MISSING_LABEL, np.uint8(0), people.parsing[row])
        return Person(people.images[row], parsing, people.keypoints[row])

    def guides(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Masks (b, H, W) uint8 and joints (b, 18, 2) as they are stored."""
        masks = np.take(self.people.mask, rows, axis=0).astype(np.uint8)
        return torch.from_numpy(masks), torch.from_numpy(np.take(self.people.keypoints, rows, axis=0))

    def read(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """(b, 3, H, W) uint8 and (b, H, W) uint8 as they are stored."""
        images = torch.from_numpy(np.take(self.people.images, rows, axis=0)).permute(0, 3, 1, 2)
        return images, torch.from_numpy(np.take(self.people.parsing, rows, axis=0))


# ---- A predictor's training: pairs of one person to the target's maps.


class PredictorTask(MapTask):
    """See MapTask.

    Raises:
        UserError: data or configuration are not in order; names what.
    """

    counted = "pairs"

    def __init__(self, config: PredictorConfig, runtime: Runtime) -> None:
        self.config, self.total_steps = config, config.total_steps
        self._data = GanData(config, runtime.rank, runtime.world_size)
        super().__init__(config, runtime, build_predictor(config.predictor, **config.predictor_args))

    def fetch(self, step: int) -> Part:
        """See Task: pairs, and their names."""
        (part,) = self._data.parts(step)
        return part

    def step(self, batch: Part) -> None:
        """See Task: cross-entropy and Dice of the target's labels, and its person mask."""
        pairs = batch.batch.to(self._runtime.device)
        with self._runtime.autocast():
            scores = self._network(pairs)
        weights = self.config.loss
        loss, parts = parsing_loss(
            scores.parsing, pairs.target_parsing, weights.cross_entropy, weights.dice, DICE_SMOOTHING
        )
        person = person_loss(scores.mask, pairs.target_mask)
        self.learn(loss + weights.mask * person, parts | {"parsing/mask": person.detach()}, batch.names)

    def agreement(self) -> dict[str, float]:
        """See MapTask: with the true maps of the validation pairs."""
        pairs, most = self._data.validation_pairs, self.config.output.validation_images
        if not len(pairs):
            return {}
        pairs = pairs[np.linspace(0, len(pairs) - 1, min(most, len(pairs))).astype(np.int64)]
        confusion = np.zeros((NUM_LABELS, NUM_LABELS), np.int64)
        both = either = 0
        for start in range(0, len(pairs), _VALIDATION_BATCH):
            batch = self._data.batch(pairs[start : start + _VALIDATION_BATCH])
            with torch.inference_mode(), self._runtime.autocast():
                parsing, mask = (x.cpu() for x in decide_maps(self._bare(batch.to(self._runtime.device))))
            confusion += label_confusion(batch.target_parsing.numpy(), parsing.numpy())
            both += int((mask & batch.target_mask).sum())
            either += int((mask | batch.target_mask).sum())
        return {"validation/miou": mean_iou(confusion), "validation/mask_iou": both / max(either, 1)}

    def inputs(self, new: bool) -> dict[str, str]:
        """See Task."""
        return self._data.inputs()

    def facts(self) -> dict[str, Any]:
        """See Task."""
        people = self._data.people
        return people.training_facts("train") | {"size": list(people.size)}
