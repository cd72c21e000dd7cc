"""Real and generated people as one labeled data set, and the samplers of batches that mix them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from reposer.data.packed import PackedPeople
from reposer.data.samplers import ClassGroups, Indices, draw_image_pairs, draw_images, endless, some_of
from reposer.data.synthetic.people import GeneratedPeople
from reposer.errors import UserError
from reposer.structures import ReidBatch

# ---- Packed people as a labeled data set: contiguous class indices, batches of images with their labels.


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


# ---- Real and generated people as one labeled data set, with one label map: that of the real people.


class MixedDataset:
    """N real images, then M generated ones.

    Args:
        real: gives the classes.
        generated: pictures of the same people.
        weight: of a generated image in the losses.
        extra_class: whether generated images are labeled K, a class of their own, instead of their source's.
        known: whether that label says who they are.
        use_dropped: take the pictures that a filter dropped too.

    Raises:
        UserError: no picture is left.
    """

    def __init__(
        self,
        real: ReidDataset,
        generated: GeneratedPeople,
        *,
        weight: float = 1.0,
        extra_class: bool = False,
        known: bool = True,
        use_dropped: bool = False,
    ) -> None:
        self.real, self.generated = real, generated
        self.indices = np.flatnonzero(generated.kept | use_dropped)  # (M,) into generated
        if not len(self.indices):
            raise UserError(f"{generated.folder}: the filter dropped every picture", "use another filter")
        self.pids = real.pids  # (K,)
        # (M,) class of the person who is shown, whatever the label says
        self.people: NDArray[np.int64] = np.searchsorted(real.pids, generated.pids[self.indices])
        self._labels = np.full_like(self.people, len(self.pids)) if extra_class else self.people
        self._weight, self._known = weight, known

    def notes(self) -> list[str]:
        """What a reader of the result should know: about the set, and how it fits the real images."""
        generated, real = self.generated, set(self.real.names(np.arange(len(self.real))))
        notes = list(generated.notes)
        if generated.factor is not None:
            expected = (generated.factor - 1) * len(real)
            if len(generated) != expected:
                notes.append(
                    f"{len(generated)} generated pictures for {len(real)} real ones:"
                    f" factor {generated.factor} would be {expected}"
                )
        for side, names in (("source", generated.sources), ("donor", generated.donors)):
            other = sum(name not in real for name in names)
            if other:
                notes.append(f"{other} generated pictures have a {side} outside the real images trained on")
        return notes

    def __len__(self) -> int:
        return len(self.real) + len(self.indices)

    def batch(self, rows: NDArray[np.int64]) -> ReidBatch:
        """The images at ``rows`` (B,) on the CPU; (B, 3, H, W) uint8 in channels_last order."""
        made = rows >= len(self.real)
        own, chosen = self.real.batch(rows[~made]), rows[made] - len(self.real)
        pictures = self.indices[chosen]
        images = np.empty((len(rows), *self.generated.images.shape[1:]), np.uint8)
        images[~made] = own.image.permute(0, 2, 3, 1).numpy()
        images[made] = self.generated.images[pictures]

        def joined(real: torch.Tensor, generated: NDArray[np.int64] | float) -> torch.Tensor:
            values = np.empty(len(rows), real.numpy().dtype)
            values[~made], values[made] = real.numpy(), generated
            return torch.from_numpy(values)

        return ReidBatch(
            image=torch.from_numpy(images).permute(0, 3, 1, 2),
            label=joined(own.label, self._labels[chosen]),
            camid=joined(own.camid, self.generated.camids[pictures]),
            weight=joined(own.weight, self._weight),
            generated=torch.from_numpy(made),
            known=joined(own.known, self._known),
        )

    def names(self, rows: NDArray[np.int64]) -> tuple[str, ...]:
        """File names of the images at ``rows``."""
        n = len(self.real)
        real = iter(self.real.names(rows[rows < n]))
        made = iter([self.generated.names[i] for i in self.indices[rows[rows >= n] - n].tolist()])
        return tuple(next(made if row >= n else real) for row in rows.tolist())


# ---- Stateless samplers of batches that mix real and generated images; pure functions of (seed, step).
#
# Images are numbered 0 .. N - 1 (real), then N .. N + M - 1 (generated). Where a share of real images is
# asked for, their number in every batch is fixed, and real and generated ones alternate as evenly as they
# can, so that processes that cut a batch into parts get like parts.

_GENERATED, _PEOPLE, _MEMBERS, _PAIRS = 15, 12, 16, 17  # streams; people come as in data/samplers.py


@dataclass(frozen=True, slots=True)
class Mixture:
    """Real and generated images by the class of the person they show."""

    real: ClassGroups  # of N images, every class occurs
    generated: ClassGroups  # of M images, numbered from 0 here; a class may have none
    both: ClassGroups  # of N + M images

    @classmethod
    def of(cls, real: Indices, generated: Indices) -> Self:
        """Of the (N,) and (M,) class indices."""
        groups = ClassGroups.of(real)
        return cls(
            groups,
            ClassGroups.of(generated, groups.classes),
            ClassGroups.of(np.concatenate([real, generated])),
        )

    @property
    def n(self) -> int:
        """N."""
        return len(self.real.labels)

    def of_class(self, k: int, real: bool) -> Indices:
        """The real or the generated images of class k."""
        return self.real.of_class(k) if real else self.generated.of_class(k) + self.n


def draw_mixed_images(mixture: Mixture, batch_size: int, real: int, seed: int, step: int) -> Indices:
    """(batch_size,) images, ``real`` of them real; both kinds come in endless rows of shuffles."""
    result = np.empty(batch_size, np.int64)
    places = spread(batch_size, real)
    result[places] = draw_images(mixture.n, real, seed, step)
    generated = endless(_GENERATED, len(mixture.generated.labels), batch_size - real, seed, step)
    result[~places] = mixture.n + generated
    return result


def draw_mixed_people(
    mixture: Mixture, people: int, images: int, real: int | None, seed: int, step: int
) -> Indices:
    """(people * images,) P x K with at least one real image for each person.

    Args:
        real: real images of each person; None: the images are drawn from all of the person's, and where no
            real one is among them the last is replaced by one. A person without generated images has only
            real ones.
    """
    rng = np.random.default_rng([seed, _MEMBERS, step])
    chosen = []
    for k in endless(_PEOPLE, mixture.real.classes, people, seed, step).tolist():
        own, made = mixture.of_class(k, True), mixture.of_class(k, False)
        if real is None:
            rows = some_of(np.concatenate([own, made]), images, rng)
            if (rows >= mixture.n).all():
                rows[-1] = rng.choice(own)
        elif len(made):
            rows = np.concatenate([some_of(own, real, rng), some_of(made, images - real, rng)])
        else:
            rows = some_of(own, images, rng)
        chosen.append(rows)
    return np.concatenate(chosen)


def draw_mixed_pairs(
    mixture: Mixture, pairs: int, positive: float, real_share: float | None, seed: int, step: int
) -> Indices:
    """(pairs, 2) images for verification, ``positive`` of them (rounded at random) showing one person twice.

    Args:
        real_share: of the first images as in :func:`draw_mixed_images`; each second one is real with this
            probability, and of the other kind where there is none to take. None: all images are one pool.
    """
    if real_share is None:
        return draw_image_pairs(mixture.both, pairs, positive, seed, step)
    first = draw_mixed_images(mixture, pairs, real_count(pairs, real_share), seed, step)
    rng = np.random.default_rng([seed, _PAIRS, step])
    wanted = rng.permutation(pairs) < int(np.floor(pairs * positive + rng.random()))
    kinds = rng.random(pairs) < real_share
    second = [
        _partner(mixture, image, same, real, rng)
        for image, same, real in zip(first.tolist(), wanted.tolist(), kinds.tolist(), strict=True)
    ]
    return np.stack([first, np.array(second, np.int64)], axis=1)


def real_count(count: int, share: float) -> int:
    """Real images among ``count``: the nearest number, halves up."""
    return int(count * share + 0.5)


def spread(count: int, chosen: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """(count,) with ``chosen`` places True, as evenly spaced as they can be."""
    steps = np.arange(count + 1) * chosen // count
    return np.diff(steps).astype(np.bool_)


def _partner(mixture: Mixture, image: int, same: bool, real: bool, rng: np.random.Generator) -> int:
    """Another image of the same person, or one of somebody else; where there is none, of the other kind."""
    k = int(mixture.both.labels[image])
    if same:
        for kind in (real, not real):
            others = mixture.of_class(k, kind)
            others = others[others != image]
            if len(others):
                return int(others[rng.integers(len(others))])
    for kind in (real, not real):
        groups, offset = (mixture.real, 0) if kind else (mixture.generated, mixture.n)
        start, end = int(groups.starts[k]), int(groups.starts[k + 1])
        strangers = len(groups.labels) - (end - start)
        if strangers:
            place = int(rng.integers(strangers))
            return int(groups.members[place if place < start else place + end - start]) + offset
    raise ValueError("there is only one person")
