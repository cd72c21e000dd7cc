"""Scores of a whole set of images on Inception's outputs beside the Frechet distance: KID and Inception
Score.

Both are float64 and independent of the order of the images. What published code draws at random is settled
here by definition: the KID is over all pairs, and not over random subsets; images go to the ten parts of the
Inception Score by a hash of their pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax, xlogy
from torch import Tensor

from reposer.errors import UserError

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
