"""Packed people as a labeled data set: contiguous class indices, batches of images with their labels."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from reposer.data.packed import PackedPeople
from reposer.errors import UserError
from reposer.structures import ReidBatch


class ReidDataset(Dataset[ReidBatch]):
    """The images of some splits that show a known person; an item is a batch of one.

    Class k is the k-th of the sorted pids, whatever the order of the images. Junk (pid -1) and distractors
    (pid 0) belong to nobody and are left out.

    Args:
        people: the packed people.
        splits: which of them.
        rows: of ``people``; only these are taken. None: all.

    Raises:
        UserError: fewer than two people are left: there is nothing to tell apart.
    """

    def __init__(
        self,
        people: PackedPeople,
        splits: tuple[str, ...] = ("train",),
        rows: NDArray[np.int64] | None = None,
    ) -> None:
        chosen = np.flatnonzero(np.isin(people.splits, splits) & (people.pids > 0))
        if rows is not None:
            chosen = np.intersect1d(chosen, rows)
        self.people = people
        self.indices: NDArray[np.int64] = chosen  # (N,) into people
        self.pids, labels = np.unique(people.pids[chosen], return_inverse=True)  # (K,) pid of each class
        self.labels: NDArray[np.int64] = labels.astype(np.int64)  # (N,)
        self.weights = np.ones(len(chosen), np.float32)  # (N,) in the loss
        if len(self.pids) < 2:
            raise UserError(
                f"{people.folder}: {len(self.pids)} people in {', '.join(splits)}",
                "two or more are needed: prepare another folder or choose other splits",
            )

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, row: int) -> ReidBatch:
        return self.batch(np.asarray([range(len(self))[row]]))

    def batch(self, rows: NDArray[np.int64]) -> ReidBatch:
        """The images at ``rows`` (B,) on the CPU; (B, 3, H, W) uint8 in channels_last order."""
        chosen = self.indices[rows]
        images = torch.from_numpy(np.take(self.people.images, chosen, axis=0)).permute(0, 3, 1, 2)
        return ReidBatch(
            image=images,
            label=torch.from_numpy(self.labels[rows]),
            camid=torch.from_numpy(self.people.camids[chosen]),
            weight=torch.from_numpy(self.weights[rows]),
            generated=torch.zeros(len(rows), dtype=torch.bool),
            known=torch.ones(len(rows), dtype=torch.bool),
        )

    def names(self, rows: NDArray[np.int64]) -> tuple[str, ...]:
        """File names of the images at ``rows``."""
        return tuple(self.people.names[i] for i in self.indices[rows].tolist())
