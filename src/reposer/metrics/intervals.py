"""What chance does to a mean, by a bootstrap over identities: pictures of one person are not independent.

95 % intervals of a mean; and of the difference of two sides that scored the same images, with its p.

A bootstrap of a few people draws too little spread: of 3 people its 95 % intervals cover the truth in three
of four cases. Below FEW people its draws are therefore moved away from the value as Student's t is wider
than the normal distribution, and below VERY_FEW no p is less than that of a randomization of the signs of
the people's differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from reposer.errors import UserError

REPEATS = 2_000
CHUNK = 100
LEVELS = (0.025, 0.975)
NORMAL_95 = 1.959964  # half of a 95 % interval, in standard errors, where there are many people
FEW, VERY_FEW = 40, 16  # people; of FEW Student's t is 1.03 times as wide as the normal distribution
FEWER = f", wider for fewer than {FEW}"  # of such intervals, where their protocol is told


def mean_interval(
    values: NDArray[np.float64], clusters: NDArray[np.int64] | None, seed: int = 0
) -> tuple[float, float] | None:
    """Percentile bootstrap of the mean of ``values`` (N,): whole clusters are drawn, with replacement.

    Args:
        clusters: (N,) identity of each value; None draws single values instead.

    Returns:
        the 2.5 % and 97.5 % points; None when there are fewer than two clusters, which say nothing about
            spread.
    """
    sums, counts = _per_cluster(values, clusters)
    if len(counts) < 2:
        return None
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(0, REPEATS, CHUNK):  # bounded memory for many clusters
        draws = _multiplicities(len(counts), CHUNK, rng)
        means.append((draws @ sums) / (draws @ counts))
    return interval_of_mean(np.concatenate(means), values, len(counts))


def interval_of_mean(
    drawn: NDArray[np.float64], values: NDArray[np.float64], people: int
) -> tuple[float, float]:
    """:func:`interval_of` for the mean of ``values`` (N,), which lies between the least and the largest."""
    low, high = interval_of(drawn, float(values.mean()), people)
    return max(low, float(values.min())), min(high, float(values.max()))


def interval_of(drawn: NDArray[np.float64], value: float, people: int) -> tuple[float, float]:
    """The 2.5 % and 97.5 % points of a bootstrap, farther from the value for fewer than FEW people.

    Args:
        drawn: (draws,) the statistic of each draw.
        value: that of the data.
        people: clusters that were drawn from.
    """
    low, high = np.quantile(_widened(drawn, value, people), LEVELS)
    return float(low), float(high)


def _widened(drawn: NDArray[np.float64], value: float, people: int) -> NDArray[np.float64]:
    wider = widening(people)
    return drawn if wider == 1 else value + wider * (drawn - value)


def widening(people: int) -> float:
    """By what a bootstrap's interval of so many people is too narrow; 1 from FEW people on.

    Its spread is that of a variance with n in the place of n - 1, and it knows no t distribution (Hesterberg,
    "What Teachers Should Know about the Bootstrap", 2015, section 4.1).
    """
    return student(people) / NORMAL_95 * float(np.sqrt(people / (people - 1))) if 2 <= people < FEW else 1.0


def student(people: int) -> float:
    """Half of a 95 % interval, in standard errors with n - 1 (those of the jackknife); normal from FEW on."""
    return float(stdtrit(people - 1, LEVELS[1])) if 2 <= people < FEW else NORMAL_95


def bootstrap_weights(
    count: int, clusters: NDArray[np.int64] | None, repeats: int, seed: int
) -> NDArray[np.float64]:
    """(repeats, count) how often each of ``count`` items occurs in each bootstrap draw of whole clusters."""
    rng = np.random.default_rng(seed)
    if clusters is None:
        return _multiplicities(count, repeats, rng)
    _, member = np.unique(clusters, return_inverse=True)
    return _multiplicities(int(member.max()) + 1, repeats, rng)[:, member]


def _multiplicities(count: int, repeats: int, rng: np.random.Generator) -> NDArray[np.float64]:
    return rng.multinomial(count, np.full(count, 1.0 / count), size=repeats).astype(np.float64)


def _per_cluster(
    values: NDArray[np.float64], clusters: NDArray[np.int64] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and number of the values of each cluster."""
    if clusters is None:
        return values, np.ones(len(values))
    _, member = np.unique(clusters, return_inverse=True)
    return np.bincount(member, values).astype(np.float64), np.bincount(member).astype(np.float64)


# ---- Is a difference luck? The paired bootstrap over test identities, with the training seeds pooled.
#
# Both sides scored the same Q queries, each with its own trainings (seeds). Their scores are averaged over
# the seeds, then subtracted query by query: d_q. The statistic T is the mean of d_q. Pictures of one person
# are not independent, so a draw takes whole identities, as many as there are, with replacement: T*.
#
# * interval: the 2.5 % and 97.5 % points of T*;
# * p, two-sided: (1 + number of |T* - T| >= |T|) / (draws + 1), which is never 0 (Davison, Hinkley,
#   "Bootstrap Methods and Their Application", 1997, section 4.4: the draws, moved to where T = 0 holds, play
#   the null);
# * p_seeds: the same where each draw also takes as many seeds of each side as there are, with replacement.
#
# With fewer than FEW people T* - T is widened for all three (:func:`widening`). With fewer than VERY_FEW
# neither p is below that of Fisher's randomization test over people: the share of all 2^n choices of signs of
# the people's sums whose total is as far from 0.
#
# p says whether other test people would tell the same of these trained networks, p_seeds whether other
# trainings would too; with three seeds the latter is rough (three values are drawn from three).


DRAWS = 10_000
_CHUNK = 500  # draws at a time: (500, identities) float64


@dataclass(frozen=True, slots=True)
class Difference:
    """A side's mean score minus the control's."""

    value: float
    low: float  # 95 % interval over test identities
    high: float
    p: float
    p_seeds: float  # seeds drawn too; equal to p with one seed a side
    identities: int


def paired_bootstrap(
    scores: NDArray[np.float64],
    control: NDArray[np.float64],
    pids: NDArray[np.int64],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Difference:
    """How much better ``scores`` are than ``control``, and whether that is luck.

    Args:
        scores: (S, Q) score of each query under each of S trainings.
        control: (S', Q) of the same queries, in the same order.
        pids: (Q,) identity of each query.
        draws: of the bootstrap; p has a grain of 1 / (draws + 1).
        seed: of the draws.

    Raises:
        UserError: other numbers of queries, no training on a side, a score that is no number, or fewer than
            two identities, which say nothing about other people.
    """
    sides = [np.asarray(side, np.float64) for side in (scores, control)]
    if any(side.ndim != 2 or not len(side) or side.shape[1] != len(pids) for side in sides):
        shapes = " and ".join(str(side.shape) for side in sides)
        raise UserError(f"scores of shapes {shapes} for {len(pids)} queries", "give (seeds, queries) each")
    if not all(np.isfinite(side).all() for side in sides):
        raise UserError("a score is NaN or infinite", "leave out queries without a valid match on both sides")
    identities, member = np.unique(pids, return_inverse=True)
    if len(identities) < 2:
        raise UserError(f"{len(identities)} test people", "two or more are needed to compare")
    counts = np.bincount(member).astype(np.float64)
    # (S, I) each
    sums = [np.stack([np.bincount(member, row) for row in side]).astype(np.float64) for side in sides]
    value = float(sides[0].mean() - sides[1].mean())
    fixed, free = _draw(sums, counts, draws, np.random.default_rng(seed))
    people = len(identities)
    low, high = interval_of(fixed, value, people)
    least = _sign_p(sums[0].mean(0) - sums[1].mean(0)) if people < VERY_FEW else 0.0
    p, p_seeds = (max(least, _p(_widened(drawn, value, people), value)) for drawn in (fixed, free))
    return Difference(value, low, high, p, p_seeds, identities=people)


def holm(values: Sequence[float]) -> list[float]:
    """p-values adjusted for there being several comparisons (Holm 1979), in the order given.

    The k-th smallest of n is multiplied by n - k + 1, never falls below an earlier one nor rises above 1.
    """
    adjusted, highest = [0.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        highest = max(highest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = highest
    return adjusted


def _draw(
    sums: list[NDArray[np.float64]], counts: NDArray[np.float64], draws: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(draws,) differences with all seeds, and with seeds drawn too, over the same draws of identities."""
    people, fixed, free = len(counts), [], []
    for start in range(0, draws, _CHUNK):
        size = min(_CHUNK, draws - start)
        times = rng.multinomial(people, np.full(people, 1 / people), size).astype(np.float64)
        drawn = times @ counts
        means = [times @ side.T / drawn[:, None] for side in sums]  # (size, S) mean score of each training
        fixed.append(means[0].mean(1) - means[1].mean(1))
        resampled = [
            (mean * rng.multinomial(mean.shape[1], np.full(mean.shape[1], 1 / mean.shape[1]), size)).sum(1)
            / mean.shape[1]
            for mean in means
        ]
        free.append(resampled[0] - resampled[1])
    return np.concatenate(fixed), np.concatenate(free)


def _p(drawn: NDArray[np.float64], value: float) -> float:
    # Sums of a draw round otherwise than those of the data: equal values must not count as smaller.
    tolerance = 1e-12
    return float((1 + np.count_nonzero(np.abs(drawn - value) >= abs(value) - tolerance)) / (len(drawn) + 1))


def _sign_p(sums: NDArray[np.float64]) -> float:
    """Two-sided p of (I,) sums of the people's differences under all 2^I choices of their signs."""
    choices = (np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums))) & 1
    totals = (1 - 2.0 * choices) @ sums
    return float(np.mean(np.abs(totals) >= abs(sums.sum()) - 1e-12 * np.abs(sums).sum()))
