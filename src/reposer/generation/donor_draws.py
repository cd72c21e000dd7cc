"""Drawing donors at random from groups of images, each source's without repetition, for all at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

_STREAM = 21  # of random numbers


@dataclass(frozen=True, slots=True)
class Groups:
    """N images sorted into groups of equal keys."""

    order: NDArray[np.int64]  # (N,) positions, group by group
    starts: NDArray[np.int64]  # (G,) of each group in ``order``
    sizes: NDArray[np.int64]  # (G,)
    member: NDArray[np.int64]  # (N,) the group of each image
    rank: NDArray[np.int64]  # (N,) its place in the group

    @classmethod
    def of(cls, keys: NDArray[np.int64]) -> Self:
        _, member, sizes = np.unique(keys, return_inverse=True, return_counts=True)
        order = np.argsort(member, kind="stable")
        starts = np.cumsum(sizes) - sizes
        rank = np.empty(len(keys), np.int64)
        rank[order] = np.arange(len(keys)) - starts[member[order]]
        return cls(order, starts, sizes, member, rank)


def same_group(keys: NDArray[np.int64], seed: int, copies: int) -> NDArray[np.int64]:
    """(N, copies) other positions of equal key, different ones, at random."""
    groups = Groups.of(keys)
    picks = distinct(groups.sizes[groups.member] - 1, seed, copies)
    picks += picks >= groups.rank[:, None]  # over the source itself
    found = picks >= 0
    return np.where(found, groups.order[groups.starts[groups.member][:, None] + np.maximum(picks, 0)], -1)


def other_groups(keys: NDArray[np.int64], seed: int, copies: int) -> NDArray[np.int64]:
    """(N, copies) positions of other keys, different ones, at random: what follows the group, in a circle."""
    groups = Groups.of(keys)
    sizes = groups.sizes[groups.member]
    picks = distinct(len(keys) - sizes, seed, copies)
    after = (groups.starts[groups.member] + sizes)[:, None]
    return np.where(picks >= 0, groups.order[(after + picks) % len(keys)], -1)


def distinct(sizes: NDArray[np.int64], seed: int, copies: int) -> NDArray[np.int64]:
    """(N, copies) different numbers below ``sizes`` (N,), uniform without replacement; -1 when used up."""
    picks = np.full((len(sizes), copies), -1, np.int64)
    for copy in range(copies):
        left = sizes - copy
        draws = np.random.default_rng([seed, _STREAM, copy]).random(len(sizes))
        pick = (draws * np.maximum(left, 1)).astype(np.int64)  # among those left, counted without gaps
        for earlier in np.sort(picks[:, :copy], axis=1).T:
            pick += pick >= earlier
        picks[:, copy] = np.where(left > 0, pick, -1)
    return picks
