"""Exact covariances of feature differences over all pairs of images, from sums per person and camera.

For any grouping g, ``P(g) = sum_k (n_k sum_{i in k} x x' - s_k s_k')`` is the sum of (a - b)(a - b)' over all
unordered pairs inside the groups (n_k members, s_k their sum). Differences of such sums give the pairs that
metric learning wants, every one of them, without listing any: similar = P(person) - P(person and camera),
dissimilar = P(all) - P(camera) - similar. Time O(N D^2) instead of O(pairs D^2); nothing is sampled.
Differences have mean zero by symmetry, so these are covariances.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import cholesky
from scipy.linalg.blas import dsyrk
from scipy.linalg.lapack import dpocon

from reposer.arrays import float_array
from reposer.errors import UserError

_BLOCK_ROWS = 1_024
_NO_PAIR_ADVICE = "give several images of each person, from at least two cameras, or set cross_camera=False"


@dataclass(frozen=True, slots=True)
class PairStatistics:
    """Mean of (a - b)(a - b)' over the pairs of one person and of two persons."""

    similar: NDArray[np.float64]  # (D, D)
    dissimilar: NDArray[np.float64]  # (D, D)
    similar_pairs: int
    dissimilar_pairs: int


def pair_statistics(
    features: NDArray[np.floating],
    pids: NDArray[np.int64],
    camids: NDArray[np.int64],
    *,
    cross_camera: bool = True,
) -> PairStatistics:
    """Covariances over all unordered pairs of N images.

    Args:
        features: (N, D), already centered by the caller or small against their spread: sums of squares of a
            large common offset would cancel.
        pids, camids: (N,) labels.
        cross_camera: only pairs seen by two different cameras, as a search across cameras will compare.

    Raises:
        UserError: there is no similar pair, or no dissimilar one.
    """
    x = np.ascontiguousarray(float_array(features, "features"), np.float64)
    person, everybody = _codes(pids), np.zeros(len(x), np.int64)
    camera = both = np.arange(len(x))  # every image by itself: all pairs count
    if cross_camera:
        camera = _codes(camids)
        both = _codes(person * (camera.max(initial=0) + 1) + camera)
    similar_pairs = _pairs_apart(person, both)
    dissimilar_pairs = _pairs_apart(everybody, camera) - similar_pairs
    for count, name in ((similar_pairs, "of one person"), (dissimilar_pairs, "of two persons")):
        if count == 0:
            where = " seen by two cameras" if cross_camera else ""
            raise UserError(f"the {len(x)} training images hold no pair {name}{where}", _NO_PAIR_ADVICE)
    similar = _sum_apart(x, person, both)
    dissimilar = _sum_apart(x, everybody, camera)
    dissimilar -= similar
    similar /= similar_pairs
    dissimilar /= dissimilar_pairs
    return PairStatistics(_mirrored(similar), _mirrored(dissimilar), similar_pairs, dissimilar_pairs)


def condition_number(matrix: NDArray[np.float64], factor: NDArray[np.float64] | None = None) -> float:
    """Of a symmetric positive matrix, in the 1-norm (LAPACK's estimate); inf when it is not positive.

    ``factor`` is its lower Cholesky factor where the caller has it.
    """
    if factor is None:
        try:
            factor = cholesky(matrix, lower=True, check_finite=False)
        except np.linalg.LinAlgError:
            return float("inf")
    reciprocal, _ = dpocon(factor, np.abs(matrix).sum(axis=0).max(), uplo="L")
    return float(1.0 / reciprocal) if reciprocal > 0 else float("inf")


def _codes(labels: NDArray[Any]) -> NDArray[np.int64]:
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def _pairs_apart(outer: NDArray[np.int64], inner: NDArray[np.int64]) -> int:
    """Unordered pairs in one outer group and two inner ones."""
    within = [int((sizes * (sizes - 1) // 2).sum()) for sizes in map(np.bincount, (outer, inner))]
    return within[0] - within[1]


def _sum_apart(
    x: NDArray[np.float64], outer: NDArray[np.int64], inner: NDArray[np.int64]
) -> NDArray[np.float64]:
    """P(outer) - P(inner) of groups inside groups: the upper triangle over zeros.

    One inner group of n rows x with sum t, in an outer one of m rows, adds (m - n) sum x x' + t t'. That is
    the Gram matrix of its rows sqrt(m - n) x + t / (sqrt(m) + sqrt(m - n)), so that all inner groups together
    cost one pass over the data; what remains is the sums of the outer groups.

    Args:
        x: (N, D).
        outer: (N,) codes.
        inner: (N,) codes; rows of one code have one outer code.
    """
    members = np.bincount(outer)[outer]
    apart = np.sqrt(members - np.bincount(inner)[inner])
    sums = _group_sums(x, inner, 1 / (np.sqrt(members) + apart))
    total = np.zeros((x.shape[1], x.shape[1]), order="F")
    for start in range(0, len(x), _BLOCK_ROWS):
        part = slice(start, start + _BLOCK_ROWS)
        rows = sums[inner[part]]
        rows += x[part] * apart[part, None]
        dsyrk(1.0, rows.T, beta=1.0, c=total, overwrite_c=1)
    dsyrk(-1.0, _group_sums(x, outer).T, beta=1.0, c=total, overwrite_c=1)
    return total


def _group_sums(
    x: NDArray[np.float64], codes: NDArray[np.int64], weight: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """(K, D) sum of the rows of each group, times ``weight`` (N,)."""
    values = np.ones(len(x)) if weight is None else weight
    return np.asarray(sparse.csr_array((values, (codes, np.arange(len(x))))) @ x)


def _mirrored(upper: NDArray[np.float64]) -> NDArray[np.float64]:
    """The symmetric matrix of an upper triangle over zeros."""
    full = upper + upper.T
    np.fill_diagonal(full, np.diag(upper))
    return full
