"""Metrics learned from pairs of training features: KISSME (Koestinger et al., CVPR 2012) and XQDA (Liao et
al., CVPR 2015), each an estimator whose distance is smaller for closer; their common fit, the default, is in
``reid/quadratic.py``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, eigh, inv, svd

from reposer.errors import UserError
from reposer.reid.quadratic import (
    Fitted,
    PairStatistics,
    QuadraticMetric,
    Solution,
    condition_number,
    diagonal,
    span,
    spread_ratio,
)

# ---- KISSME: "keep it simple and straightforward" metrics (Koestinger et al., CVPR 2012), over all pairs.
#
# M = inv(S) - inv(T), S and T the covariances of differences between images of one person and of two
# persons. Differences from the pipeline around it in Market-1501's IDE baseline, which ``reference=True``
# follows: every cross-camera pair counts (114,025 similar and 67,976,279 dissimilar ones on Market-1501)
# instead of every tenth of a sample; M is made positive by dropping directions with w <= 1, not by an
# absolute clip; S gets a relative ridge. Without PCA and ridge the distance does not change under any
# invertible affine map of the features.

REFERENCE_STRIDE = 10  # the published pipeline uses every tenth pair
REFERENCE_DRAWS = 150_000  # and looks for its negatives in this many random pairs; more are drawn if needed
RANK_TOLERANCE = 1e-10  # principal variances below this share of the largest are rounding


class KISSME(QuadraticMetric):
    """A learned distance in the first principal components.

    As :class:`QuadraticMetric`; with ``reference`` sampled pairs, an absolute clip, and no ``ridge`` unless
    one is given.

    Args:
        n_components: principal components kept (at most as many as the data span); None: no PCA.

    Attributes (besides those of QuadraticMetric):
        n_components_: principal components used.
    """

    n_components_: int

    def __init__(
        self,
        n_components: int | None = 200,
        ridge: float | None = None,
        *,
        cross_camera: bool = True,
        reference: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(ridge, cross_camera=cross_camera, reference=reference, seed=seed)
        self.n_components = n_components

    def _subspace(self, x: NDArray[np.float64]) -> tuple[NDArray[np.float64] | None, int]:
        if self.n_components is None:
            basis, size = super()._subspace(x)
            self.n_components_ = x.shape[1] if basis is None else basis.shape[1]
            return basis, size
        components = principal_components(x, self.n_components)
        self.n_components_ = components.shape[1]
        return components, self.n_components_

    def _fit_published(
        self, x: NDArray[np.float64], pids: NDArray[np.int64], camids: NDArray[np.int64]
    ) -> Fitted:
        basis, _ = self._subspace(x)
        x = x if basis is None else x @ basis
        statistics = _sampled_statistics(x, pids, camids, np.random.default_rng(self.seed))
        return solve_published(statistics, self.ridge or 0.0), basis


def principal_components(x: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """(D, K) orthonormal directions of largest variance of centered x (N, D), K <= count, none of variance 0.

    Raises:
        UserError: all rows are equal.
    """
    wide = x.shape[1] > len(x)
    gram = x @ x.T if wide else x.T @ x
    size = len(gram)
    top = (max(0, size - count), size - 1)
    values, vectors = eigh(gram, subset_by_index=top, check_finite=False)
    kept = values > max(values[-1] * RANK_TOLERANCE, 0.0)
    if not kept.any():
        raise UserError("all training features are equal", "check how they were extracted")
    values, vectors = values[kept][::-1], vectors[:, kept][:, ::-1]
    return np.asarray(x.T @ vectors / np.sqrt(values) if wide else vectors)


def _sampled_statistics(
    x: NDArray[np.float64], pids: NDArray[np.int64], camids: NDArray[np.int64], rng: np.random.Generator
) -> PairStatistics:
    """Every tenth of: all cross-camera pairs of one person, and as many random ones of two persons.

    Where a tenth would be fewer pairs than components (VIPeR: 316 pairs), all of them count, as in
    Koestinger's own experiments there.
    """
    similar = _cross_camera_pairs(pids, camids)
    dissimilar = _random_negatives(pids, camids, len(similar), rng)
    stride = REFERENCE_STRIDE if len(similar) >= REFERENCE_STRIDE * x.shape[1] else 1
    kinds = []
    for pairs in (similar, dissimilar):
        pairs = pairs[::stride]
        difference = x[pairs[:, 0]] - x[pairs[:, 1]]
        kinds.append((difference.T @ difference / len(pairs), len(pairs)))
    (s, s_pairs), (t, t_pairs) = kinds
    return PairStatistics(s, t, s_pairs, t_pairs)


def _cross_camera_pairs(pids: NDArray[np.int64], camids: NDArray[np.int64]) -> NDArray[np.int64]:
    pairs = []
    for pid in np.unique(pids):
        rows = np.flatnonzero(pids == pid)
        a, b = np.triu_indices(len(rows), 1)
        apart = camids[rows[a]] != camids[rows[b]]
        pairs.append(np.stack([rows[a[apart]], rows[b[apart]]], axis=1))
    found = np.concatenate(pairs)
    if not len(found):
        raise UserError(
            "no pair of training images shows one person from two cameras",
            "give images from at least two cameras",
        )
    return found


def _random_negatives(
    pids: NDArray[np.int64], camids: NDArray[np.int64], count: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    found: list[NDArray[np.int64]] = []
    while sum(map(len, found)) < count:
        drawn = rng.integers(len(pids), size=(REFERENCE_DRAWS, 2))
        a, b = drawn.T
        found.append(drawn[(pids[a] != pids[b]) & (camids[a] != camids[b])])
        if not len(found[-1]):
            raise UserError(
                "no pair of training images shows two people from two cameras",
                "give images of several people from each camera",
            )
    return np.concatenate(found)[:count]


def solve_published(statistics: PairStatistics, relative_ridge: float) -> Solution:
    """inv(S) - inv(T), then the toolbox's step to a positive form: eigenvalues <= 1e-10 become 1e-6."""
    size = len(statistics.similar)
    ridge = relative_ridge * float(np.trace(statistics.similar)) / size
    before = condition_number(statistics.similar)
    similar = statistics.similar + ridge * np.eye(size)
    condition = condition_number(similar)
    if not np.isfinite(condition) or condition * np.finfo(np.float64).eps > 1e-2:
        raise UserError(
            f"{statistics.similar_pairs} sampled pairs of one person do not span {size} components",
            "keep fewer components, give a ridge, more images, or reference=False",
        )
    form = inv(similar) - inv(statistics.dissimilar)
    form = (form + form.T) / 2
    directions, weights = diagonal(form, np.eye(size))
    try:
        cholesky(form)
    except np.linalg.LinAlgError:
        weights = np.where(weights <= 1e-10, 1e-6, weights)
    eigenvalues = spread_ratio(directions, similar, statistics.dissimilar)
    pairs = statistics.similar_pairs, statistics.dissimilar_pairs
    return Solution(directions, weights, eigenvalues, ridge, condition, before, pairs)


# ---- XQDA: cross-view quadratic discriminant analysis (Liao et al., CVPR 2015, "LOMO + XQDA"), over all
# pairs.
#
# Differences from the authors' XQDA.m 1.0, which ``reference=True`` follows step by step: every pair from
# two cameras counts instead of the pairs of two sampled views; the generalized eigenproblem is solved
# instead of an SVD of the non-symmetric inv(I) E, so that M is positive and closed-form; the ridge is
# relative to the features' scale instead of an absolute 0.001, which collapses as the scale shrinks.

REFERENCE_RIDGE = 1e-3  # absolute, added to I only


class XQDA(QuadraticMetric):
    """A learned subspace and distance for search across cameras.

    As :class:`QuadraticMetric`; with ``reference`` two sampled views, an SVD, and an absolute ``ridge``
    (None: 0.001).
    """

    def _fit_published(
        self, x: NDArray[np.float64], pids: NDArray[np.int64], camids: NDArray[np.int64]
    ) -> Fitted:
        first, second = sample_views(pids, camids, np.random.default_rng(self.seed))
        basis = span(np.concatenate([x[first], x[second]]))
        x = x if basis is None else x @ basis
        similar, dissimilar, pairs = view_covariances(x[first], pids[first], x[second], pids[second])
        ridge = REFERENCE_RIDGE if self.ridge is None else self.ridge
        condition_before = condition_number(similar)
        similar += ridge * np.eye(len(similar))
        left, values, _ = svd(np.linalg.solve(similar, dissimilar), check_finite=False)
        kept = max(1, int((values > 1).sum()))
        directions = left[:, :kept]
        form = inv(directions.T @ similar @ directions) - inv(directions.T @ dissimilar @ directions)
        directions, weights = diagonal(form, directions)
        eigenvalues = spread_ratio(directions, similar, dissimilar)
        condition = condition_number(similar)
        return Solution(directions, weights, eigenvalues, ridge, condition, condition_before, pairs), basis


def sample_views(
    pids: NDArray[np.int64], camids: NDArray[np.int64], rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of two views, as the IDE baseline of Market-1501 makes them (zhunzhong07/IDE-baseline).

    Each person's images are halved at random, the i-th of one half is put beside the i-th of the other, and
    pairs of one camera are dropped.

    Raises:
        UserError: nothing is left.
    """
    first, second = [], []
    for pid in np.unique(pids):
        rows = rng.permutation(np.flatnonzero(pids == pid))
        half = len(rows) // 2
        a, b = rows[:half], rows[half : 2 * half]
        apart = camids[a] != camids[b]
        first.append(a[apart])
        second.append(b[apart])
    views = np.concatenate(first), np.concatenate(second)
    if not len(views[0]):
        raise UserError(
            "no pair of training images shows one person from two cameras",
            "give images from at least two cameras",
        )
    return views


def view_covariances(
    g: NDArray[np.float64], g_pids: NDArray[np.int64], p: NDArray[np.float64], p_pids: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[int, int]]:
    """XQDA.m's covariances I and E of differences between every row of g (n, D) and every row of p (m, D).

    Returns:
        I over pairs of one person, E over all others, and their numbers of pairs.
    """
    people = np.unique(np.concatenate([g_pids, p_pids]))
    g_one = (people[:, None] == g_pids).astype(np.float64)  # (K, n)
    p_one = (people[:, None] == p_pids).astype(np.float64)
    g_partners, p_partners = g_one.T @ p_one.sum(axis=1), p_one.T @ g_one.sum(axis=1)
    cross = (g_one @ g).T @ (p_one @ p)
    similar = (g * g_partners[:, None]).T @ g + (p * p_partners[:, None]).T @ p - cross - cross.T
    cross = np.outer(g.sum(axis=0), p.sum(axis=0))
    dissimilar = len(p) * g.T @ g + len(g) * p.T @ p - cross - cross.T - similar
    similar_pairs = int(g_partners.sum())
    dissimilar_pairs = len(g) * len(p) - similar_pairs
    if not dissimilar_pairs:
        raise UserError("the training images show one person only", "give images of at least two people")
    return similar / similar_pairs, dissimilar / dissimilar_pairs, (similar_pairs, dissimilar_pairs)
