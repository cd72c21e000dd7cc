"""One to one: do two images show one person? ROC, TPR at FPR, AUC and equal error rate of pairs.

The pairs are those that a ranking counts: every query with its valid matches (genuine) and with everybody
else in its gallery (impostor). They are pooled over queries, so one threshold has to serve all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reposer.errors import UserError

Pairs = Callable[[], Iterable[tuple[NDArray[np.floating], NDArray[np.floating]]]]
FALSE_RATES = (1e-4, 1e-3, 1e-2, 1e-1)  # at which the share of accepted genuine pairs is reported
_HELD = 1 << 22  # impostor distances that are held at once


@dataclass(frozen=True, slots=True)
class Verification:
    """One to one: is this pair one person? Accepted are pairs at a distance of at most a threshold."""

    auc: float  # area under the ROC curve: P(genuine < impostor) + P(equal) / 2
    true_rates: dict[str, float]  # TPR at each FPR of FALSE_RATES, named by it; ties count against
    eer: float  # where FPR reaches 1 - TPR: the mean of the two at the first threshold
    genuine: int
    impostor: int
    curve: NDArray[np.float64]  # (P, 2) FPR and TPR, at most some 200 points, FPR ascending


def verification(blocks: Pairs) -> Verification:
    """ROC over pooled (query, gallery) pairs; nothing is sampled and no matrix is held.

    TPR at FPR f is the largest share of genuine pairs that a threshold accepts while it accepts at most the
    share f of the impostor pairs (fast-reid's ``TPR@FPR``, read off without interpolation).

    Args:
        blocks: gives (genuine, impostor) distances part by part, the same each time; called more than once.

    Raises:
        UserError: no genuine or no impostor pair.
    """
    genuine = np.sort(np.concatenate([part for part, _ in blocks()] or [np.empty(0)]))
    if not len(genuine):
        raise UserError("no query has a valid match: there is no genuine pair", "check the labels")
    upto, below, impostors = np.zeros(len(genuine), np.int64), np.zeros(len(genuine), np.int64), 0
    for _, other in blocks():
        other = np.sort(other)
        impostors += len(other)
        upto += other.searchsorted(genuine, "right")
        below += other.searchsorted(genuine, "left")
    if not impostors:
        raise UserError("the gallery shows nobody else: there is no impostor pair", "check the labels")
    within = genuine.searchsorted(genuine, "right")
    accepted = within / len(genuine)  # TPR of the threshold at each
    false = upto / impostors
    rates = {}
    for rate in FALSE_RATES:
        low = np.flatnonzero(false <= rate)
        rates[f"{rate:g}"] = float(accepted[low[-1]]) if len(low) else 0.0
    shown = np.unique(np.linspace(0, len(genuine) - 1, 200).astype(np.int64))
    return Verification(
        auc=float(1 - (upto + below).sum() / (2 * impostors * len(genuine))),
        true_rates=rates,
        eer=_equal_error(blocks, genuine, within, below, upto, impostors),
        genuine=len(genuine),
        impostor=impostors,
        curve=np.stack([false[shown], accepted[shown]], axis=1),
    )


def _equal_error(
    blocks: Pairs,
    genuine: NDArray[np.floating],
    within: NDArray[np.int64],
    below: NDArray[np.int64],
    upto: NDArray[np.int64],
    impostors: int,
) -> float:
    """Mean of FPR and 1 - TPR at the first threshold, among all distances, where FPR is not the smaller.

    Args:
        blocks: as for :func:`verification`.
        genuine: (N,) ascending.
        within: (N,) genuine distances up to each of these, itself included.
        below, upto: (N,) impostor distances below each of them, and up to it.
        impostors: how many there are.
    """
    count = len(genuine)
    between = below * count >= (count - np.arange(count)) * impostors  # before this distance is reached
    place = int(np.argmax(between | (upto * count >= (count - within) * impostors)))  # the last one at latest
    if not between[place]:
        return float((upto[place] / impostors + 1 - within[place] / count) / 2)
    missed = count - place
    wanted = -(-missed * impostors // count)  # the fewest accepted impostors whose share is not smaller
    found = int(below[place])
    if found > wanted:  # so it lies above the genuine distance before: below the first one, all are wanted
        low, high = genuine[place - 1 : place + 1].astype(np.float64)
        found = _accepted(blocks, low, np.nextafter(high, low), int(upto[place - 1]), found, wanted)
    return (found / impostors + missed / count) / 2


def _accepted(blocks: Pairs, low: np.float64, high: np.float64, before: int, upto: int, wanted: int) -> int:
    """The impostor distances up to the first one with ``wanted`` of them up to it, itself included.

    Args:
        low, high: it is above ``low`` and at most ``high``.
        before, upto: impostor distances up to ``low`` and up to ``high``; before < wanted <= upto.
    """
    while upto - before > _HELD and np.nextafter(low, high) < high:
        marks = np.linspace(low, high, 1025)
        counts = np.sum([np.sort(other).searchsorted(marks, "right") for _, other in blocks()], axis=0)
        place = int(np.searchsorted(counts, wanted))
        low, high, before, upto = marks[place - 1], marks[place], int(counts[place - 1]), int(counts[place])
    if upto - before > _HELD:  # all of them at ``high``
        return upto
    inside = np.sort(np.concatenate([other[(other > low) & (other <= high)] for _, other in blocks()]))
    return before + int(inside.searchsorted(inside[wanted - before - 1], "right"))


def mean_verification(parts: Sequence[Verification]) -> Verification | None:
    """Splits of one data set as one: means of the numbers and of the curves, pairs of all of them.

    Every split has thresholds of its own, so the mean curve is that of TPR at equal FPR (vertical averaging,
    Fawcett 2006). None of nothing.
    """
    if not parts:
        return None
    grid = np.unique(np.concatenate([part.curve[:, 0] for part in parts]))
    grid = grid[np.unique(np.linspace(0, len(grid) - 1, 200).astype(np.int64))]
    # the largest TPR at an FPR of at most each grid point, without interpolation, as for the single split
    rates = [np.append(0.0, part.curve[:, 1])[part.curve[:, 0].searchsorted(grid, "right")] for part in parts]
    return Verification(
        auc=float(np.mean([part.auc for part in parts])),
        true_rates={
            name: float(np.mean([part.true_rates[name] for part in parts])) for name in parts[0].true_rates
        },
        eer=float(np.mean([part.eer for part in parts])),
        genuine=sum(part.genuine for part in parts),
        impostor=sum(part.impostor for part in parts),
        curve=np.stack([grid, np.mean(rates, axis=0)], axis=1),
    )
