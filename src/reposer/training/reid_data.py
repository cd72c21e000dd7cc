"""The batches of a Re-ID training by step: what a process sees follows from seed and step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from reposer.data.packed import PackedPeople
from reposer.data.reid_datasets import ReidDataset
from reposer.data.reid_samplers import Groups, draw_image_pairs, draw_images, draw_people
from reposer.data.reid_transforms import Draws, draw_transforms, transform
from reposer.data.samplers import rank_slice
from reposer.errors import UserError
from reposer.images import resize
from reposer.structures import ReidBatch
from reposer.training.reid_config import ReidConfig

Rows = NDArray[np.int64]


class ReidData:
    """A prepared folder as training batches and validation images.

    Args:
        config: names the folder, the sampler and the augmentation.
        rank: number of this process.
        world_size: number of processes.

    Raises:
        UserError: no prepared folder, fewer than two training people, too few for the P of P x K, or a batch
            that the processes cannot share.
    """

    def __init__(self, config: ReidConfig, rank: int = 0, world_size: int = 1) -> None:
        self.people = PackedPeople.open(config.data.folder / "packed")
        self.training = ReidDataset(self.people, config.data.splits)
        held_out = np.flatnonzero((self.people.splits == "val") & (self.people.pids > 0))
        self.validation: Rows = held_out if "val" not in config.data.splits else held_out[:0]
        self._groups = Groups.of(self.training.labels)
        self._config = config
        sampler = config.data.sampler
        unit = {"images": 1, "people": config.data.images_per_person, "pairs": 2}[sampler]
        if config.batch_size % (unit * world_size):
            raise UserError(
                f"batch_size {config.batch_size} cannot be shared by {world_size} processes",
                f"make it a multiple of {unit * world_size}",
            )
        if sampler == "people" and config.people_per_batch > self._groups.classes:
            raise UserError(
                f"{config.data.folder}: {self._groups.classes} training people, a batch wants"
                f" {config.people_per_batch}",
                "lower batch_size or raise data.images_per_person",
            )
        self._part = rank_slice(config.batch_size // unit, rank, world_size)

    def rows(self, step: int) -> tuple[Rows, Rows]:
        """Training images of this process in a step, and their places in the global batch, (B,) each.

        Pairs come as two halves: all first images, then all second ones.
        """
        data, size, seed = self._config.data, self._config.batch_size, self._config.seed
        places = np.arange(size)
        if data.sampler == "images":
            rows = draw_images(len(self.training), size, seed, step)
            return rows[self._part], places[self._part]
        if data.sampler == "people":
            rows = draw_people(
                self._groups, size // data.images_per_person, data.images_per_person, seed, step
            )
            shape = (-1, data.images_per_person)
            return rows.reshape(shape)[self._part].ravel(), places.reshape(shape)[self._part].ravel()
        pairs = draw_image_pairs(self._groups, size // 2, self.positive_share(step), seed, step)
        return pairs[self._part].T.ravel(), places.reshape(-1, 2)[self._part].T.ravel()

    def positive_share(self, step: int) -> float:
        """Share of positive pairs: 1 / (1 + negatives), Zheng et al.'s 1 / min(5, 2 * 1.01^epoch)."""
        data = self._config.data
        epoch = step * self._config.batch_size // data.images_per_epoch
        return 1.0 / min(1 + data.negatives_end, (1 + data.negatives) * data.negatives_growth**epoch)

    def draws(self, step: int) -> Draws:
        """What happens to each image of the global batch."""
        config = self._config
        augment = config.augment
        flip = 0.5 if augment.flip else 0.0
        return draw_transforms(
            *(config.batch_size, augment.resize, augment.crop, augment.pad, flip, augment.erase),
            seed=config.seed,
            step=step,
        )

    def batch(self, step: int) -> tuple[ReidBatch, tuple[str, ...]]:
        """The augmented batch of this process on the CPU, and the names of its images."""
        rows, places = self.rows(step)
        batch = self.training.batch(rows)
        augment = self._config.augment
        image = transform(
            resize(batch.image, augment.resize), self.draws(step)[places], augment.crop, augment.pad
        )
        return replace(batch, image=image), self.training.names(rows)
