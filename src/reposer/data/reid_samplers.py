"""Stateless samplers of Re-ID training: the images of a step are a pure function of (seed, step).

Every draw is made for the whole global batch and sliced afterwards, as in samplers.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

_IMAGES, _PEOPLE, _MEMBERS, _PAIRS = 11, 12, 13, 14  # streams, others than those of samplers.py

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Groups:
    """Images by class: class k holds ``members[starts[k] : starts[k + 1]]``."""

    labels: Indices  # (N,) class index of each image, 0 .. K - 1
    members: Indices  # (N,) image indices sorted by class
    starts: Indices  # (K + 1,)

    @classmethod
    def of(cls, labels: Indices, classes: int = 0) -> Self:
        """Group (N,) class indices: contiguous ones, or any of so many ``classes``, some without an image."""
        counts = np.bincount(labels, minlength=classes)
        if not len(labels) or not (classes or counts.all()):
            raise ValueError("every class needs an image")
        starts = np.concatenate([[0], np.cumsum(counts)])
        return cls(np.asarray(labels, np.int64), np.argsort(labels, kind="stable"), starts)

    @property
    def classes(self) -> int:
        """K."""
        return len(self.starts) - 1

    def of_class(self, k: int) -> Indices:
        """The images of class k, ascending."""
        return self.members[self.starts[k] : self.starts[k + 1]]


def draw_images(n: int, batch_size: int, seed: int, step: int) -> Indices:
    """(batch_size,) indices: the next ones of an endless row of shuffles of all ``n`` images."""
    return endless(_IMAGES, n, batch_size, seed, step)


def draw_people(groups: Groups, people: int, images: int, seed: int, step: int) -> Indices:
    """(people * images,) indices, P x K: the images of one person stand together (Hermans et al. 2017).

    Classes come in an endless row of shuffles, so all occur equally often; within a step they are distinct
    when ``people`` divides the number of classes, and nearly always else. A person's images are distinct
    where there are enough; with fewer than ``images`` all of them appear, some again.
    """
    rng = np.random.default_rng([seed, _MEMBERS, step])
    chosen = [
        some_of(groups.of_class(k), images, rng)
        for k in endless(_PEOPLE, groups.classes, people, seed, step).tolist()
    ]
    return np.concatenate(chosen)


def draw_image_pairs(groups: Groups, pairs: int, positive: float, seed: int, step: int) -> Indices:
    """(pairs, 2) indices for verification: ``positive`` of them (rounded at random) show one person twice.

    The first images come in an endless row of shuffles. The second is another image of that person (of any
    camera; where there is no other, the pair is a negative one) or any image of somebody else.
    """
    n = len(groups.labels)
    first = draw_images(n, pairs, seed, step)
    rng = np.random.default_rng([seed, _PAIRS, step])
    count = int(np.floor(pairs * positive + rng.random()))
    wanted = rng.permutation(pairs) < count
    second = np.empty(pairs, np.int64)
    for row, (image, same) in enumerate(zip(first.tolist(), wanted.tolist(), strict=True)):
        k = int(groups.labels[image])
        start, end = int(groups.starts[k]), int(groups.starts[k + 1])
        if same and end - start > 1:
            others = groups.of_class(k)
            others = others[others != image]
            second[row] = others[rng.integers(len(others))]
        else:
            place = int(rng.integers(n - (end - start)))  # among the images of all other people
            second[row] = groups.members[place if place < start else place + end - start]
    return np.stack([first, second], axis=1)


def some_of(members: Indices, count: int, rng: np.random.Generator) -> Indices:
    """(count,) of the members in random order, distinct where there are enough; else all, and some again."""
    order = rng.permutation(members)
    if len(order) >= count:
        return order[:count]
    return np.concatenate([order, rng.choice(members, count - len(order))])


def endless(stream: int, n: int, count: int, seed: int, step: int) -> Indices:
    """(count,): positions step * count ... of shuffles of range(n) laid end to end; a stream for each use."""
    positions = np.arange(step * count, (step + 1) * count)
    rounds = positions // n
    result = np.empty(count, np.int64)
    for number in np.unique(rounds).tolist():
        order = np.random.default_rng([seed, stream, number]).permutation(n)
        result[rounds == number] = order[positions[rounds == number] % n]
    return result
