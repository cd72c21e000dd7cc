"""Distances between all queries and all gallery images, in blocks of rows; smaller is closer.

Every distance here is one matrix product and two vectors: ``row_term + column_term - 2 left @ right.T``.
Blocks are written into one buffer, so that memory does not grow with the number of queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from reposer.errors import UserError

BLOCK_BYTES = 32 << 20  # of one block of distances


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
        buffer = torch.empty(step, columns)
        right, column_term = torch.from_numpy(self.right), torch.from_numpy(self.column_term)
        for start in range(0, rows, step):
            left = torch.from_numpy(self.left[start : start + step])
            block = buffer[: len(left)]
            # torch's product, not numpy's: it follows torch.set_num_threads like the rest of a run.
            torch.addmm(column_term, left, right.T, alpha=-2, out=block)
            block.add_(torch.from_numpy(self.row_term[start : start + step])[:, None])
            if self.floor > -np.inf:
                block.clamp_(min=self.floor)
            yield start, block.numpy()

    def matrix(self) -> NDArray[np.float32]:
        """All of it, (Q, G) float32."""
        out = np.empty(self.shape, np.float32)
        for start, block in self.blocks():
            out[start : start + len(block)] = np.sqrt(block) if self.root else block
        return out


Distance = Callable[[NDArray[np.floating], NDArray[np.floating]], PairwiseForm]


def euclidean(query: NDArray[np.floating], gallery: NDArray[np.floating]) -> PairwiseForm:
    """Euclidean distance of (Q, D) and (G, D) features.

    The gallery's mean is taken off both sides first: it changes no distance, and without it the expanded form
    loses digits in float32 (relative error 1e-5 at norm 30).
    """
    _same_size(query, gallery)
    mean = gallery.mean(axis=0, dtype=np.float64).astype(np.float32)
    left, right = np.subtract(query, mean, dtype=np.float32), np.subtract(gallery, mean, dtype=np.float32)
    return PairwiseForm(left, right, squared_norms(left), squared_norms(right), root=True)


def cosine(query: NDArray[np.floating], gallery: NDArray[np.floating]) -> PairwiseForm:
    """1 - cosine similarity, in [0, 2]; ranks exactly as the Euclidean distance of unit features does.

    Raises:
        UserError: a feature of length zero.
    """
    _same_size(query, gallery)
    half = np.float32(0.5)
    left, right = normalize(query, "query"), normalize(gallery, "gallery")
    left *= half  # 1 - left @ right.T in the common form
    return PairwiseForm(left, right, np.ones(len(left), np.float32), np.zeros(len(right), np.float32))


def mahalanobis(
    query: NDArray[np.floating], gallery: NDArray[np.floating], matrix: NDArray[np.floating]
) -> PairwiseForm:
    """(a - b)' M (a - b) for a symmetric (D, D) matrix that need not be positive: values may be negative."""
    _same_size(query, gallery)
    mean = gallery.mean(axis=0, dtype=np.float64)
    a, b = query - mean, gallery - mean
    left = a @ matrix
    row_term, column_term = np.einsum("nd,nd->n", left, a), np.einsum("nd,nd->n", b @ matrix, b)
    return PairwiseForm(
        left=left.astype(np.float32),
        right=b.astype(np.float32),
        row_term=row_term.astype(np.float32),
        column_term=column_term.astype(np.float32),
        floor=-np.inf,
    )


DISTANCES: dict[str, Distance] = {"euclidean": euclidean, "cosine": cosine}


def squared_norms(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N,) squared lengths."""
    return np.asarray(np.einsum("nd,nd->n", features, features), np.float32)


def normalize(features: NDArray[np.floating], what: str = "features") -> NDArray[np.float32]:
    """(N, D) float32 features of length 1.

    Raises:
        UserError: a row of length zero has no direction.
    """
    squared = np.einsum("nd,nd->n", features, features, dtype=np.float64)  # float32 sums may overflow
    length = np.sqrt(squared)[:, None].astype(np.float32)
    zero = np.flatnonzero(length == 0)
    if len(zero):
        raise UserError(
            f"{what}: row {zero[0]} is all zeros ({len(zero)} such rows), so it has no direction to compare",
            "extract these features again, or take the rows out",
        )
    return np.asarray(np.divide(features, length, dtype=np.float32), np.float32)


def check_features(features: NDArray[np.floating], what: str) -> None:
    """Refuse what would be ranked silently: NaN, infinity, no rows, no columns.

    Raises:
        UserError: names the first bad row.
    """
    if features.ndim != 2 or 0 in features.shape:
        raise UserError(
            f"{what}: features of shape {features.shape}", "give an (N, D) array with N and D at least 1"
        )
    finite = np.isfinite(features).all(axis=1)
    bad = np.flatnonzero(~finite)
    if len(bad):
        raise UserError(
            f"{what}: row {bad[0]} holds NaN or infinity ({len(bad)} such rows)",
            "extract these features again: a distance to them means nothing",
        )


def _same_size(query: NDArray[np.floating], gallery: NDArray[np.floating]) -> None:
    if query.shape[1] != gallery.shape[1]:
        raise UserError(
            f"query features have {query.shape[1]} numbers each, gallery features {gallery.shape[1]}",
            "extract both with the same network",
        )
