"""The batches of a Re-ID training by step: what a process sees follows from seed and step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from reposer.data.packed import PackedPeople
from reposer.data.samplers import (
    ClassGroups,
    budget_rows,
    draw_image_pairs,
    draw_images,
    draw_people,
    rank_slice,
)
from reposer.data.synthetic.mixed import (
    MixedDataset,
    Mixture,
    ReidDataset,
    draw_mixed_images,
    draw_mixed_pairs,
    draw_mixed_people,
    real_count,
)
from reposer.data.synthetic.people import GeneratedPeople
from reposer.data.transforms import Draws, draw_transforms, transform
from reposer.errors import UserError
from reposer.images import resize
from reposer.structures import ReidBatch
from reposer.training.reid.config import ReidConfig

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
        self.people = PackedPeople.open(config.data.folder / "packed", verify=rank == 0)
        self.real = _real(config, self.people)
        self.mixed = _mixed(config, self.real)
        self.pids = self.real.pids  # (K,) of each class
        held_out = np.flatnonzero((self.people.splits == "val") & (self.people.pids > 0))
        self.validation: Rows = held_out if "val" not in config.data.splits else held_out[:0]
        self._groups = ClassGroups.of(self.real.labels)
        self._mixture = None if self.mixed is None else Mixture.of(self.real.labels, self.mixed.people)
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
        data, mixture = self._config.data, self._mixture if self._config.mixes(step) else None
        units = self._real_units(step) if mixture is None else self._mixed_units(mixture, step)
        places = np.arange(self._config.batch_size).reshape(units.shape)
        rows, places = units[self._part], places[self._part]
        if data.sampler == "pairs":
            rows, places = rows.T, places.T
        return rows.ravel(), places.ravel()

    def _real_units(self, step: int) -> Rows:
        """The real images of a global batch: (B,), (P, K) people or (B / 2, 2) pairs."""
        data, size, seed = self._config.data, self._config.batch_size, self._config.seed
        if data.sampler == "images":
            return draw_images(len(self.real), size, seed, step)
        if data.sampler == "people":
            images = data.images_per_person
            return draw_people(self._groups, size // images, images, seed, step).reshape(-1, images)
        return draw_image_pairs(self._groups, size // 2, self.positive_share(step), seed, step)

    def _mixed_units(self, mixture: Mixture, step: int) -> Rows:
        """The same with generated images among them."""
        data, size, seed = self._config.data, self._config.batch_size, self._config.seed
        share = self._config.generated.real_share
        if data.sampler == "images":
            if share is None:
                return draw_images(len(mixture.both.labels), size, seed, step)
            return draw_mixed_images(mixture, size, real_count(size, share), seed, step)
        if data.sampler == "people":
            images = data.images_per_person
            real = None if share is None else real_count(images, share)
            return draw_mixed_people(mixture, size // images, images, real, seed, step).reshape(-1, images)
        return draw_mixed_pairs(mixture, size // 2, self.positive_share(step), share, seed, step)

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
        training = self.mixed or self.real
        batch = training.batch(rows)
        augment = self._config.augment
        image = transform(
            resize(batch.image, augment.resize), self.draws(step)[places], augment.crop, augment.pad
        )
        return replace(batch, image=image), training.names(rows)

    def inputs(self) -> dict[str, str]:
        """Hash of what the configuration names only by its place and a resumed run must find unchanged."""
        prepared = {"prepared": self.people.content_hash}
        return prepared | ({} if self.mixed is None else {"generated": self.mixed.generated.content_hash})

    def notes(self) -> dict[str, object]:
        """What a reader of the run should know about its images, for environment.json."""
        if self.mixed is None:
            return {"real_images": len(self.real)}
        generated = {"images": len(self.mixed.indices), "notes": self.mixed.notes()}
        return {"real_images": len(self.real), "generated": generated}


def _real(config: ReidConfig, people: PackedPeople) -> ReidDataset:
    data = config.data
    budget = None if data.budget == 1 else budget_rows(people, data.budget, data.budget_seed, data.splits)
    return ReidDataset(people, data.splits, budget)


def _mixed(config: ReidConfig, real: ReidDataset) -> MixedDataset | None:
    generated = config.generated
    if generated.folder is None:
        return None
    return MixedDataset(
        real,
        GeneratedPeople.open(generated.folder, real.people, config.data.splits),
        weight=generated.weight,
        extra_class=generated.label == "extra_class",
        known=generated.known,
        use_dropped=generated.use_dropped,
    )
