"""Features, distances and labels of every dtype against the same numbers in float64, written out."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reposer.arrays import float_array, whole_labels
from reposer.errors import UserError
from reposer.metrics.retrieval import RetrievalProtocol
from reposer.reid.distances import cosine, euclidean, normalize
from reposer.reid.features import read_features
from reposer.reid.metric_learners import KISSME, XQDA
from reposer.reid.rerank import k_reciprocal

WHOLE = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
FLOATS = ["float16", "bfloat16", "float32", "float64", "longdouble", "torch.bfloat16", "torch.float16"]
DTYPES = [*WHOLE, "bool", *FLOATS, ">i2", ">i8", ">f4", ">f8", "<u4"]
LAYOUTS = {
    "plain": lambda x: x,
    "transposed": lambda x: x.T.copy().T if isinstance(x, np.ndarray) else x.T.contiguous().T,
    "strided": lambda x: np.repeat(x, 2, axis=1)[:, ::2] if isinstance(x, np.ndarray) else x,
}


def _values(dtype, shape, seed):
    """Numbers of a dtype, and exactly the same in float64."""
    rng = np.random.default_rng(seed)
    if dtype == "bool":
        values = rng.random(shape) < 0.5
        values[..., 0] = True
        return values, values.astype(np.float64)
    if dtype.startswith("torch."):
        tensor = torch.from_numpy(rng.normal(size=shape) * 30).to(
            getattr(torch, dtype.removeprefix("torch."))
        )
        return tensor, tensor.double().numpy()
    kind = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    if kind.kind in "iu":
        low, high = max(np.iinfo(kind).min, -120), min(np.iinfo(kind).max, 30_000)
        values = rng.integers(low, high, shape).astype(kind)
    else:
        values = (rng.normal(size=shape) * 100 + 20).astype(kind)
    return values, values.astype(np.float64)


def _distances(q, g):
    return np.sqrt(((q[:, None] - g[None]) ** 2).sum(axis=2))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(DTYPES), st.sampled_from(sorted(LAYOUTS)), st.integers(0, 1000))
def test_lengths_and_distances_of_any_dtype_are_those_of_float64(dtype, layout, seed):
    (q, q64), (g, g64) = _values(dtype, (5, 6), seed), _values(dtype, (9, 6), seed + 1)
    q, g = LAYOUTS[layout](q), LAYOUTS[layout](g)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q64, g64)]
    np.testing.assert_allclose(normalize(q), unit[0], atol=2e-7)
    exact = _distances(q64, g64)
    np.testing.assert_allclose(euclidean(q, g).matrix() ** 2, exact**2, atol=2e-5 * exact.max() ** 2)
    np.testing.assert_allclose(cosine(q, g).matrix(), 1 - unit[0] @ unit[1].T, atol=1e-6)


def test_integer_features_rank_as_the_numbers_that_they_are():
    """By hand: 1 - cos of [1,0,0] to [1,1,1] is 1 - 1/sqrt(3), to [1,0,9] 1 - 1/sqrt(82)."""
    for dtype in (np.int8, np.int32, np.uint8, np.float16):
        q, g = np.array([[1, 0, 0]], dtype), np.array([[1, 1, 1], [1, 0, 9]], dtype)
        np.testing.assert_allclose(cosine(q, g).matrix(), [[1 - 3**-0.5, 1 - 82**-0.5]], atol=1e-6)
    assert np.isfinite(normalize(np.full((2, 4), 200, np.uint8))).all()
    assert np.isfinite(normalize(np.full((2, 4), 60_000, np.float16))).all()


def test_large_numbers_are_subtracted_before_they_are_rounded():
    for dtype in (np.int64, np.float64):
        q = np.array([[10**9 + 1, 10**9]], dtype)
        g = np.array([[10**9 + 4, 10**9 + 4], [10**9 + 1, 10**9]], dtype)
        np.testing.assert_allclose(euclidean(q, g).matrix(), [[5, 0]], atol=1e-6)
    for scale in (1e200, 1e-200):
        np.testing.assert_allclose(normalize(np.array([[3.0, 4.0]]) * scale), [[0.6, 0.8]], rtol=1e-6)
    with pytest.raises(UserError, match="row 0 is so long that float32"):
        euclidean(np.full((1, 3), 1e30), np.eye(3))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(DTYPES), st.integers(0, 1000))
def test_scores_of_a_distance_matrix_of_any_dtype(dtype, seed):
    distance, exact = _values(dtype, (6, 20), seed)
    rng = np.random.default_rng(seed)
    labels = rng.integers(1, 4, 6), rng.integers(1, 3, 6), rng.integers(-1, 4, 20), rng.integers(1, 3, 20)
    ours, theirs = (RetrievalProtocol(*labels).score(d) for d in (distance, exact))
    for side in ("worst", "best"):
        for name in ("first_hit", "ap_step", "ap_trapezoid", "inp"):
            np.testing.assert_array_equal(*(getattr(getattr(s, side), name) for s in (ours, theirs)))
    np.testing.assert_array_equal(ours.tied_hits, theirs.tied_hits)


def test_whole_distances_that_float64_cannot_hold_apart_stay_apart():
    distance = np.array([[2**62 + 1, 2**62, 2**62 + 2]])
    scores = RetrievalProtocol([1], [1], [1, 2, 1], [2, 2, 2]).score(distance)
    assert scores.worst.first_hit.tolist() == scores.best.first_hit.tolist() == [2]
    assert RetrievalProtocol([1], [1], [1, 2], [2, 2]).score(distance[:, :2].astype(np.uint64)).tied_hits == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_metrics_and_re_ranking_of_any_dtype_are_those_of_float64(dtype):
    x, x64 = _values(dtype, (90, 5), 1)
    pids, camids = np.repeat(np.arange(1, 31), 3), np.tile([1, 2, 3], 30)
    shift = 0.3 * np.abs(x64).max() * np.random.default_rng(2).normal(size=(30, 5))[pids - 1]
    if dtype not in ("bool", *WHOLE, ">i2", ">i8", "<u4"):  # people that can be told apart
        x = (
            (x + torch.from_numpy(shift).to(x.dtype))
            if isinstance(x, torch.Tensor)
            else x + shift.astype(x.dtype)
        )
        x64 = x.double().numpy() if isinstance(x, torch.Tensor) else x.astype(np.float64)
    for learner in (KISSME(3), XQDA(), KISSME(3, reference=True), XQDA(reference=True)):
        try:
            expected = learner.fit(x64, pids, camids).distance(x64[:9], x64[9:])
        except UserError as error:  # random people that no direction separates: refused for every dtype
            with pytest.raises(UserError, match=str(error)[:20]):
                learner.fit(x, pids, camids)
            continue
        ours = learner.fit(x, pids.astype(np.uint8), camids.astype(np.float32)).distance(x[:9], x[9:])
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    # Distances to the mean, which re-ranking takes off, are rounded to float32: no close ties here.
    ours, expected = k_reciprocal(x[:9], x[9:], k1=6, k2=2), k_reciprocal(x64[:9], x64[9:], k1=6, k2=2)
    if dtype != "bool":
        np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_what_are_no_real_numbers_is_refused():
    for values in (np.array([["a"]]), np.ones((1, 1), complex), np.array([[None]]), np.zeros((1, 1), "V2")):
        with pytest.raises(UserError, match="features: values of type"):
            float_array(values, "features")
    for values, problem in (([1.5, 2], "row 0: 1.5"), ([1, np.nan], "row 1: nan"), ([2.0**63], "row 0")):
        with pytest.raises(UserError, match=problem):
            whole_labels(np.array(values), "pids")
    with pytest.raises(UserError, match="64 bits"):
        whole_labels(np.array([2**63], np.uint64), "pids")
    assert whole_labels(torch.tensor([3.0, -1.0]), "pids").tolist() == [3, -1]


def test_feature_files_keep_the_numbers_of_their_dtype(tmp_path):
    labels = {"pid": np.array([1, 2]), "camid": np.array([1, 2]), "split": np.array(["query", "gallery"])}
    for values in (np.array([[10**9 + 1], [7]]), np.array([[True], [False]]), np.array([[0.1], [1e60]])):
        np.savez(tmp_path / "f.npz", features=values, clothes=np.array([4, 5]), **labels)
        sets = read_features(tmp_path / "f.npz")
        assert [sets[s].features[0, 0] for s in ("query", "gallery")] == values[:, 0].tolist()
        assert sets["gallery"].clothes.tolist() == [5]
