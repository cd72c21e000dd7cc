"""Distances between all queries and all gallery images, in blocks of rows; smaller is closer.

Every distance here is ``row_term + column_term - 2 left @ right.T``: one matrix product and two vectors.
Blocks are written into one buffer, so that memory does not grow with the number of queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from reposer.arrays import float_array
from reposer.errors import UserError

BLOCK_BYTES = 32 << 20  # of one block of distances
_UNIT_TOLERANCE = 1e-6  # lengths this close to 1 are 1 in float32
_LARGEST = 1e150  # beyond it, and below its inverse, squares leave float64
_SMALLEST = 1e-30  # features this small or lengths of its inverse are divided in float64


@dataclass(frozen=True, slots=True)
class PairwiseForm:
    """``row_term[:, None] + column_term[None] - 2 left @ right.T`` for Q rows and G columns."""

    left: NDArray[np.float32]  # (Q, D)
    right: NDArray[np.float32]  # (G, D)
    row_term: NDArray[np.float32]  # (Q,)
    column_term: NDArray[np.float32]  # (G,)
    floor: float = 0.0  # rounding must not pass it; -inf for a form that is not positive
    root: bool = False  # report the square root; the squared values rank alike and tie less

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.left), len(self.right)

    def blocks(self, block_bytes: int = BLOCK_BYTES) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """(first row, (q, G) float32) of consecutive rows, never rooted; the next block reuses the array."""
        rows, columns = self.shape
        step = max(1, min(rows, block_bytes // (4 * max(columns, 1))))
        left, right = torch.from_numpy(self.left), torch.from_numpy(self.right)
        row_term, column_term = torch.from_numpy(self.row_term), torch.from_numpy(self.column_term)
        buffer = torch.empty(step, columns)
        for start in range(0, rows, step):
            part = left[start : start + step]
            # torch's product, not numpy's: it follows torch.set_num_threads like the rest of a run.
            block = torch.addmm(column_term, part, right.T, alpha=-2, out=buffer[: len(part)])
            block.add_(row_term[start : start + step, None])
            if self.floor > -np.inf:
                block.clamp_(min=self.floor)
            yield start, block.numpy()

    def matrix(self) -> NDArray[np.float32]:
        """All of it, (Q, G) float32."""
        out = np.empty(self.shape, np.float32)
        for start, block in self.blocks():
            out[start : start + len(block)] = np.sqrt(block) if self.root else block
        return out


Distance = Callable[[NDArray[Any], NDArray[Any]], PairwiseForm]


def euclidean(query: NDArray[Any], gallery: NDArray[Any]) -> PairwiseForm:
    """Euclidean distance of (Q, D) and (G, D) features of any real dtype.

    The expanded form loses as many digits as the squared lengths exceed the squared distances (relative error
    1e-5 at norm 30 in float32). Where half or more of the gallery's squared length is that of its mean, the
    mean is therefore taken off both sides, which changes no distance. Not off whole numbers that float32 adds
    without rounding (binary codes, counts): their distances are exact as they are, and equal ones stay equal.

    Raises:
        UserError: squared lengths that float32 does not hold.
    """
    left, right = float_array(query, "query"), float_array(gallery, "gallery")
    _same_size(left, right)
    mean = right.mean(axis=0, dtype=np.float64)
    far = 2 * (mean @ mean) >= np.einsum("nd,nd->n", right, right, dtype=np.float64).mean()
    if far and not (_adds_exactly(left) and _adds_exactly(right)):
        # Before anything is rounded to float32: differences of large numbers are what counts.
        left, right = left - mean.astype(left.dtype), right - mean.astype(right.dtype)
    left, right = _float32(left), _float32(right)
    return PairwiseForm(left, right, finite_norms(left, "query"), finite_norms(right, "gallery"), root=True)


def cosine(query: NDArray[Any], gallery: NDArray[Any]) -> PairwiseForm:
    """1 - cosine similarity, in [0, 2]; ranks exactly as the Euclidean distance of unit features does.

    Raises:
        UserError: a feature of length zero.
    """
    _same_size(query, gallery)
    left, right = normalize(query, "query") * np.float32(0.5), normalize(gallery, "gallery")
    return PairwiseForm(left, right, np.ones(len(left), np.float32), np.zeros(len(right), np.float32))


def mahalanobis(query: NDArray[Any], gallery: NDArray[Any], matrix: NDArray[Any]) -> PairwiseForm:
    """(a - b)' M (a - b) for a symmetric (D, D) matrix that need not be positive: values may be negative."""
    query, gallery = float_array(query, "query"), float_array(gallery, "gallery")
    matrix = float_array(matrix, "matrix")
    _same_size(query, gallery)
    mean = gallery.mean(axis=0, dtype=np.float64)
    a, b = query - mean, gallery - mean
    left = a @ matrix
    return PairwiseForm(
        left=_float32(left),
        right=_float32(b),
        row_term=_float32(np.einsum("nd,nd->n", left, a)),
        column_term=_float32(np.einsum("nd,nd->n", b @ matrix, b)),
        floor=-np.inf,
    )


DISTANCES: dict[str, Distance] = {"euclidean": euclidean, "cosine": cosine}


def squared_norms(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N,) squared lengths."""
    return np.asarray(np.einsum("nd,nd->n", features, features), np.float32)


def normalize(features: NDArray[Any], what: str = "features") -> NDArray[np.float32]:
    """(N, D) float32 features of length 1, of any real dtype; the array itself where they are so already.

    Raises:
        UserError: NaN, infinity, or a row of length zero, which has no direction.
    """
    features = float_array(features, what)
    length = np.sqrt(check_features(features, what))
    peak = np.abs(features).max(axis=1).astype(np.float64)
    extreme = (peak > 0) & ((peak > _LARGEST) | (peak < 1 / _LARGEST))
    if extreme.any():  # of float64: their squares are infinite or zero
        features = features.astype(np.float64)
        features[extreme] /= peak[extreme, None]
        length[extreme] = np.sqrt(np.einsum("nd,nd->n", features[extreme], features[extreme]))
    zero = np.flatnonzero(length == 0)
    if len(zero):
        raise UserError(
            f"{what}: row {zero[0]} is all zeros ({len(zero)} such rows), so it has no direction to compare",
            "extract these features again, or take the rows out",
        )
    if np.abs(length - 1).max() <= _UNIT_TOLERANCE:
        return _float32(features)
    if features.dtype == np.float32 and peak.min() > _SMALLEST and length.max() < 1 / _SMALLEST:
        return np.asarray(np.divide(features, length[:, None].astype(np.float32)), np.float32)
    return np.asarray(features / length[:, None], np.float32)


def check_features(features: NDArray[Any], what: str) -> NDArray[np.float64]:
    """Refuse what would be ranked silently: NaN, infinity, no rows, no columns, no numbers.

    Returns:
        (N,) squared lengths; infinite where they are beyond float64.

    Raises:
        UserError: names the first bad row.
    """
    features = float_array(features, what)
    if features.ndim != 2 or 0 in features.shape:
        raise UserError(
            f"{what}: features of shape {features.shape}", "give an (N, D) array with N and D at least 1"
        )
    with np.errstate(over="ignore"):
        squared = np.einsum("nd,nd->n", features, features, dtype=np.float64)  # float32 sums may overflow
    bad = np.flatnonzero(~np.isfinite(squared))
    bad = bad[~np.isfinite(features[bad]).all(axis=1)] if len(bad) else bad
    if len(bad):
        raise UserError(
            f"{what}: row {bad[0]} holds NaN or infinity ({len(bad)} such rows)",
            "extract these features again: a distance to them means nothing",
        )
    return np.asarray(squared)


def _adds_exactly(features: NDArray[np.floating]) -> bool:
    """Whether features are whole numbers whose squared distances float32 holds, however they are added."""
    with np.errstate(over="ignore", invalid="ignore"):
        if (features[:1] % 1).any():  # most features; the rest need not be looked at
            return False
        squared = np.einsum("nd,nd->n", features, features, dtype=np.float64)
        small = squared.max(initial=0) <= 2**22  # (|a| + |b|)^2 is at most four times that
        return bool(small and not (features % 1).any())


def _float32(values: NDArray[np.floating]) -> NDArray[np.float32]:
    """Contiguous and writable, as torch wants it; the array itself where it is so already."""
    with np.errstate(over="ignore"):  # finite_norms tells it
        return np.require(values, np.float32, ["C", "W"])


def finite_norms(features: NDArray[np.float32], what: str) -> NDArray[np.float32]:
    """(N,) squared lengths.

    Raises:
        UserError: one of them is beyond float32.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        norms = squared_norms(features)
    bad = np.flatnonzero(~np.isfinite(norms))
    if len(bad):
        raise UserError(
            f"{what}: row {bad[0]} is so long that float32 does not hold its squared length",
            "bring the features to length 1, or divide all of them by one number",
        )
    return norms


def _same_size(query: NDArray[Any], gallery: NDArray[Any]) -> None:
    if query.shape[1] != gallery.shape[1]:
        raise UserError(
            f"query features have {query.shape[1]} numbers each, gallery features {gallery.shape[1]}",
            "extract both with the same network",
        )
