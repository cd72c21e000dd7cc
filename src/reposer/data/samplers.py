"""Stateless samplers: what a step sees is a pure function of (seed, step); resuming needs no sampler state.

Every draw is made for the whole global batch and sliced afterwards; position p of step s is therefore the
same item, flipped or not, for any number of processes and loader workers. Draws for different purposes use
different streams.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from reposer.data.packed import PackedPeople, by_person
from reposer.errors import UserError

_PAIR_STREAM, _FLIPS, _ITSELF = 1, 3, 4  # streams


def draw_pairs(n_pairs: int, batch_size: int, seed: int, step: int) -> NDArray[np.int64]:
    """(batch_size,) pair indices of one step, uniform with replacement as PATN draws them."""
    if n_pairs < 1:
        raise ValueError("there are no pairs to draw from")
    return _generator(_PAIR_STREAM, seed, step).integers(n_pairs, size=batch_size)


def draw_flips(batch_size: int, seed: int, step: int, probability: float = 0.5) -> NDArray[np.bool_]:
    """(batch_size,) whether each sample of a step is mirrored."""
    return _generator(_FLIPS, seed, step).random(batch_size) < probability


def draw_itself(batch_size: int, seed: int, step: int, share: float) -> NDArray[np.bool_]:
    """(batch_size,) whether the target of each pair of a step is its source image, ``share`` of them."""
    return _generator(_ITSELF, seed, step).random(batch_size) < share


def rank_slice(batch_size: int, rank: int, world_size: int) -> slice:
    """The part of a global batch that one process takes; the parts in rank order are the whole batch.

    Equal parts only: with unequal ones a mean over processes of their mean losses is not the batch's mean.

    Raises:
        ValueError: ``batch_size`` is not a multiple of ``world_size``, or no such rank.
    """
    if batch_size % world_size or not 0 <= rank < world_size:
        raise ValueError(f"a batch of {batch_size} cannot be shared by {world_size} processes (rank {rank})")
    share = batch_size // world_size
    return slice(rank * share, (rank + 1) * share)


def _generator(stream: int, seed: int, step: int) -> np.random.Generator:
    return np.random.default_rng([seed, stream, step])


# ---- Stateless samplers of Re-ID training: the images of a step are a pure function of (seed, step).
#
# Every draw is made for the whole global batch and sliced afterwards, as above.

_IMAGES, _PEOPLE, _MEMBERS, _PAIRS = 11, 12, 13, 14  # streams, others than those above

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ClassGroups:
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


def draw_people(groups: ClassGroups, people: int, images: int, seed: int, step: int) -> Indices:
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


def draw_image_pairs(groups: ClassGroups, pairs: int, positive: float, seed: int, step: int) -> Indices:
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


# ---- Data budgets: a share of the training images, so that a study can ask what more data would have
# brought.
#
# The subsets are nested (20 % lies inside 40 %) and keep every person, so the classes stay the same and only
# the number of images per person shrinks.

_STREAM = 31
_FEWEST = 2  # images of a person: one alone has no partner for a triplet or a positive pair


def budget_rows(
    people: PackedPeople, share: float, seed: int = 0, splits: tuple[str, ...] = ("train",)
) -> NDArray[np.int64]:
    """Rows of ``people`` that a budget leaves, ascending.

    Each person's images stand in an order drawn from (seed, pid), in which the second is of another camera
    than the first where there is one; the budget takes the first max(2, round(share * n)) of the n. Thus
    neither other people nor the share change the order.

    Args:
        people: the packed people; junk (pid -1) and distractors (pid 0) are left out.
        share: of each person's images, in (0, 1]; halves are rounded up.
        seed: of the choice.
        splits: that are trained on.

    Raises:
        UserError: a share outside (0, 1], or nobody in these splits.
    """
    if not 0 < share <= 1:
        raise UserError(f"budget {share:g}: a share above 0 and up to 1 is wanted", "0.2 is 20 %")
    rows = np.flatnonzero(np.isin(people.splits, splits) & (people.pids > 0))
    if not len(rows):
        raise UserError(f"{people.folder}: nobody in {', '.join(splits)}", "choose other splits")
    chosen = [
        _first_images(rows[places], people, max(_FEWEST, int(share * len(places) + 0.5)), seed)
        for places in by_person(people.pids[rows]).values()
    ]
    return np.sort(np.concatenate(chosen))


def _first_images(rows: NDArray[np.int64], people: PackedPeople, count: int, seed: int) -> NDArray[np.int64]:
    """The first ``count`` of one person's images in their drawn order."""
    order = np.random.default_rng([seed, _STREAM, int(people.pids[rows[0]])]).permutation(rows)
    other = np.flatnonzero(people.camids[order] != people.camids[order[0]])
    if len(other):
        order = np.concatenate([order[:1], order[other[:1]], np.delete(order, [0, other[0]])])
    return order[:count]
