"""Scores of whole sets of images: Frechet distance, kernel distance (KID) and Inception Score."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax, xlogy
from torch import Tensor

from reposer.errors import UserError
from reposer.metrics.intervals import bootstrap_weights

# ---- Frechet distance between two sets of features (Heusel et al., NeurIPS 2017): float64, streaming, exact.
#
# Each set becomes a Gaussian N(m, S); the squared 2-Wasserstein distance of the two (Dowson and Landau, 1982)
# is
#
#     |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2).
#
# With any factors S1 = F1' F1 and S2 = F2' F2 the last trace is the sum of the singular values of F1 F2'.
# That form needs no matrix square root: it cannot become complex or NaN, loses no digits on singular
# covariances, and takes fewer images than dimensions as they are (F = the centered rows). The small-sample
# bias stays: 312 at 32 images a side against 13 at 4,000 for the same two distributions of 512 dimensions.
# Below SMALL_SAMPLE images a value is a warning.

SMALL_SAMPLE = 10_000  # images; values from fewer are dominated by bias
BOOTSTRAP_REPEATS = 32  # enough for a standard error within about 12 %
COLLAPSED = 1e-12  # total variance below this part of the mean's squared length: all images look alike

Features = NDArray[np.float64]


class FeatureStatistics:
    """Count, mean and covariance of a stream of feature rows; independent of their order and of the batches.

    Up to ``dimension`` rows are kept as they are (the exact low-rank form); more are folded into the scatter
    matrix by the update of Chan, Golub and LeVeque (1983), which unlike sum-of-products does not cancel
    digits.
    """

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self.rows = np.empty((0, dimension))  # (R, D) not folded yet, R <= D
        self.folded = 0  # rows in mean and scatter
        self.mean = np.zeros(dimension)  # of the folded rows
        self.scatter: Features | None = None  # (D, D) sum of squares around that mean
        self._moments: tuple[Features, Features] | None = None  # computed when asked for, until the next row

    @property
    def count(self) -> int:
        """Number of rows so far."""
        return self.folded + len(self.rows)

    def update(self, features: ArrayLike) -> None:
        """Add rows (N, D).

        Raises:
            UserError: a value is NaN or infinite.
        """
        rows = np.asarray(features, np.float64)
        if rows.ndim != 2 or rows.shape[1] != self.dimension:
            raise ValueError(f"expected features (N, {self.dimension}), got {rows.shape}")
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if len(bad):
            raise UserError(
                f"features of image {self.count + int(bad[0])} are not finite",
                "look at that image and at the network",
            )
        self._moments = None
        while len(rows):
            room = self.dimension - len(self.rows)
            self.rows, rows = np.concatenate([self.rows, rows[:room]]), rows[room:]
            if len(rows):
                self._fold()

    def merge(self, other: FeatureStatistics) -> None:
        """Add all rows of ``other``, as if they had come here."""
        if other.scatter is not None:
            self._moments = None
            self._fold()
            self._add(other.folded, other.mean, other.scatter)
        self.update(other.rows)

    def moments(self) -> tuple[Features, Features]:
        """Mean (D,) and factor F (R, D) with covariance F' F (divided by count - 1); R <= D.

        Raises:
            UserError: fewer than two rows.
        """
        if self.count < 2:
            raise UserError(f"a Frechet distance needs at least 2 images, got {self.count}")
        if self._moments is None:
            self._moments = self._compute_moments()
        return self._moments

    def state(self) -> dict[str, Features]:
        """Everything as arrays, for a file; ``from_state`` reads it."""
        arrays = {"rows": self.rows, "folded": np.array([self.folded], np.float64), "mean": self.mean}
        return arrays if self.scatter is None else {**arrays, "scatter": self.scatter}

    @classmethod
    def from_state(cls, state: Mapping[str, Features]) -> FeatureStatistics:
        """The statistics that ``state`` came from."""
        statistics = cls(len(state["mean"]))
        statistics.rows, statistics.mean = state["rows"], state["mean"]
        statistics.folded, statistics.scatter = int(state["folded"][0]), state.get("scatter")
        return statistics

    def _compute_moments(self) -> tuple[Features, Features]:
        if self.scatter is None:
            mean = self.rows.mean(axis=0)
            return mean, (self.rows - mean) / np.sqrt(self.count - 1)
        self._fold()
        values, vectors = np.linalg.eigh(self.scatter / (self.count - 1))
        # the rest is rounding of zeros
        kept = values > self.dimension * np.finfo(np.float64).eps * values[-1]
        return self.mean, np.sqrt(values[kept])[:, None] * vectors[:, kept].T

    def _fold(self) -> None:
        if len(self.rows):
            mean = self.rows.mean(axis=0)
            centered = self.rows - mean
            self._add(len(self.rows), mean, centered.T @ centered)
            self.rows = np.empty((0, self.dimension))

    def _add(self, count: int, mean: Features, scatter: Features) -> None:
        if self.scatter is None:
            self.folded, self.mean, self.scatter = count, mean.copy(), scatter.copy()
            return
        total = self.folded + count
        shift = mean - self.mean
        # A new array: one handed out by ``state`` must not change.
        self.scatter = self.scatter + scatter + np.outer(shift, shift) * (self.folded * count / total)
        self.mean = self.mean + shift * (count / total)
        self.folded = total


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Squared Frechet distance, finite and >= 0.

    Raises:
        UserError: fewer than two images on a side.
    """
    (mean_a, factor_a), (mean_b, factor_b) = a.moments(), b.moments()
    overlap = np.linalg.svd(factor_a @ factor_b.T, compute_uv=False).sum()
    value = ((mean_a - mean_b) ** 2).sum() + (factor_a**2).sum() + (factor_b**2).sum() - 2 * overlap
    return max(float(value), 0.0)


def is_collapsed(statistics: FeatureStatistics) -> bool:
    """Whether all rows are (nearly) one and the same: a generator that always draws one picture."""
    mean, factor = statistics.moments()
    return bool((factor**2).sum() <= COLLAPSED * (mean**2).sum())


def bootstrap_error(
    features: NDArray[np.float32],
    reference: FeatureStatistics,
    clusters: NDArray[np.int64] | None = None,
    seed: int = 0,
    repeats: int = BOOTSTRAP_REPEATS,
) -> float | None:
    """Bootstrap standard error of the distance of ``features`` (N, D) from a fixed reference; None if
    unknown.

    Whole clusters (identities) are drawn. The standard error is given, not percentiles: repeated rows raise
    the small-sample bias, so that all bootstrap values lie above the value itself.
    """
    mean_reference, factor_reference = reference.moments()
    rows = np.asarray(features, np.float64) - mean_reference
    projected = rows @ factor_reference.T  # (N, R)
    squared = (rows**2).sum(axis=1)
    spread = (factor_reference**2).sum()
    values = []
    for weights in bootstrap_weights(len(rows), clusters, repeats, seed):
        count, used = weights.sum(), weights > 0
        if count < 2:
            continue
        mean = weights @ rows / count
        variance = (weights @ squared - count * (mean**2).sum()) / (count - 1)
        scaled = np.sqrt(weights[used] / (count - 1))[:, None] * (
            projected[used] - weights @ projected / count
        )
        gram = scaled.T @ scaled if scaled.shape[0] > scaled.shape[1] else scaled @ scaled.T
        overlap = np.sqrt(
            np.clip(np.linalg.eigvalsh(gram), 0, None)
        ).sum()  # fast; precise enough for an error
        values.append(float((mean**2).sum() + variance + spread - 2 * overlap))
    distinct = len(rows) if clusters is None else len(np.unique(clusters))
    return float(np.std(values, ddof=1)) if distinct > 1 and len(values) > 1 else None


# ---- Scores of a whole set of images on Inception's outputs beside the Frechet distance: KID and Inception
# Score.
#
# Both are float64 and independent of the order of the images. What published code draws at random is settled
# here by definition: the KID is over all pairs, and not over random subsets; images go to the ten parts of
# the Inception Score by a hash of their pixels.

SPLITS = 10  # parts of a set, as in the first code of the score (Salimans et al., 2016) and PATN's
_BLOCK = 4_000_000  # kernel values at a time: 32 MB

Rows = NDArray[np.float64]


def kernel_distance(generated: ArrayLike, reference: ArrayLike) -> float:
    """Kernel Inception Distance (Binkowski et al., ICLR 2018): the unbiased estimate of the squared MMD.

    Kernel (x . y / D + 1)^3. Published tools print the mean of this over random subsets of 1,000; all pairs
    at once are the number which that mean scatters around. It can be slightly negative: an unbiased estimate
    of 0 must.

    Args:
        generated, reference: features (N, D) and (M, D), at least two rows each.

    Raises:
        UserError: fewer than two rows, or features that are not finite.
    """
    x, y = _finite(generated, 2), _finite(reference, 2)
    own, cross = _kernel_sums(x, x) - _kernel_diagonal(x), _kernel_sums(x, y)
    return _mmd(float(own.sum()), float(cross.sum()), len(x), _within(y), len(y))


def kernel_distance_error(
    generated: ArrayLike, reference: ArrayLike, clusters: NDArray[np.int64] | None = None
) -> float | None:
    """Standard error of the KID by the jackknife: one cluster of generated rows left out at a time.

    The reference is held fixed. None when there are fewer than two clusters, or when fewer than two rows
    are left.
    """
    x, y = _finite(generated, 2), _finite(reference, 2)
    own, cross = _kernel_sums(x, x) - _kernel_diagonal(x), _kernel_sums(x, y)
    within, values = _within(y), []
    for members in _clusters(len(x), clusters):
        left = len(x) - len(members)
        if left < 2:
            return None
        inside = x[members]
        rest = own.sum() - 2 * own[members].sum() + _kernel_sums(inside, inside).sum()
        rest -= _kernel_diagonal(inside).sum()
        values.append(_mmd(float(rest), float(cross.sum() - cross[members].sum()), left, within, len(y)))
    return _jackknife(values)


def inception_score(logits: ArrayLike, parts: NDArray[np.int64]) -> Rows:
    """exp(mean KL(p(y|x) || p(y))) of each part (Salimans et al., NeurIPS 2016), each at least 1.

    Args:
        logits: (N, K) of the classes.
        parts: (N,) the part of each row, see ``parts_of``; p(y) is the mean of the part.

    Raises:
        UserError: no row, or logits that are not finite.
    """
    p, entropy = _probabilities(logits)
    scores = []
    for part in np.unique(parts):
        rows = parts == part
        scores.append(_score(p[rows].sum(axis=0), float(entropy[rows].sum()), int(rows.sum())))
    return np.array(scores)


def inception_score_error(
    logits: ArrayLike, parts: NDArray[np.int64], clusters: NDArray[np.int64] | None = None
) -> float | None:
    """Standard error of the mean over parts by the jackknife over clusters; None where a part would be
    empty."""
    p, entropy = _probabilities(logits)
    _, part = np.unique(parts, return_inverse=True)
    count = int(part.max()) + 1
    sums = np.stack([p[part == k].sum(axis=0) for k in range(count)])
    entropies, sizes = np.bincount(part, entropy), np.bincount(part)
    whole = np.array([_score(*row) for row in zip(sums, entropies, sizes, strict=True)])
    values = []
    for members in _clusters(len(p), clusters):
        scores = whole.copy()
        for k in np.unique(part[members]):
            rows = members[part[members] == k]
            if sizes[k] == len(rows):
                return None
            rest = sums[k] - p[rows].sum(axis=0), entropies[k] - entropy[rows].sum()
            scores[k] = _score(*rest, int(sizes[k]) - len(rows))
        values.append(float(scores.mean()))
    return _jackknife(values)


def pixel_hashes(images: Tensor) -> list[bytes]:
    """sha256 of the pixels of each image, uint8 (B, 3, H, W)."""
    rows = images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return [hashlib.sha256(row.tobytes()).digest() for row in rows]


def parts_of(hashes: Sequence[bytes], splits: int = SPLITS) -> NDArray[np.int64]:
    """(N,) part of each image: a shuffle that depends on nothing but the images, cut into equal parts."""
    order = np.array(sorted(range(len(hashes)), key=hashes.__getitem__), np.int64)
    bounds = np.arange(splits + 1) * len(hashes) // splits
    parts = np.empty(len(hashes), np.int64)
    parts[order] = np.repeat(np.arange(splits), np.diff(bounds))
    return parts


def _finite(rows: ArrayLike, least: int) -> Rows:
    array = np.asarray(rows, np.float64)
    if array.ndim != 2 or len(array) < least:
        raise UserError(f"features of shape {array.shape}", f"at least {least} images are needed")
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if len(bad):
        raise UserError(f"features of image {bad[0]} are not finite", "look at that image and at the network")
    return array


def _kernel_sums(x: Rows, y: Rows) -> Rows:
    """(N,) sum of k(x_i, y_j) over all j, in blocks."""
    block = max(1, _BLOCK // max(1, len(y)))
    parts = [
        ((x[start : start + block] @ y.T / x.shape[1] + 1) ** 3).sum(axis=1)
        for start in range(0, len(x), block)
    ]
    return np.concatenate(parts)


def _kernel_diagonal(x: Rows) -> Rows:
    return np.asarray(((x * x).sum(axis=1) / x.shape[1] + 1) ** 3)


def _within(y: Rows) -> float:
    """Mean kernel over the pairs of different rows."""
    return float((_kernel_sums(y, y) - _kernel_diagonal(y)).sum() / (len(y) * (len(y) - 1)))


def _mmd(own: float, cross: float, count: int, within: float, others: int) -> float:
    return own / (count * (count - 1)) + within - 2 * cross / (count * others)


def _probabilities(logits: ArrayLike) -> tuple[Rows, Rows]:
    """p (N, K), and sum p log p of each row."""
    logarithms = log_softmax(_finite(logits, 1), axis=1)
    p = np.exp(logarithms)
    return p, (p * logarithms).sum(axis=1)


def _score(sums: Rows, entropy: float, count: int) -> float:
    """From sum p, sum of p log p, and the number of images of a part."""
    mean = np.clip(sums / count, 0, None)  # a difference of sums may round below 0
    return max(float(np.exp(entropy / count - xlogy(mean, mean).sum())), 1.0)


def _clusters(count: int, clusters: NDArray[np.int64] | None) -> Iterator[NDArray[np.int64]]:
    """The rows of each cluster; each row alone where there are none."""
    member = np.arange(count) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    order = np.argsort(member, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(member[order])) + 1)


def _jackknife(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    return float(np.sqrt((len(values) - 1) * np.var(values)))
