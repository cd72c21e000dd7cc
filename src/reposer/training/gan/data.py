"""The pairs of a training by step: what a process sees of a prepared folder follows from seed and step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from reposer.data.packed import PackedPeople
from reposer.data.pairs import load_pairs
from reposer.data.samplers import budget_rows, draw_flips, draw_itself, draw_pairs, rank_slice
from reposer.data.sources import FurtherSources, draw_counts
from reposer.data.synthetic.people import RealSet
from reposer.data.transforms import flip_pairs
from reposer.errors import UserError
from reposer.models.embedding import EmbeddingInfo
from reposer.storage.files import sha256_file
from reposer.storage.paths import contained, printable
from reposer.structures import PairBatch
from reposer.trained.networks import GeneratorConfig
from reposer.training.config import check_budget, same_people
from reposer.training.gan.config import DataConfig


class PairsConfig(Protocol):
    """What the pairs of a training follow from: a GanConfig or a PredictorConfig."""

    @property
    def data(self) -> DataConfig: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def accumulate(self) -> int: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Part:
    """The share of a process in one accumulated part of a step."""

    batch: PairBatch  # on the CPU, uint8 images
    names: tuple[str, ...]  # "source -> target"


class GanData:
    """A prepared folder as training and validation pairs.

    Args:
        config: names the folder and the pair lists.
        rank: number of this process.
        world_size: number of processes.

    Raises:
        UserError: no prepared folder, an empty or damaged pair list, a training pair with an image outside
            the split "train", or a batch size that the processes cannot share.
    """

    def __init__(self, config: PairsConfig, rank: int = 0, world_size: int = 1) -> None:
        self.people = PackedPeople.open(config.data.folder / "packed", verify=rank == 0)
        kept = _kept_rows(config.data, self.people)
        self.pairs = _training_pairs(config.data, self.people, kept)  # (P, 2) rows of source and target
        self.validation_pairs = _validation_pairs(config.data, self.people)  # (V, 2), may be empty
        if config.batch_size % (config.accumulate * world_size):
            raise UserError(
                f"batch_size {config.batch_size} cannot be shared by {world_size} processes"
                f" in {config.accumulate} parts each",
                f"make it a multiple of {config.accumulate * world_size}",
            )
        self._config, self._rank, self._world_size = config, rank, world_size
        self._further = FurtherSources(self.people, kept) if config.data.sources > 1 else None

    def inputs(self) -> dict[str, str]:
        """sha256 of what a run must find unchanged: the prepared people, and the lists of pairs."""
        data = self._config.data
        lists = {"pairs": data.pairs, "validation pairs": data.validation_pairs}
        hashes = {name: sha256_file(contained(data.folder, path)) for name, path in lists.items() if path}
        return {"prepared": self.people.content_hash, **hashes}

    def check_beginning(self, seen: GeneratorConfig, setting: str) -> None:
        """Refuse to begin with a generator of people or images that this training must not see.

        The run that begins with it says of itself that it saw these training people, so nobody could tell.

        Raises:
            UserError: it was trained on people that are held out here, or on more than the budget.
        """
        who = RealSet(self.people, ("train",)).held_out_in(seen.identity_hash, seen.images_hash)
        if who:
            raise UserError(
                f"{printable(setting)}: was trained on people that {self._config.data.folder} holds out"
                f" ({who})",
                "begin with one that was trained on these training people, or on another data set",
            )
        check_budget(setting, seen, self._config.data, self.people.training_facts("train"))

    def check_identity(self, seen: EmbeddingInfo, setting: str) -> None:
        """Refuse a Re-ID network, of the term of identity, that has seen others than the training people.

        Raises:
            UserError: other people, other splits, or more than the budget.
        """
        facts = self.people.training_facts("train")
        if seen.splits != ("train",) or not same_people(seen, facts):
            raise UserError(
                f"{printable(setting)}: was not trained on the training people of {self._config.data.folder}"
                " alone",
                "train one there: reposer reid train PRESET --data FOLDER",
            )
        check_budget(setting, seen, self._config.data, facts)

    def parts(self, step: int) -> Iterator[Part]:
        """The batch of a step, as the parts that this process works off one after the other.

        Over all processes and parts it is the same global batch, whatever their number.
        """
        config = self._config
        rows = self.pairs[draw_pairs(len(self.pairs), config.batch_size, config.seed, step)]
        itself = draw_itself(config.batch_size, config.seed, step, config.data.itself)
        rows[itself, 1] = rows[itself, 0]
        flips = draw_flips(config.batch_size, config.seed, step, 0.5 if config.data.flip else 0.0)
        counts = draw_counts(config.batch_size, config.data.sources, config.seed, step)
        share = config.batch_size // config.accumulate
        mine = rank_slice(share, self._rank, self._world_size)
        for start in range(0, config.batch_size, share):
            chosen = slice(start + mine.start, start + mine.stop)
            batch = self.batch(rows[chosen], counts[chosen])
            if config.data.flip:
                batch = flip_pairs(batch, flips[chosen])
            names = (f"{self.people.names[s]} -> {self.people.names[t]}" for s, t in rows[chosen].tolist())
            yield Part(batch, tuple(names))

    def batch(self, pairs: NDArray[np.int64], counts: NDArray[np.int64] | None = None) -> PairBatch:
        """The given (B, 2) pairs on the CPU, with so many sources each (B,); None: as many as may be."""
        source, target = pairs[:, 0], pairs[:, 1]
        if self._further is None:
            return self.people.pair_batch(source, target)
        more = self._further.choose(source, target, self._config.data.sources - 1)
        if counts is not None:
            more[np.arange(1, more.shape[1] + 1) >= counts[:, None]] = -1
        return self.people.pair_batch(source, target, more)


def _kept_rows(data: DataConfig, people: PackedPeople) -> NDArray[np.int64] | None:
    """The images that the budget leaves and those that are only watched; None: all."""
    if data.budget == 1:
        return None
    watched = np.flatnonzero(people.splits != "train")
    return np.concatenate([budget_rows(people, data.budget, data.budget_seed), watched])


def _training_pairs(
    data: DataConfig, people: PackedPeople, kept: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    path = contained(data.folder, data.pairs)
    pairs = load_pairs(path, people.name_index())
    if not len(pairs):
        raise UserError(f"{path}: holds no pairs", "check the keypoints and prepare the folder again")
    outside = np.flatnonzero(people.splits[pairs.ravel()] != "train")
    if len(outside):
        row, column = divmod(int(outside[0]), 2)
        name = people.names[pairs[row, column]]
        raise UserError(
            f"{path}, pair {row + 1}: {name} is of the split {people.splits[pairs[row, column]]}",
            "train on people of the split train only",
        )
    mixed = np.flatnonzero(people.pids[pairs[:, 0]] != people.pids[pairs[:, 1]])
    if len(mixed):
        first, second = (people.names[index] for index in pairs[mixed[0]])
        raise UserError(
            f"{path}, pair {mixed[0] + 1}: {first} and {second} show two people",
            "a generator learns from pairs of one person: prepare the folder again",
        )
    if kept is not None:
        pairs = pairs[np.isin(pairs, kept).all(1)]
        if not len(pairs):
            raise UserError(f"{path}: data.budget={data.budget:g} leaves no pair", "raise data.budget")
    return pairs[: data.max_pairs]


def _validation_pairs(data: DataConfig, people: PackedPeople) -> NDArray[np.int64]:
    if not data.validation_pairs:
        return np.empty((0, 2), np.int64)
    return load_pairs(contained(data.folder, data.validation_pairs), people.name_index())
