"""What KISSME and XQDA share: a learned squared distance (a - b)' M (a - b) and its embedding.

Both compare the covariance S of differences between two images of one person with that of two persons, T, and
weigh each direction by how much more the latter spreads. With T v = w S v and v' S v = 1 the published
M = inv(S) - inv(T) is exactly ``V diag(1 - 1/w) V'``. Keeping only w > 1 makes M positive in a way that does
not depend on the features' scale (clipping eigenvalues of M does), and makes z = sqrt(1 - 1/w) V' x an
embedding whose Euclidean distance is the learned one: search, re-ranking and indexes need nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cholesky, eigh, qr, solve_triangular
from scipy.linalg.lapack import dsygst
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError

from reposer.errors import UserError
from reposer.reid.distances import PairwiseForm, check_features, euclidean, mahalanobis
from reposer.reid.pair_statistics import PairStatistics, condition_number

RELATIVE_RIDGE = 0.1  # of the mean eigenvalue of S; compared with other values in docs/reid.md


class QuadraticMetric(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Base of the estimators; ``fit`` of a subclass sets the attributes.

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
        check_features(features, "features")
        if features.shape[1] != len(self.mean_):
            raise UserError(
                f"features of {features.shape[1]} numbers for a metric learned on {len(self.mean_)}",
                "extract them with the network whose features it was fitted on",
            )
        return np.asarray(features @ self.components_ - self.mean_ @ self.components_, np.float64)

    def _take(self, solution: Solution, basis: NDArray[np.float64] | None, pairs: tuple[int, int]) -> None:
        """Set the attributes from a solution in coordinates of ``basis`` (D, K); None: of the features."""
        self.components_ = solution.directions if basis is None else basis @ solution.directions
        self.weights_, self.eigenvalues_ = solution.weights, solution.eigenvalues
        self.ridge_ = solution.ridge
        self.condition_number_ = solution.condition
        self.condition_number_before_ = solution.condition_before
        self.similar_pairs_, self.dissimilar_pairs_ = pairs


@dataclass(frozen=True, slots=True)
class Solution:
    """A solved metric in K coordinates; the fields of QuadraticMetric."""

    directions: NDArray[np.float64]  # (K, R)
    weights: NDArray[np.float64]  # (R,)
    eigenvalues: NDArray[np.float64]  # (R,)
    ridge: float
    condition: float
    condition_before: float


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
        factor = cholesky(similar, check_finite=False)  # similar = factor' factor
    except LinAlgError as error:
        raise UserError(
            f"{statistics.similar_pairs} pairs of one person do not span the {size} features",
            "give a ridge above 0, more images or fewer features",
        ) from error
    # What scipy.linalg.eigh does for a pair of matrices, with the factor at hand and a faster driver.
    reduced, _ = dsygst(statistics.dissimilar, factor, itype=1, lower=0)
    values, vectors = eigh(reduced, lower=False, driver="evd", check_finite=False)
    values, vectors = values[::-1], vectors[:, ::-1]
    kept = int((values > 1).sum())
    if not kept:
        raise UserError(
            "no direction of the features spreads more between persons than within one",
            "check the person labels: features of these images do not follow them",
        )
    values, directions = values[:kept], solve_triangular(factor, vectors[:, :kept], check_finite=False)
    condition = condition_number(similar, factor)
    return Solution(directions, 1 - 1 / values, values, ridge, condition, condition_before)


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
    check_features(features, "training features")
    pids, camids = np.asarray(pids), np.asarray(camids)
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
