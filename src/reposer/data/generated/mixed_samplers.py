"""Stateless samplers of batches that mix real and generated images; pure functions of (seed, step).

Images are numbered 0 .. N - 1 (real), then N .. N + M - 1 (generated). Where a share of real images is
asked for, their number in every batch is fixed, and real and generated ones alternate as evenly as they can,
so that processes that cut a batch into parts get like parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from reposer.data.reid_samplers import Groups, Indices, draw_image_pairs, draw_images, endless, some_of

_GENERATED, _PEOPLE, _MEMBERS, _PAIRS = 15, 12, 16, 17  # streams; people come as in reid_samplers.py


@dataclass(frozen=True, slots=True)
class Mixture:
    """Real and generated images by the class of the person whom they show."""

    real: Groups  # of N images, every class occurs
    generated: Groups  # of M images, numbered from 0 here; a class may have none
    both: Groups  # of N + M images

    @classmethod
    def of(cls, real: Indices, generated: Indices) -> Self:
        """Of the (N,) and (M,) class indices."""
        groups = Groups.of(real)
        return cls(groups, Groups.of(generated, groups.classes), Groups.of(np.concatenate([real, generated])))

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
