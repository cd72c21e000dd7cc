"""XQDA: cross-view quadratic discriminant analysis (Liao et al., CVPR 2015, "LOMO + XQDA"), over all pairs.

Differences from the authors' XQDA.m 1.0, which ``reference=True`` follows step by step: every pair from two
cameras counts instead of the pairs of two sampled views; the generalized eigenproblem is solved instead of an
SVD of the non-symmetric inv(I) E, so that M is positive and closed-form; the ridge is relative to the
features' scale instead of an absolute 0.001, which collapses as the scale shrinks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import inv, svd

from reposer.errors import UserError
from reposer.reid.pair_statistics import condition_number
from reposer.reid.quadratic import Fitted, QuadraticMetric, Solution, diagonal, span, spread_ratio

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
