"""Distances between all queries and all gallery images, in blocks of rows; smaller is closer.

Every distance here is ``row_term + column_term - 2 a @ b.T``. The terms ride in two further columns of the
factors, so that a block is one matrix product and nothing else has to pass over it; blocks are written into
one buffer, so that memory does not grow with the number of queries.
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
    """``left @ right.T`` for Q rows and G columns."""

    left: NDArray[np.float32]  # (Q, D + 2): -2 a, 1, row term
    right: NDArray[np.float32]  # (G, D + 2): b, column term, 1
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
        buffer = torch.empty(step, columns)
        for start in range(0, rows, step):
            part = left[start : start + step]
            # torch's product, not numpy's: it follows torch.set_num_threads like the rest of a run.
            block = torch.mm(part, right.T, out=buffer[: len(part)])
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
    left, right = _with_room(query.shape), _with_room(gallery.shape)
    for side, features in ((left, query), (right, gallery)):
        np.subtract(features, mean, out=side[:, :-2], casting="same_kind")
    left[:, -2], left[:, -1] = 1, squared_norms(left[:, :-2])
    right[:, -2], right[:, -1] = squared_norms(right[:, :-2]), 1
    left[:, :-2] *= -2
    return PairwiseForm(left, right, root=True)


def cosine(query: NDArray[np.floating], gallery: NDArray[np.floating]) -> PairwiseForm:
    """1 - cosine similarity, in [0, 2]; ranks exactly as the Euclidean distance of unit features does.

    Raises:
        UserError: a feature of length zero.
    """
    _same_size(query, gallery)
    left, right = _with_room(query.shape), _with_room(gallery.shape)
    np.negative(normalize(query, "query"), out=left[:, :-2])
    right[:, :-2] = normalize(gallery, "gallery")
    left[:, -2:] = right[:, -2:] = 1, 0
    return PairwiseForm(left, right)


def mahalanobis(
    query: NDArray[np.floating], gallery: NDArray[np.floating], matrix: NDArray[np.floating]
) -> PairwiseForm:
    """(a - b)' M (a - b) for a symmetric (D, D) matrix that need not be positive: values may be negative."""
    _same_size(query, gallery)
    mean = gallery.mean(axis=0, dtype=np.float64)
    a, b = query - mean, gallery - mean
    left, right = _with_room(query.shape), _with_room(gallery.shape)
    left[:, :-2], right[:, :-2] = -2 * (a @ matrix), b
    left[:, -2], left[:, -1] = 1, np.einsum("nd,nd->n", a @ matrix, a)
    right[:, -2], right[:, -1] = np.einsum("nd,nd->n", b @ matrix, b), 1
    return PairwiseForm(left, right, floor=-np.inf)


DISTANCES: dict[str, Distance] = {"euclidean": euclidean, "cosine": cosine}


def squared_norms(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N,) squared lengths."""
    return np.asarray(np.einsum("nd,nd->n", features, features), np.float32)


def _with_room(shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.empty((shape[0], shape[1] + 2), np.float32)


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
