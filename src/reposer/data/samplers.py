"""Stateless samplers: what a step sees is a pure function of (seed, step); resuming needs no sampler state.

Every draw is made for the whole global batch and sliced afterwards; position p of step s is therefore the
same item, flipped or not, for any number of processes and loader workers. Draws for different purposes use
different streams.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_PAIRS, _EPOCH, _FLIPS = 1, 2, 3  # streams


def draw_pairs(n_pairs: int, batch_size: int, seed: int, step: int) -> NDArray[np.int64]:
    """(batch_size,) pair indices of one step, uniform with replacement as PATN draws them."""
    if n_pairs < 1:
        raise ValueError("there are no pairs to draw from")
    return _generator(_PAIRS, seed, step).integers(n_pairs, size=batch_size)


def epoch_order(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """(n,) every index exactly once, in an order of its own for each epoch."""
    return _generator(_EPOCH, seed, epoch).permutation(n)


def draw_flips(batch_size: int, seed: int, step: int, probability: float = 0.5) -> NDArray[np.bool_]:
    """(batch_size,) whether each sample of a step is mirrored."""
    return _generator(_FLIPS, seed, step).random(batch_size) < probability


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
