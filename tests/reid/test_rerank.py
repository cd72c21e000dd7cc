"""Re-ranking against a dense, literal transcription of the paper's definition with Python sets."""

from __future__ import annotations

import numpy as np
import pytest

from reposer.errors import UserError
from reposer.reid.rerank import k_reciprocal


def _people(seed, count, size=16, people=30, spread=0.9):
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(people, size))
    features = centers[rng.integers(people, size=count)] + spread * rng.normal(size=(count, size))
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def _literal(query, gallery, k1, k2, weight, variant="zhong"):
    """Every definition written out, float64, dense."""
    x = np.concatenate([query, gallery]).astype(np.float64)
    distance = ((x[:, None] - x[None]) ** 2).sum(axis=2)
    original = distance / 2  # 1 - cosine of unit features
    own = variant == "fastreid"  # it divides by nothing, and its lists have k1 columns, the image's own first
    if variant == "fourth_power":
        distance = distance**2
    if not own:
        distance /= distance.max(axis=1, keepdims=True)
        original = distance
    count = len(x)
    order = [sorted(range(count), key=lambda j, i=i: (distance[i, j], j != i)) for i in range(count)]

    def reciprocal(i, k):
        listed = [row[:k1] if own else row for row in order]
        return {j for j in listed[i][: k + 1] if i in listed[j][: k + 1]}

    half = int(np.around(k1 / 2))
    encoding = np.zeros((count, count))
    for i in range(count):
        near = reciprocal(i, k1)
        expanded = set(near)
        for j in near:
            other = reciprocal(j, half)
            if len(other & near) > 2 / 3 * len(other):
                expanded |= other
        index = sorted(expanded)
        weights = np.exp(-distance[i, index])
        encoding[i, index] = weights / weights.sum()
    averaged = np.stack([encoding[order[i][:k2]].mean(axis=0) for i in range(count)])
    queries = len(query)
    result = np.empty((queries, count - queries))
    for i in range(queries):
        for g in range(queries, count):
            shared = np.minimum(averaged[i], averaged[g]).sum()
            jaccard = 1 - shared / (2 - shared)
            result[i, g - queries] = (1 - weight) * jaccard + weight * original[i, g]
    return result


@pytest.mark.parametrize(("k1", "k2", "weight"), [(20, 6, 0.3), (23, 1, 0.0), (7, 3, 0.8), (60, 15, 0.3)])
def test_sparse_equals_the_dense_definition(k1, k2, weight):
    x = _people(k1, 300 if k1 < 50 else 140)  # the sets of the literal form grow with k1
    ours = k_reciprocal(x[:60], x[60:], k1=k1, k2=k2, weight=weight)
    assert ours.dtype == np.float32
    assert np.abs(ours - _literal(x[:60], x[60:], k1, k2, weight)).max() < 1e-6


@pytest.mark.parametrize("variant", ["fourth_power", "fastreid"])
def test_the_variants_of_other_code_equal_their_definitions(variant):
    x = _people(3, 160)
    ours = k_reciprocal(x[:40], x[40:], variant=variant)
    assert np.abs(ours - _literal(x[:40], x[40:], 20, 6, 0.3, variant)).max() < 1e-6
    assert np.abs(ours - k_reciprocal(x[:40], x[40:])).max() > 1e-3
    with pytest.raises(UserError, match="re-ranking variant bot: unknown"):
        k_reciprocal(x[:40], x[40:], variant="bot")


@pytest.mark.parametrize("k1", [1, 2, 3, 10, 21])
def test_fast_reids_lists_have_k1_columns_of_which_the_half_takes_one_more_than_half(k1):
    x = _people(4, 120)
    ours = k_reciprocal(x[:30], x[30:], k1=k1, k2=1, variant="fastreid")
    assert np.abs(ours - _literal(x[:30], x[30:], k1, 1, 0.3, "fastreid")).max() < 1e-6


def test_unnormalized_features_far_from_the_origin():
    x = _people(3, 120) * 30 + 50
    ours = k_reciprocal(x[:20], x[20:], k1=10, k2=4)
    assert np.abs(ours - _literal(x[:20], x[20:], 10, 4, 0.3)).max() < 1e-5


def test_weight_one_keeps_the_original_ranking():
    x = _people(5, 150)
    ours = k_reciprocal(x[:30], x[30:], weight=1.0)
    squared = ((x[:30, None].astype(np.float64) - x[None, 30:]) ** 2).sum(axis=2)
    np.testing.assert_array_equal(np.argsort(ours, axis=1), np.argsort(squared, axis=1))


def test_gallery_order_does_not_matter():
    x = _people(6, 200)
    shuffle = np.random.default_rng(0).permutation(150)
    straight, shuffled = k_reciprocal(x[:50], x[50:]), k_reciprocal(x[:50], x[50:][shuffle])
    np.testing.assert_allclose(shuffled, straight[:, shuffle], atol=1e-6)


def test_exact_copies_stay_finite_and_nearest():
    x = np.repeat(_people(7, 20), 12, axis=0)  # more copies than k1 + 1 neighbors
    ours = k_reciprocal(x[::12], x, k1=5, k2=3)
    assert np.isfinite(ours).all()
    assert (np.argmin(ours, axis=1) // 12 == np.arange(20)).all()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"k1": 30}, "k1=30"),
        ({"k1": 3, "k2": 4}, "k2=4"),
        ({"k2": 0}, "k2=0"),
        ({"weight": 1.5}, "weight=1.5"),
    ],
)
def test_impossible_parameters_are_named(change, problem):
    x = _people(8, 30)
    with pytest.raises(UserError, match=problem):
        k_reciprocal(x[:10], x[10:], **change)


def test_bad_features_are_named():
    x = _people(9, 60)
    broken = x.copy()
    broken[43, 3] = np.nan
    with pytest.raises(UserError, match="gallery: row 23 holds NaN"):
        k_reciprocal(broken[:20], broken[20:])
    with pytest.raises(UserError, match="all features are equal"):
        k_reciprocal(np.ones((5, 4), np.float32), np.ones((40, 4), np.float32))
