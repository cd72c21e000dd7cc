"""Data budgets: a share of the training images, so that a study can ask what more data would have brought.

The subsets are nested (20 % lies inside 40 %) and keep every person, so the classes stay the same and only
the number of images per person shrinks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reposer.data.packed import PackedPeople
from reposer.errors import UserError

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
    rows = rows[np.argsort(people.pids[rows], kind="stable")]
    starts = np.flatnonzero(np.diff(people.pids[rows], prepend=-1))
    chosen = [
        _first_images(group, people, max(_FEWEST, int(share * len(group) + 0.5)), seed)
        for group in np.split(rows, starts[1:])
    ]
    return np.sort(np.concatenate(chosen))


def _first_images(rows: NDArray[np.int64], people: PackedPeople, count: int, seed: int) -> NDArray[np.int64]:
    """The first ``count`` of one person's images in their drawn order."""
    order = np.random.default_rng([seed, _STREAM, int(people.pids[rows[0]])]).permutation(rows)
    other = np.flatnonzero(people.camids[order] != people.camids[order[0]])
    if len(other):
        order = np.concatenate([order[:1], order[other[:1]], np.delete(order, [0, other[0]])])
    return order[:count]
