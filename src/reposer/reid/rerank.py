"""k-reciprocal re-ranking (Zhong et al., CVPR 2017), exact and sparse: no (Q + G)^2 matrix is ever held.

Transductive: the score of one query depends on all other queries, because they are part of the neighborhood
graph. Print that next to every number obtained with it.

For N = Q + G images and D the squared Euclidean distance, each row divided by its largest value:
  R(i, k)  the members of i's k + 1 nearest (itself included) that have i among their own k + 1 nearest;
  R*(i)    R(i, k1) and every R(j, k1 / 2) of a member j of which more than 2/3 lies in R(i, k1);
  V_i      exp(-D_ij) on R*(i), divided by its sum, then averaged over the k2 nearest of i (itself included);
  J_ij     1 - sum_m min(V_im, V_jm) / (2 - sum_m min(V_im, V_jm));
  result   (1 - weight) J + weight D.
All but D is sparse: V has some 60 entries a row on Market-1501. k1 / 2 is rounded half to even, as in the
authors' Python code (their MATLAB code rounds (k1 + 1) / 2; equal at 20). An image is its own nearest even
among exact copies; ties between others are broken by their distances' rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from reposer.arrays import float_array
from reposer.errors import UserError, known
from reposer.reid.distances import BLOCK_BYTES, check_features, finite_norms

_PAIR_CHUNK = 2_048  # pairs of features gathered at once
Variant = Literal["zhong", "fourth_power", "fastreid"]
VARIANTS: tuple[Variant, ...] = ("zhong", "fourth_power", "fastreid")
_LISTED = 64  # neighbors whose distances are kept from the search: most members of R* are among them


@dataclass(frozen=True, slots=True)
class _Neighbors:
    """Nearest neighbors of N images, and the rows of distances that the result needs."""

    order: NDArray[np.int64]  # (N, K) nearest first, the image itself in column 0
    distance: NDArray[np.float32]  # (N, K) squared
    largest: NDArray[np.float32]  # (N,) of each row of D
    query_rows: NDArray[np.float32]  # (Q, G) squared distances of the queries


def k_reciprocal(
    query: NDArray[Any],
    gallery: NDArray[Any],
    *,
    k1: int = 20,
    k2: int = 6,
    weight: float = 0.3,
    variant: Variant = "zhong",
) -> NDArray[np.float32]:
    """(Q, G) re-ranked distances of features (Q, D) and (G, D) of any real dtype; leave junk out of both.

    Memory beyond the inputs: a copy of them, the result, and some 1 KB an image.

    Args:
        k1: size of the reciprocal neighborhoods.
        k2: neighbors that V is averaged over; 1: none.
        weight: of the original distance (the paper's lambda), 0 to 1.
        variant: ``zhong``, the paper and its authors' code; ``fourth_power``, D squared once more, as
            torchreid and layumi's code do by squaring squared distances; ``fastreid``, fast-reid's evaluator
            on unit features: the k1 nearest count the image itself (the k1 / 2 nearest do not), exp(-D) with
            D not divided by the row's largest, and 1 - cosine = D / 2 in the mixture.

    Raises:
        UserError: NaN, infinite or equal features, k2 > k1, k1 or k2 below 1, a weight outside [0, 1], fewer
            than k1 + 1 images, or an unknown variant.
    """
    query, gallery = float_array(query, "query"), float_array(gallery, "gallery")
    check_features(query, "query")
    check_features(gallery, "gallery")
    known_variant(variant)
    count = len(query) + len(gallery)
    if not 1 <= k2 <= k1 < count or not 0 <= weight <= 1:
        raise UserError(
            f"re-ranking with k1={k1}, k2={k2}, weight={weight} of {count} images",
            "choose 1 <= k2 <= k1 < number of images and 0 <= weight <= 1",
        )
    together = np.concatenate([query, gallery])
    together -= together.mean(axis=0, dtype=np.float64).astype(together.dtype)  # see distances.euclidean
    features = np.asarray(together, np.float32)
    norms = finite_norms(features, "query and gallery")
    neighbors = _search(features, norms, len(query), min(count, max(_LISTED, k1 + 1)))
    own = int(variant == "fastreid")  # its k1 counts the image itself
    members = _reciprocal_sets(neighbors.order, k1 - own, int(np.around(k1 / 2)))
    encoding = _encode(members, neighbors, features, norms, variant)
    if k2 > 1:
        rows = np.repeat(np.arange(count), k2)
        share = np.full(len(rows), 1 / k2, np.float32)
        nearest = neighbors.order[:, :k2].ravel()
        encoding = sparse.csr_array((share, (rows, nearest)), shape=(count, count)) @ encoding
    return _mix(encoding, neighbors, len(query), weight, variant)


def known_variant(name: str) -> Variant:
    """The name itself.

    Raises:
        UserError: it is none of VARIANTS.
    """
    return known("re-ranking variant", name, VARIANTS)


def _search(x: NDArray[np.float32], norms: NDArray[np.float32], queries: int, listed: int) -> _Neighbors:
    """All N^2 distances once, in blocks of rows; kept are ``listed`` of each row and the queries' rows."""
    count = len(x)
    features, terms = torch.from_numpy(x), torch.from_numpy(norms)
    order, distance = torch.empty(count, listed, dtype=torch.int64), torch.empty(count, listed)
    largest, query_rows = torch.empty(count), torch.empty(queries, count - queries)
    step = max(1, min(count, BLOCK_BYTES // (4 * count)))
    buffer = torch.empty(step, count)
    for start in range(0, count, step):
        stop = min(start + step, count)
        # D without the row's own term: it is added to the few values that are kept, not to all.
        block = torch.addmm(terms, features[start:stop], features.T, alpha=-2, out=buffer[: stop - start])
        largest[start:stop] = block.amax(dim=1)
        own = torch.arange(start, stop)
        block[own - start, own] = -torch.inf  # before any copy of the same image
        distance[start:stop], order[start:stop] = block.topk(listed, dim=1, largest=False)
        if start < queries:
            query_rows[start:stop] = block[: queries - start, queries:]
    largest.add_(terms)
    query_rows.add_(terms[:queries, None]).clamp_(min=0)
    distance.add_(terms[:, None]).clamp_(min=0)
    if float(largest.min()) <= 0:
        raise UserError("all features are equal", "check how they were extracted")
    return _Neighbors(order.numpy(), distance.numpy(), largest.numpy(), query_rows.numpy())


def _reciprocal_sets(order: NDArray[np.int64], k1: int, half_size: int) -> sparse.csr_array:
    """(N, N) with a 1 for every member of R*(i) in row i."""
    near, half = _reciprocal(order, k1), _reciprocal(order, half_size)
    shared = (near @ half.T).multiply(near).tocsr()  # |R(i, k1) and R(j, k1 / 2)| for members j of R(i, k1)
    sizes = np.diff(half.indptr)
    shared.data = (shared.data > 2 / 3 * sizes[shared.indices]).astype(np.float32)
    members = (near + shared @ half).tocsr()
    members.eliminate_zeros()
    members.sort_indices()
    members.data[:] = 1.0
    return members


def _reciprocal(order: NDArray[np.int64], k: int) -> sparse.csr_array:
    """(N, N) with a 1 where i and j are each among the other's k + 1 nearest, itself included."""
    count = len(order)
    rows = np.repeat(np.arange(count), k + 1)
    ones = np.ones(len(rows), np.float32)
    near = sparse.csr_array((ones, (rows, order[:, : k + 1].ravel())), shape=(count, count))
    return near.multiply(near.T).tocsr()


def _encode(
    members: sparse.csr_array,
    neighbors: _Neighbors,
    x: NDArray[np.float32],
    norms: NDArray[np.float32],
    variant: Variant,
) -> sparse.csr_array:
    """V: exp(-D) on the members, each row divided by its sum."""
    sizes = np.diff(members.indptr)
    rows = np.repeat(np.arange(len(sizes)), sizes)
    distance = _member_distances(rows, members.indices, neighbors, x, norms)
    value = distance if variant == "fastreid" else distance / neighbors.largest[rows]
    value = np.exp(-(value.astype(np.float64) ** 2 if variant == "fourth_power" else value))
    value /= np.bincount(rows, value)[rows]
    return sparse.csr_array((value.astype(np.float32), members.indices, members.indptr), shape=members.shape)


def _member_distances(
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    neighbors: _Neighbors,
    x: NDArray[np.float32],
    norms: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Squared distances of pairs (rows ascending): looked up among the listed neighbors, else computed."""
    count = len(neighbors.order)
    keys = (np.arange(count)[:, None] * count + np.sort(neighbors.order, axis=1)).ravel()
    values = np.take_along_axis(neighbors.distance, np.argsort(neighbors.order, axis=1), axis=1).ravel()
    wanted = rows * count + columns
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    known = keys[place] == wanted
    distance = np.where(known, values[place], 0).astype(np.float32)
    unknown = np.flatnonzero(~known)
    for start in range(0, len(unknown), _PAIR_CHUNK):
        part = unknown[start : start + _PAIR_CHUNK]
        i, j = rows[part], columns[part]
        product = np.einsum("nd,nd->n", x[i], x[j])
        distance[part] = np.maximum(norms[i] + norms[j] - 2 * product, 0)
    return distance


def _mix(
    encoding: sparse.csr_array, neighbors: _Neighbors, queries: int, weight: float, variant: Variant
) -> NDArray[np.float32]:
    """(1 - weight) J + weight D for queries and gallery, in place of the queries' rows of D."""
    by_column = encoding[queries:].tocsc()
    gallery = by_column.shape[0]
    result = neighbors.query_rows
    if variant == "fastreid":
        result *= weight / 2
    else:
        result /= neighbors.largest[:queries, None]
        if variant == "fourth_power":
            np.square(result, out=result)
        result *= weight
    starts, sizes = by_column.indptr[:-1], np.diff(by_column.indptr)
    for i in range(queries):
        span = slice(encoding.indptr[i], encoding.indptr[i + 1])
        columns, own = encoding.indices[span], encoding.data[span]
        taken = np.repeat(starts[columns] - np.cumsum(sizes[columns]) + sizes[columns], sizes[columns])
        taken += np.arange(len(taken))
        least = np.minimum(np.repeat(own, sizes[columns]), by_column.data[taken])
        shared = np.bincount(by_column.indices[taken], least, gallery)
        result[i] += (1 - weight) * (1 - shared / (2 - shared))
    return result
