"""The fit of KISSME and XQDA: a learned squared distance (a - b)' M (a - b) and its embedding.

Both compare the covariance S of differences between two images of one person with that of two persons, T, and
weigh each direction by how much more the latter spreads. With T v = w S v and v' S v = 1 the published
M = inv(S) - inv(T) is exactly ``V diag(1 - 1/w) V'``. Keeping only w > 1 makes M positive in a way that does
not depend on the features' scale (clipping eigenvalues of M does), and makes z = sqrt(1 - 1/w) V' x an
embedding whose Euclidean distance is the learned one: search, re-ranking and indexes need nothing else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import LinAlgError, cholesky, eigh, eigh_tridiagonal, qr, solve_triangular
from scipy.linalg.blas import dsyrk
from scipy.linalg.lapack import dormqr, dpocon, dsygst, dsytrd, dsytrd_lwork
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError

from reposer.arrays import float_array, whole_labels
from reposer.errors import UserError
from reposer.reid.distances import PairwiseForm, check_features, euclidean, mahalanobis

# ---- Exact covariances of feature differences over all pairs of images, from sums per person and camera.
#
# For any grouping g, P(g) = sum_k (n_k sum_{i in k} x x' - s_k s_k') is the sum of (a - b)(a - b)' over all
# unordered pairs inside the groups (n_k members, s_k their sum). Differences of such sums give the pairs that
# metric learning wants, every one of them, without listing any: similar = P(person) - P(person and camera),
# dissimilar = P(all) - P(camera) - similar. Time O(N D^2) instead of O(pairs D^2); nothing is sampled.
# Differences have mean zero by symmetry, so these are covariances.

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


RELATIVE_RIDGE = 0.1  # of the mean eigenvalue of S; compared with other values in docs/results


class QuadraticMetric(BaseEstimator, ABC):  # type: ignore[misc]  # scikit-learn has no types
    """Base of the estimators: all that KISSME and XQDA have in common over all pairs.

    Args:
        ridge: added to the diagonal of S, relative to its mean eigenvalue; None: 0.1. With ``reference`` as
            the subclass says.
        cross_camera: learn from pairs of two cameras only; False: from all pairs. Not used by ``reference``.
        reference: the published procedure, which samples and whose result need not be positive.
        seed: of its samples.

    Bring features to length 1 first where they come from a network, as the published pipelines do. LOMO +
    XQDA is the exception: its features are used as the extractor leaves them (length sqrt(3)), and an
    absolute ridge of 0.001 (``reference``) speaks of that scale: on unit features it weighs three times more.

    Attributes:
        mean_: (D,) of the training features.
        components_: (D, R) directions, as columns.
        weights_: (R,) of the squared differences along them; >= 0 unless a published procedure is reproduced
            that does not make them so.
        eigenvalues_: (R,) w = spread between persons / spread within one, along each direction; descending
            in the exact metrics.
        ridge_: what was added to the diagonal of S (the shrinkage, in the features' squared unit).
        condition_number_: of S with the ridge; condition_number_before_: without it (inf: singular).
        similar_pairs_, dissimilar_pairs_: how many pairs S and T are means of.
    """

    mean_: NDArray[np.float64]
    components_: NDArray[np.float64]
    weights_: NDArray[np.float64]
    eigenvalues_: NDArray[np.float64]
    ridge_: float
    condition_number_: float
    condition_number_before_: float
    similar_pairs_: int
    dissimilar_pairs_: int

    def __init__(
        self,
        ridge: float | None = None,
        *,
        cross_camera: bool = True,
        reference: bool = False,
        seed: int = 0,
    ) -> None:
        self.ridge = ridge
        self.cross_camera = cross_camera
        self.reference = reference
        self.seed = seed

    def fit(self, features: NDArray[np.floating], pids: NDArray[np.int64], camids: NDArray[np.int64]) -> Self:
        """Learn from N labeled images (N, D); junk and distractors are left out. Returns self.

        Raises:
            UserError: features or labels from which nothing can be learned.
        """
        x, self.mean_, pids, camids = training_rows(features, pids, camids)
        fit = self._fit_published if self.reference else self._fit_exact
        solution, basis = fit(x, pids, camids)
        self.components_ = solution.directions if basis is None else basis @ solution.directions
        self.weights_, self.eigenvalues_ = solution.weights, solution.eigenvalues
        self.ridge_ = solution.ridge
        self.condition_number_ = solution.condition
        self.condition_number_before_ = solution.condition_before
        self.similar_pairs_, self.dissimilar_pairs_ = solution.pairs
        return self

    def _fit_exact(
        self, x: NDArray[np.float64], pids: NDArray[np.int64], camids: NDArray[np.int64]
    ) -> Fitted:
        basis, size = self._subspace(x)
        projected = x if basis is None else x @ basis
        statistics = pair_statistics(projected, pids, camids, cross_camera=self.cross_camera)
        return solve(statistics, RELATIVE_RIDGE if self.ridge is None else self.ridge, size), basis

    def _subspace(self, x: NDArray[np.float64]) -> tuple[NDArray[np.float64] | None, int]:
        """Columns (D, K) that span where the metric is learned, None for everywhere, and how many features
        the mean eigenvalue of S is a mean over."""
        return span(x), x.shape[1]

    @abstractmethod
    def _fit_published(
        self, x: NDArray[np.float64], pids: NDArray[np.int64], camids: NDArray[np.int64]
    ) -> Fitted:
        """The procedure of the paper's code on centered x (N, D)."""

    def transform(self, features: NDArray[np.floating]) -> NDArray[np.float32]:
        """(N, R) float32 embedding whose squared Euclidean distance is the learned distance.

        Raises:
            UserError: the learned form is not positive (reference procedures only), or wrong features.
        """
        projected = self._project(features)
        if (self.weights_ < 0).any():
            raise UserError(
                f"this {type(self).__name__} (reference=True) is not positive, so it has no embedding",
                "use distance(), or fit with reference=False",
            )
        return np.asarray(projected * np.sqrt(self.weights_), np.float32)

    def form(self, query: NDArray[np.floating], gallery: NDArray[np.floating]) -> PairwiseForm:
        """The learned squared distance of (Q, D) and (G, D) features, to be computed in blocks."""
        if (self.weights_ < 0).any():
            return mahalanobis(self._project(query), self._project(gallery), np.diag(self.weights_))
        return replace(euclidean(self.transform(query), self.transform(gallery)), root=False)

    def distance(self, query: NDArray[np.floating], gallery: NDArray[np.floating]) -> NDArray[np.float32]:
        """(Q, G) learned squared distances, smaller is closer; below 0 only where ``weights_`` are."""
        return self.form(query, gallery).matrix()

    def _project(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        if not hasattr(self, "components_"):
            raise NotFittedError(f"this {type(self).__name__} is not fitted yet: call fit first")
        features = float_array(features, "features")
        check_features(features, "features")
        if features.shape[1] != len(self.mean_):
            raise UserError(
                f"features of {features.shape[1]} numbers for a metric learned on {len(self.mean_)}",
                "extract them with the network whose features it was fitted on",
            )
        return np.asarray(features @ self.components_ - self.mean_ @ self.components_, np.float64)


@dataclass(frozen=True, slots=True)
class Solution:
    """A solved metric in K coordinates; the fields of QuadraticMetric."""

    directions: NDArray[np.float64]  # (K, R)
    weights: NDArray[np.float64]  # (R,)
    eigenvalues: NDArray[np.float64]  # (R,)
    ridge: float
    condition: float
    condition_before: float
    pairs: tuple[int, int]  # similar, dissimilar


# in coordinates of (D, K) columns; None: of the features
Fitted = tuple[Solution, NDArray[np.float64] | None]


def solve(statistics: PairStatistics, relative_ridge: float, size: int) -> Solution:
    """The exact metric: T v = w S v, v' S v = 1, all w > 1, weights 1 - 1/w.

    Args:
        relative_ridge: S gets ``relative_ridge * trace(S) / size`` on its diagonal.
        size: D, the number of features S speaks of (K may be smaller where the data span less).

    Raises:
        UserError: S is singular and has no ridge, or no direction separates persons.
    """
    similar = statistics.similar
    ridge = relative_ridge * float(np.trace(similar)) / size
    condition_before = condition_number(similar)
    similar = similar + ridge * np.eye(len(similar))
    try:
        factor = cholesky(similar, lower=True, check_finite=False)  # similar = factor factor'
    except LinAlgError as error:
        raise UserError(
            f"{statistics.similar_pairs} pairs of one person do not span the {size} features",
            "give a ridge above 0, more images or fewer features",
        ) from error
    # What scipy.linalg.eigh does for a pair of matrices, with the factor at hand.
    reduced, _ = dsygst(statistics.dissimilar, factor, itype=1, lower=1)
    values, vectors = spectrum_above(reduced, 1.0)
    if not len(values):
        raise UserError(
            "no direction of the features spreads more between persons than within one",
            "check the person labels: features of these images do not follow them",
        )
    directions = solve_triangular(factor, vectors, trans="T", lower=True, check_finite=False)
    condition = condition_number(similar, factor)
    pairs = statistics.similar_pairs, statistics.dissimilar_pairs
    return Solution(directions, 1 - 1 / values, values, ridge, condition, condition_before, pairs)


def spectrum_above(
    matrix: NDArray[np.float64], least: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Eigenvalues above ``least``, descending, and their eigenvectors (columns) of a symmetric matrix (K, K).

    The steps of LAPACK's dsyevd (scipy's driver "evd"), but only the wanted eigenvectors are taken back from
    the tridiagonal form: a quarter of the time less at K = 2,048 with 750 people.

    Args:
        matrix: its lower triangle counts.
    """
    size = len(matrix)
    if size == 1:  # no tridiagonal form
        return (matrix[0], np.ones((1, 1))) if matrix[0, 0] > least else (np.empty(0), np.empty((1, 0)))
    work, _ = dsytrd_lwork(size, lower=1)
    reflectors, diagonals, off_diagonals, scales, _ = dsytrd(matrix, lower=1, lwork=int(work))
    values, rotation = eigh_tridiagonal(diagonals, off_diagonals, check_finite=False)
    kept = np.flatnonzero(values > least)[::-1]
    vectors = np.asfortranarray(rotation[:, kept])
    if len(kept):
        own = (reflectors[1:, :-1], scales, vectors[1:])
        _, work, _ = dormqr("L", "N", *own, -1)
        vectors[1:] = dormqr("L", "N", *own, int(work[0]))[0]
    return values[kept], vectors


def diagonal(form: NDArray[np.float64], directions: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Directions and weights of the symmetric form (R, R) between projections on ``directions`` (K, R)."""
    weights, rotation = eigh((form + form.T) / 2)
    return directions @ rotation, weights


def spread_ratio(
    directions: NDArray[np.float64], similar: NDArray[np.float64], dissimilar: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(R,) v' T v / v' S v of each direction (K, R)."""
    spread = [np.einsum("kr,kr->r", directions, m @ directions) for m in (dissimilar, similar)]
    return np.asarray(spread[0] / spread[1], np.float64)


def training_rows(
    features: NDArray[np.floating], pids: NDArray[np.int64], camids: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Centered float64 features, their mean and labels, without junk and distractors (nobody in particular).

    Raises:
        UserError: NaN or infinity, labels of another length, nobody left.
    """
    features = float_array(features, "training features")
    check_features(features, "training features")
    pids, camids = whole_labels(pids, "training pids"), whole_labels(camids, "training camids")
    if not len(features) == len(pids) == len(camids):
        counts = f"{len(features)} training features, {len(pids)} pids and {len(camids)} camids"
        raise UserError(counts, "give one person and one camera for each feature")
    known = pids > 0
    if not known.any():
        raise UserError("the training set holds only junk (-1) and distractors (0)", "number people from 1")
    rows = features if known.all() else features[known]
    mean = rows.mean(axis=0, dtype=np.float64)
    return rows - mean, mean, pids[known], camids[known]


def span(x: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """(D, N) orthonormal columns that span the rows of x (N, D); None when D <= N: keep the features.

    Differences of training images lie in this span, so a metric learned in it is the same metric.
    """
    if x.shape[1] <= len(x):
        return None
    return np.asarray(qr(x.T, mode="economic", check_finite=False)[0])
