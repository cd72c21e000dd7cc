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

FALSE_RATES = (1e-4, 1e-3, 1e-2, 1e-1)  # at which the share of accepted genuine pairs is reported


@dataclass(frozen=True, slots=True)
class Verification:
    """One to one: is this pair one person? Accepted are pairs at a distance of at most a threshold."""

    auc: float  # area under the ROC curve: P(genuine < impostor) + P(equal) / 2
    true_rates: dict[str, float]  # TPR at each FPR of FALSE_RATES, named by it; ties count against
    eer: float  # where FPR reaches 1 - TPR: the mean of the two at the first threshold
    genuine: int
    impostor: int
    curve: NDArray[np.float64]  # (P, 2) FPR and TPR, at most some 200 points, FPR ascending


def verification(
    blocks: Callable[[], Iterable[tuple[NDArray[np.floating], NDArray[np.floating]]]],
) -> Verification:
    """ROC over pooled (query, gallery) pairs; nothing is sampled and no matrix is held.

    TPR at FPR f is the largest share of genuine pairs that a threshold accepts while it accepts at most the
    share f of the impostor pairs (fast-reid's ``TPR@FPR``, read off without interpolation).

    Args:
        blocks: gives (genuine, impostor) distances part by part, the same each time; called twice.

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
    accepted = genuine.searchsorted(genuine, "right") / len(genuine)  # TPR of the threshold at each
    false = upto / impostors
    rates = {}
    for rate in FALSE_RATES:
        within = np.flatnonzero(false <= rate)
        rates[f"{rate:g}"] = float(accepted[within[-1]]) if len(within) else 0.0
    crossing = np.flatnonzero(false >= 1 - accepted)
    place = int(crossing[0])  # there is one: the last threshold accepts every genuine pair
    shown = np.unique(np.linspace(0, len(genuine) - 1, 200).astype(np.int64))
    return Verification(
        auc=float(1 - (upto + below).sum() / (2 * impostors * len(genuine))),
        true_rates=rates,
        eer=float((false[place] + 1 - accepted[place]) / 2),
        genuine=len(genuine),
        impostor=impostors,
        curve=np.stack([false[shown], accepted[shown]], axis=1),
    )


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
