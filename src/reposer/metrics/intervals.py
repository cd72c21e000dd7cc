"""95 % intervals of a mean by a bootstrap over identities: pictures of one person are not independent."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

REPEATS = 2_000
CHUNK = 100
LEVELS = (0.025, 0.975)


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
    low, high = np.quantile(np.concatenate(means), LEVELS)
    return float(low), float(high)


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
