"""Pairs of packed people as data sets: batches by pair index, and the batch of any training step.

Both are map-style PyTorch data sets, so a DataLoader with any number of workers gives the same batches:
``DataLoader(TrainingSteps(...), batch_size=None, sampler=range(first_step, last_step), num_workers=...)``.
Reading a batch is so cheap that the plain ``steps[step]`` is usually all that is needed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Dataset

from reposer.data.packed import PackedPeople
from reposer.data.samplers import draw_flips, draw_pairs, rank_slice
from reposer.data.transforms import flip_pairs
from reposer.structures import PairBatch


class PairDataset(Dataset[PairBatch]):
    """Pairs (P, 2) of source and target indices into packed people; an item is a batch of one.

    Args:
        people: the packed people.
        pairs: (P, 2) int64.
    """

    def __init__(self, people: PackedPeople, pairs: NDArray[np.int64]) -> None:
        pairs = np.asarray(pairs, np.int64).reshape(-1, 2)
        if len(pairs) and not (pairs.min() >= 0 and pairs.max() < len(people)):
            raise ValueError(f"a pair names person {pairs.max()}, there are {len(people)}")
        self.people = people
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> PairBatch:
        return self.batch([range(len(self))[index]])  # a list ends with IndexError, as iteration expects

    def batch(self, indices: ArrayLike) -> PairBatch:
        """The pairs at ``indices`` (B,), on the CPU."""
        chosen = self.pairs[np.asarray(indices, np.int64)]
        return self.people.pair_batch(chosen[:, 0], chosen[:, 1])

    def batches(self, batch_size: int) -> Iterator[PairBatch]:
        """All pairs once, in order; the last batch may be smaller."""
        for start in range(0, len(self), batch_size):
            yield self.batch(np.arange(start, min(start + batch_size, len(self))))


class TrainingSteps(Dataset[PairBatch]):
    """Item ``step`` is one process's part of that training step, a pure function of seed and step.

    Args:
        pairs: the pairs to draw from.
        batch_size: of the global batch, over all processes.
        seed: of the run.
        flip: probability that a pair is mirrored (source and target alike).
        rank: this process.
        world_size: number of processes; parts in rank order make the batch that one process would draw.
    """

    def __init__(
        self,
        pairs: PairDataset,
        batch_size: int,
        seed: int,
        flip: float = 0.0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.pairs = pairs
        self.batch_size = batch_size
        self.seed = seed
        self.flip = flip
        self.part = rank_slice(batch_size, rank, world_size)

    def __getitem__(self, step: int) -> PairBatch:
        indices = draw_pairs(len(self.pairs), self.batch_size, self.seed, step)[self.part]
        flipped = draw_flips(self.batch_size, self.seed, step, self.flip)[self.part]
        return flip_pairs(self.pairs.batch(indices), flipped)
