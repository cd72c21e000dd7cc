"""Distances against scipy in float64, and the search's order."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from reposer.errors import UserError
from reposer.reid.distances import cosine, euclidean, mahalanobis, normalize
from reposer.reid.search import checked, nearest, pool_queries, search
from reposer.structures import FeatureSet


def _features(seed, count, size=24, scale=1.0, offset=0.0):
    return (offset + scale * np.random.default_rng(seed).normal(size=(count, size))).astype(np.float32)


def _set(features, pids, camids):
    names = tuple(f"{i}.jpg" for i in range(len(features)))
    return FeatureSet(features, np.asarray(pids), np.asarray(camids), names)


@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (30, 0), (1, 50), (1e-4, 0)])
def test_euclidean_equals_scipy_even_far_from_the_origin(scale, offset):
    q, g = _features(0, 20, 24, scale, offset), _features(1, 55, 24, scale, offset)
    exact = cdist(q.astype(np.float64), g.astype(np.float64))
    np.testing.assert_allclose(euclidean(q, g).matrix(), exact, rtol=2e-6)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int8, np.float16, np.float32, np.float64])
def test_distances_of_codes_are_exact_so_that_ties_are_ties(dtype):
    """Hamming distances of mostly set bits: their mean is large, and taking it off would round."""
    rng = np.random.default_rng(11)
    q, g = (rng.random((count, 48)) < 0.7 for count in (20, 300))
    ((_, found),) = euclidean(q.astype(dtype), g.astype(dtype)).blocks()
    np.testing.assert_array_equal(found, (q[:, None] != g[None]).sum(2))
    far = euclidean(q * 1000.0 + 5000, g * 1000.0 + 5000).matrix()  # too large to add without rounding
    np.testing.assert_allclose(far, 1000 * cdist(q, g), rtol=2e-6)


def test_cosine_equals_scipy_and_ranks_like_unit_euclidean():
    q, g = _features(2, 20), _features(3, 55)
    np.testing.assert_allclose(cosine(q, g).matrix(), cdist(q, g, "cosine"), atol=3e-7)
    unit = euclidean(normalize(q), normalize(g)).matrix()
    np.testing.assert_array_equal(np.argsort(unit), np.argsort(cosine(q, g).matrix()))


def test_mahalanobis_of_an_indefinite_matrix():
    q, g = _features(4, 9), _features(5, 14)
    half = np.random.default_rng(6).normal(size=(24, 24))
    matrix = half + half.T
    difference = q[:, None].astype(np.float64) - g[None]
    exact = np.einsum("qgd,de,qge->qg", difference, matrix, difference)
    assert (exact < 0).any()
    np.testing.assert_allclose(mahalanobis(q, g, matrix).matrix(), exact, atol=1e-3, rtol=1e-5)


def test_blocks_of_any_size_cover_every_row_once():
    form = euclidean(_features(7, 23), _features(8, 10))
    whole = form.matrix()
    for block_bytes in (1, 3 * 40, 1 << 20):
        rows = []
        for start, block in form.blocks(block_bytes):
            np.testing.assert_allclose(np.sqrt(block), whole[start : start + len(block)], rtol=1e-5)
            rows += range(start, start + len(block))
        assert rows == list(range(23))


def test_copies_have_distance_zero_not_nan():
    x = _features(9, 12, scale=100)
    matrix = euclidean(x, x).matrix()
    assert np.isfinite(matrix).all()
    assert (np.diag(matrix) < 1e-3 * 490).all()  # of the norm: the root of float32's rounding


def test_nearest_lists_ties_in_gallery_order():
    g = np.array([[3.0], [1], [1], [5], [1], [1]], np.float32)
    order, distance = nearest(euclidean(np.zeros((1, 1), np.float32), g), 3)
    assert order.tolist() == [[1, 2, 4]]
    np.testing.assert_allclose(distance, [[1, 1, 1]], rtol=1e-5)
    assert nearest(euclidean(np.zeros((1, 1), np.float32), g), 99)[0].shape == (1, 6)


def test_search_flags_junk_own_camera_and_distractors():
    features = np.array([[0.0], [1], [2], [3], [4]], np.float32)
    gallery = _set(features, [7, 7, -1, 0, 8], [1, 2, 1, 1, 1])
    ranking = search(_set(features[:1], [7], [1]), gallery, top=5, unit=False)
    assert ranking.order.tolist() == [[0, 1, 2, 3, 4]]
    assert ranking.matches.tolist() == [[True, True, False, False, False]]
    assert ranking.valid.tolist() == [[False, True, False, True, True]]
    np.testing.assert_allclose(ranking.distance, [[0, 1, 2, 3, 4]], atol=1e-6)


def test_multi_query_pools_crops_of_one_person_and_camera():
    query = _set(_features(10, 3), [1, 2, 3], [1, 1, 1])
    crops = _set(_features(11, 6), [1, 1, 1, 2, 1, 3], [1, 1, 2, 1, 1, 2])
    unit = crops.features / np.linalg.norm(crops.features, axis=1, keepdims=True)
    for how, pool in (("mean", np.mean), ("max", np.max)):
        pooled, alone = pool_queries(query, crops, how)
        expected = pool(unit[[0, 1, 4]], axis=0)
        np.testing.assert_allclose(pooled.features[0], expected / np.linalg.norm(expected), rtol=1e-5)
        np.testing.assert_allclose(pooled.features[1], unit[3], rtol=1e-5)
        own = query.features[2] / np.linalg.norm(query.features[2])
        np.testing.assert_allclose(pooled.features[2], own, rtol=1e-5)
        assert alone == 1


@pytest.mark.parametrize(
    ("query", "crops", "gallery", "told"),
    [
        ([-1, 1], [1, 2], None, r"of 1 queries and crops is not known \(first 0\.jpg\)"),
        ([1, 2], [-1, -3], [1, 2], r"of 2 queries and crops is not known \(first 0\.jpg\)"),
        ([-1, -1], [-1, -1], [-1, -1], "of 4 queries and crops"),
        ([0, 0], [0, 0], [0, 0], "of 4 queries and crops"),
        ([3, 3], [3, 3], None, "of 4 queries and crops"),
        ([3, 3], [3, 3], [4, 4], ""),  # as in VIPeR: one camera asks the other
        ([0, 1], [0, 1], [0, 1], ""),
        ([1, 2], [1, 2], [-1, 1], ""),
    ],
)
def test_multi_query_asks_for_cameras(query, crops, gallery, told):
    sets = [_set(_features(seed, 2), [1, 1], camids) for seed, camids in ((1, query), (2, crops))]
    other = None if gallery is None else _set(_features(3, 2), [1, 2], gallery)
    if told:
        with pytest.raises(UserError, match=f"multi-query: the camera {told}"):
            pool_queries(*sets, "mean", other)
    else:
        assert pool_queries(*sets, "mean", other)[1] == sum(camid not in crops for camid in query)


@pytest.mark.parametrize(
    ("value", "problem"),
    [(np.nan, "row 4 holds NaN"), (np.inf, "row 4 holds NaN"), (0.0, "row 4 is all zeros")],
)
def test_bad_features_are_named(value, problem):
    features = _features(12, 6)
    features[4] = value
    with pytest.raises(UserError, match=f"gallery: {problem}"):
        checked(_set(features, range(6), range(6)), "gallery")


def test_huge_finite_features_do_not_overflow():
    x = checked(_set(_features(13, 4, scale=1e25), range(4), range(4)), "query").features
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, rtol=1e-5)


def test_sets_that_do_not_fit_are_named():
    with pytest.raises(UserError, match=r"features of shape \(0, 24\)"):
        checked(_set(_features(14, 0), [], []), "query")
    with pytest.raises(UserError, match="5 pids"):
        checked(FeatureSet(_features(14, 4), np.arange(5), np.arange(4), ("a",) * 4), "query")
    with pytest.raises(UserError, match="24 numbers each, gallery features 12"):
        euclidean(_features(15, 2), _features(16, 2, 12))
