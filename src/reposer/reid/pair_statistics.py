"""Exact covariances of feature differences over all pairs of images, from sums per person and camera.

For any grouping g, ``P(g) = sum_k (n_k sum_{i in k} x x' - s_k s_k')`` is the sum of (a - b)(a - b)' over all
unordered pairs inside the groups (n_k members, s_k their sum). Inclusion and exclusion over the groupings by
person, by camera and by both then give the pairs that metric learning wants, every one of them, without
listing any: similar = P(person) - P(person and camera), dissimilar = P(all) - P(person) - P(camera) +
P(person and camera). Time O(N D^2) instead of O(pairs D^2); nothing is sampled. Differences have mean zero by
symmetry, so these are covariances.
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
    x = np.ascontiguousarray(features, np.float64)
    person, camera = _codes(pids), _codes(camids)
    ones = np.zeros(len(x), np.int64)
    both = _codes(person * (camera.max(initial=0) + 1) + camera)
    # (grouping, its sign in the similar sum, its sign in the dissimilar sum)
    terms = [(person, 1, -1), (ones, 0, 1)]
    if cross_camera:
        terms += [(both, -1, 1), (camera, 0, -1)]
    weights = np.zeros((2, len(x)))  # of x x', one row a sum
    counts = [0, 0]
    for codes, *signs in terms:
        sizes = np.bincount(codes)
        for kind, sign in enumerate(signs):
            weights[kind] += sign * sizes[codes]
            counts[kind] += sign * int((sizes * (sizes - 1) // 2).sum())
    for kind, name in enumerate(("of one person", "of two persons")):
        if counts[kind] == 0:
            where = " seen by two cameras" if cross_camera else ""
            raise UserError(f"the {len(x)} training images hold no pair {name}{where}", _NO_PAIR_ADVICE)
    sums = [_weighted_gram(x, weight) for weight in weights]
    for codes, *signs in terms:
        group_gram = _gram(_group_sums(x, codes))
        for kind, sign in enumerate(signs):
            if sign:
                sums[kind] -= sign * group_gram
    similar, dissimilar = (_mirrored(total) / count for total, count in zip(sums, counts, strict=True))
    return PairStatistics(similar, dissimilar, *counts)


def condition_number(matrix: NDArray[np.float64], factor: NDArray[np.float64] | None = None) -> float:
    """Of a symmetric positive matrix, in the 1-norm (LAPACK's estimate); inf when it is not positive.

    ``factor`` is its upper Cholesky factor where the caller has it.
    """
    if factor is None:
        try:
            factor = cholesky(matrix, check_finite=False)
        except np.linalg.LinAlgError:
            return float("inf")
    reciprocal, _ = dpocon(factor, np.abs(matrix).sum(axis=0).max(), uplo="U")
    return float(1.0 / reciprocal) if reciprocal > 0 else float("inf")


def _codes(labels: NDArray[Any]) -> NDArray[np.int64]:
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def _group_sums(x: NDArray[np.float64], codes: NDArray[np.int64]) -> NDArray[np.float64]:
    """(K, D) sum of the rows of each group."""
    members = sparse.csr_array((np.ones(len(x)), (codes, np.arange(len(x)))))
    return np.asarray(members @ x)


def _gram(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The upper triangle of x' x, zeros below: half the work of a matrix product."""
    return np.asarray(dsyrk(1.0, x.T, trans=0, lower=0))


def _weighted_gram(x: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """The upper triangle of x' diag(weight) x, summed over blocks of rows that stay in the cache."""
    total = np.zeros((x.shape[1], x.shape[1]), order="F")
    scaled = np.empty((_BLOCK_ROWS, x.shape[1]))
    for start in range(0, len(x), _BLOCK_ROWS):
        part = x[start : start + _BLOCK_ROWS]
        np.multiply(part, np.sqrt(weight[start : start + len(part)])[:, None], out=scaled[: len(part)])
        dsyrk(1.0, scaled[: len(part)].T, beta=1.0, c=total, overwrite_c=1)
    return total


def _mirrored(upper: NDArray[np.float64]) -> NDArray[np.float64]:
    """The symmetric matrix of an upper triangle over zeros."""
    full = upper + upper.T
    np.fill_diagonal(full, np.diag(upper))
    return full
