"""Search: the nearest gallery images of each query, with the flags a reader of rank lists needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from reposer.arrays import float_array, whole_labels
from reposer.errors import UserError, find
from reposer.reid.distances import DISTANCES, PairwiseForm, check_features, normalize
from reposer.reid.quadratic import QuadraticMetric
from reposer.storage.paths import printable
from reposer.structures import FeatureSet, Ranking, unknown_cameras


def checked(features: FeatureSet, what: str, unit: bool = True) -> FeatureSet:
    """The set with features of length 1 (``unit``) or as they are, in float32 or float64, and whole labels,
    after every check that ranking would skip in silence.

    Raises:
        UserError: NaN, infinity, a zero feature, an empty set, labels of another length.
    """
    check_features(features.features, what)
    lengths = {len(features.features), len(features.pids), len(features.camids), len(features.names)}
    if len(lengths) > 1:
        counts = (
            f"{len(features.features)} features, {len(features.pids)} pids, {len(features.camids)} camids"
        )
        raise UserError(
            f"{what}: {counts} and {len(features.names)} names", "give one of each for every image"
        )
    values = normalize(features.features, what) if unit else float_array(features.features, what)
    clothes = features.clothes
    if clothes is not None:
        clothes = whole_labels(clothes, f"{what}: clothes")
        if clothes.shape != (len(values),):
            problem = f"{what}: {len(clothes)} numbers of clothes for {len(values)} features"
            raise UserError(problem, "give one for every image")
    return replace(
        features,
        features=values,
        pids=whole_labels(features.pids, f"{what}: pids"),
        camids=whole_labels(features.camids, f"{what}: camids"),
        clothes=clothes,
    )


NO_CAMERA = "No camera is known: every image counts as a camera of its own."


def with_cameras(*sets: FeatureSet) -> tuple[tuple[FeatureSet, ...], str]:
    """The sets with a camera number of its own for every image whose camera is unknown, and a note about it.

    Unknown is what ``structures.unknown_cameras`` says of all sets together. An image that is in two sets
    (its name and its features are the same) stays one image of one camera, so that no query finds its own
    image.

    Args:
        sets: :func:`checked` ones that are compared with each other.

    Returns:
        the sets, unchanged where every camera is known, and the note, empty then.
    """
    numbers = np.concatenate([each.camids for each in sets])
    unknown = unknown_cameras(numbers)
    if not unknown.any():
        return sets, ""
    taken = 0 if unknown.all() else int(numbers.max())
    numbers = np.where(unknown, taken + 1 + np.arange(len(numbers)), numbers)
    starts = np.cumsum([0, *map(len, sets)])
    first: dict[str, tuple[int, NDArray[np.floating]]] = {}
    for start, each in zip(starts, sets, strict=False):
        for i in np.flatnonzero(unknown[start : start + len(each)]).tolist():
            row, feature = first.setdefault(each.names[i], (start + i, each.features[i]))
            if row != start + i and np.allclose(feature, each.features[i], rtol=1e-3, atol=1e-4):
                numbers[start + i] = numbers[row]
    parts = np.split(numbers, starts[1:-1])
    counted = tuple(replace(each, camids=part) for each, part in zip(sets, parts, strict=True))
    if not unknown.all():
        return counted, (
            f"The camera of {int(unknown.sum()):,} images is not known (a number below 0): each of them"
            " counts as a camera of its own."
        )
    given = np.unique(np.concatenate([each.camids for each in sets]))
    return counted, NO_CAMERA + (f" (All have camera number {given[0]}.)" if given[0] > 0 else "")


def search(
    query: FeatureSet,
    gallery: FeatureSet,
    *,
    distance: str | QuadraticMetric = "euclidean",
    unit: bool = True,
    top: int = 50,
    queries: Sequence[int] | NDArray[np.int64] | None = None,
) -> Ranking:
    """The ``top`` nearest gallery images of each query (or of those numbered in ``queries``).

    Images of unknown camera are treated as :func:`with_cameras` says.

    Junk and same-camera images are listed too, with ``valid`` False. Equal distances are listed in gallery
    order; scores are never taken from this order (see reposer.metrics.retrieval).

    Args:
        distance: a key of DISTANCES, or a fitted KISSME or XQDA.
        unit: bring every feature to length 1 first.

    Raises:
        UserError: as :func:`checked`, or an unknown distance.
    """
    (query, gallery), _ = with_cameras(checked(query, "query", unit), checked(gallery, "gallery", unit))
    rows = np.arange(len(query)) if queries is None else np.asarray(queries, np.int64)
    form = pairwise_form(query.features[rows], gallery.features, distance)
    order, values = nearest(form, top)
    return flagged(order, values, query.pids[rows], query.camids[rows], gallery)


def pairwise_form(
    query: NDArray[np.floating], gallery: NDArray[np.floating], distance: str | QuadraticMetric
) -> PairwiseForm:
    """The distances of (Q, D) and (G, D) features under a named or a learned distance."""
    if isinstance(distance, QuadraticMetric):
        return distance.form(query, gallery)
    return find("distance", distance, DISTANCES)(query, gallery)


def nearest(form: PairwiseForm, top: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(Q, K) column numbers and distances, nearest first, equal distances by column; K = min(top, G)."""
    parts = [nearest_columns(block, top) for _, block in form.blocks()]
    order, values = (np.concatenate(part) for part in zip(*parts, strict=True))
    return order, np.sqrt(values) if form.root else values


def nearest_columns(distance: NDArray[np.float32], top: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """As :func:`nearest`, of a matrix (Q, G) that is at hand."""
    top = min(top, distance.shape[1])
    order = np.empty((len(distance), top), np.int64)
    for i, row in enumerate(distance):
        reach = np.partition(row, top - 1)[top - 1]
        near = np.flatnonzero(row <= reach)  # in column order; more than K with ties at the end
        order[i] = near[np.argsort(row[near], kind="stable")[:top]]
    return order, np.take_along_axis(distance, order, axis=1)


def flagged(
    order: NDArray[np.int64],
    distance: NDArray[np.float32],
    pids: NDArray[np.int64],
    camids: NDArray[np.int64],
    gallery: FeatureSet,
) -> Ranking:
    """A :class:`Ranking` of gallery columns (Q, K) for queries with these labels (Q,)."""
    found_pids = gallery.pids[order]
    same = found_pids == pids[:, None]
    own_camera = same & (gallery.camids[order] == camids[:, None])
    return Ranking(order, distance, matches=same & (found_pids > 0), valid=(found_pids != -1) & ~own_camera)


def expand_queries(query: FeatureSet, gallery: FeatureSet, count: int = 5, alpha: float = 0.0) -> FeatureSet:
    """Query expansion: each query becomes the sum of itself and its nearest gallery images, of length 1.

    ``alpha`` 0 is average query expansion (AQE; Chum et al., ICCV 2007); above 0 each neighbor is weighted by
    (cosine similarity)^alpha, negative similarities by 0 (alpha-QE; Radenovic et al., TPAMI 2019). Labels
    play no part: own-camera images and distractors are neighbors like any other, junk is none. The gallery
    stays as it is (no database-side augmentation), so a query's result does not depend on other queries.

    Args:
        query, gallery: any features; they are brought to length 1.
        count: neighbors, as many as the gallery has at most.

    Raises:
        UserError: as :func:`checked`, count below 1, alpha negative or not finite.
    """
    if count < 1 or not 0 <= alpha < np.inf:
        problem = f"query expansion by {count} neighbors with alpha={alpha}"
        raise UserError(problem, "choose at least 1 neighbor and a finite alpha from 0 on")
    query, gallery = checked(query, "query"), checked(gallery, "gallery")
    known = gallery.features[gallery.pids != -1]
    if not len(known):
        raise UserError("the gallery holds no image that counts", "give at least one gallery image")
    order, _ = nearest(DISTANCES["cosine"](query.features, known), count)
    expanded = np.empty_like(query.features)
    for i, row in enumerate(order):
        near = known[row].astype(np.float64)
        own = query.features[i].astype(np.float64)
        share = np.maximum(near @ own, 0) ** alpha if alpha else np.ones(len(near))
        expanded[i] = own + share @ near
    return replace(query, features=normalize(expanded, "expanded queries"))


def pool_queries(
    query: FeatureSet,
    crops: FeatureSet,
    how: Literal["mean", "max"] = "mean",
    gallery: FeatureSet | None = None,
) -> tuple[FeatureSet, int]:
    """Multi-query: each query's feature becomes that of all ``crops`` of its person and camera, pooled.

    Every crop is brought to length 1, then the mean or the maximum is taken and brought to length 1 again
    (Market-1501's gt_bbox folder; its MATLAB code offers both). Crops of any sequence belong to a query.

    Args:
        gallery: what is searched; its cameras tell whether one number for all queries and crops is a camera.

    Returns:
        the query set with pooled features, and how many queries had no crop and kept their own feature.

    Raises:
        UserError: as :func:`checked`; the camera of a query or crop is unknown
            (``structures.unknown_cameras``): crops of all cameras would be one query's.
    """
    crops = checked(crops, "multi-query crops")
    query = checked(query, "query")
    others = [] if gallery is None else [whole_labels(gallery.camids, "gallery: camids")]
    unknown = unknown_cameras(np.concatenate([query.camids, crops.camids, *others]))
    bad = np.flatnonzero(unknown[: len(query) + len(crops)])
    if len(bad):
        name = printable((*query.names, *crops.names)[bad[0]])
        raise UserError(
            f"multi-query: the camera of {len(bad):,} queries and crops is not known (first {name})",
            "give their cameras, or leave multi-query out: it pools crops of one camera",
        )
    pooled = query.features.copy()
    rows: dict[tuple[int, int], list[int]] = {}
    for i, key in enumerate(zip(crops.pids.tolist(), crops.camids.tolist(), strict=True)):
        rows.setdefault(key, []).append(i)
    alone = 0
    for i, key in enumerate(zip(query.pids.tolist(), query.camids.tolist(), strict=True)):
        members = rows.get(key)
        if members is None:
            alone += 1
            continue
        own = crops.features[members]
        pooled[i] = own.mean(axis=0) if how == "mean" else own.max(axis=0)
    return replace(query, features=normalize(pooled, "pooled queries")), alone
