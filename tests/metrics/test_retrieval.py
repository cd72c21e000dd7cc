"""Retrieval scores against literal loops, scikit-learn and galleries worked out by hand."""

from __future__ import annotations

from itertools import pairwise, permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from reposer.errors import UserError
from reposer.metrics.retrieval import RetrievalProtocol, cmc_curve, denominator, mean_values


def _labels(seed, queries=25, gallery=300, people=12, cameras=4):
    """Queries of true people; a gallery that also holds junk and distractors."""
    rng = np.random.default_rng(seed)
    return (
        rng.integers(1, people, queries),
        rng.integers(1, cameras, queries),
        rng.integers(-1, people, gallery),
        rng.integers(1, cameras, gallery),
    )


def _counted(q, labels):
    """Which gallery images count for query q, and which of these are hits: the protocol in words."""
    query_pids, query_camids, pids, camids = labels
    valid = [
        pid != -1 and not (pid == query_pids[q] and cam == query_camids[q])
        for pid, cam in zip(pids, camids, strict=True)
    ]
    return np.array(valid), np.array([pid == query_pids[q] for pid in pids])


def _literal_trapezoid(ordered_hits):
    """The loop of the Market-1501 authors: precision before and after, recall grows at hits."""
    total, area, old_recall, old_precision, found = sum(ordered_hits), 0.0, 0.0, 1.0, 0
    for position, hit in enumerate(ordered_hits):
        found += hit
        recall, precision = found / total, found / (position + 1)
        area += (recall - old_recall) * (old_precision + precision) / 2
        old_recall, old_precision = recall, precision
    return area


@pytest.mark.parametrize("seed", range(4))
def test_every_query_equals_scikit_learn_and_literal_loops(seed):
    labels = _labels(seed)
    distance = np.random.default_rng(seed).random((25, 300)).astype(np.float32)
    scores = RetrievalProtocol(*labels).score(distance)
    for q in range(25):
        valid, same = _counted(q, labels)
        hits = same[valid]
        assert scores.valid[q] == valid.sum()
        assert scores.hits[q] == hits.sum() > 0
        ordered = hits[np.argsort(distance[q][valid])]
        positions = np.flatnonzero(ordered) + 1
        step = average_precision_score(hits, -distance[q][valid])
        assert scores.worst.ap_step[q] == pytest.approx(step, abs=1e-12)
        assert scores.worst.ap_trapezoid[q] == pytest.approx(_literal_trapezoid(ordered), abs=1e-12)
        assert scores.worst.first_hit[q] == positions[0]
        assert scores.worst.inp[q] == pytest.approx(len(positions) / positions[-1])
    assert (scores.tied_hits == 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_a_person_in_the_scene_of_a_query_counts_no_more_than_in_its_own_camera(seed):
    """Each query's scores are those of a gallery without the person's images in the camera of its scene."""
    query_pids, query_camids, pids, camids = _labels(seed, cameras=5)
    scenes = np.random.default_rng(seed).integers(1, 5, 25)
    distance = np.random.default_rng(seed).random((25, 300)).astype(np.float32)
    scores = RetrievalProtocol(query_pids, query_camids, pids, camids, scenes=scenes).score(distance)
    for q in range(25):
        there = ~((pids == query_pids[q]) & (camids == scenes[q]))
        alone = RetrievalProtocol(query_pids[[q]], query_camids[[q]], pids[there], camids[there])
        expected = alone.score(distance[[q]][:, there])
        assert (scores.hits[q], scores.valid[q]) == (expected.hits[0], expected.valid[0])
        assert scores.worst.ap_step[q] == expected.worst.ap_step[0]
        assert scores.worst.first_hit[q] == expected.worst.first_hit[0]


def test_hand_case_with_both_precisions():
    """Order: hit, miss, hit, miss, hit. Step: (1 + 2/3 + 3/5) / 3; trapezoid: pairs with 1, 1/2 and 2/4."""
    protocol = RetrievalProtocol([1], [1], [1, 2, 1, 3, 1], [2, 1, 2, 1, 3])
    scores = protocol.score(np.array([[0.1, 0.2, 0.3, 0.4, 0.5]]))
    values = mean_values(scores)
    assert values.mAP_step == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    assert values.mAP_trapezoid == pytest.approx(((1 + 1) + (2 / 3 + 1 / 2) + (3 / 5 + 2 / 4)) / 6)
    assert values.mINP == pytest.approx(3 / 5)
    assert values.rank1 == 1.0


def test_short_gallery_on_which_compiled_peers_return_zero():
    """Four images; each query has fewer valid ones than ranks asked for, so peers' CMC falls back to 0."""
    protocol = RetrievalProtocol([1, 2, 1], [0, 0, 1], [1, 1, 2, 2], [0, 1, 0, 1])
    distance = np.array([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]])
    scores = protocol.score(distance)
    assert cmc_curve(scores, ranks=10).tolist() == [1.0] * 10
    assert mean_values(scores).mAP_step == 1.0


def test_three_queries_of_eight_images_by_hand():
    query_pids, query_camids = [1, 2, 3], [1, 1, 1]
    pids, camids = [1, 1, 2, 0, -1, 3, 2, 1], [1, 2, 2, 3, 2, 1, 1, 3]
    distance = np.array(
        [
            [0.1, 0.5, 0.2, 0.3, 0.05, 0.6, 0.7, 0.4],  # out: 0 (camera), 4 (junk); misses 2, 3; hits 7, 1
            [0.9, 0.8, 0.3, 0.2, 0.0, 0.7, 0.1, 0.6],  # out: 6 (camera), 4 (junk); miss 3; hit 2
            [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8],  # its only image is from its own camera
        ]
    )
    scores = RetrievalProtocol(query_pids, query_camids, pids, camids).score(distance)
    assert scores.worst.first_hit.tolist() == [3, 2, 0]
    assert scores.worst.ap_step[:2].tolist() == pytest.approx([(1 / 3 + 2 / 4) / 2, 1 / 2])
    assert np.isnan(scores.worst.ap_step[2])
    assert scores.hits.tolist() == [2, 1, 0]
    assert cmc_curve(scores, ranks=4).tolist() == [0.0, 0.5, 1.0, 1.0]
    assert cmc_curve(scores, ranks=3, no_match="zero").tolist() == pytest.approx([0, 1 / 3, 2 / 3])
    assert denominator(scores, "skip").sum() == 2
    assert mean_values(scores, no_match="zero").mAP_step == pytest.approx((5 / 12 + 1 / 2) / 3)


def test_ties_give_the_range_over_all_orders():
    """Bracket = minimum and maximum over every order of the tied images."""
    pids = np.array([1, 2, 1, 3, 1, 2])
    values = np.array([0.2, 0.2, 0.2, 0.1, 0.5, 0.5])
    seen = []
    for near, far in product(permutations([0, 1, 2]), permutations([4, 5])):
        order = [3, *near, *far]
        assert (np.diff(values[order]) >= 0).all()
        seen.append(average_precision_score(pids[order] == 1, -np.arange(6)))
    scores = RetrievalProtocol([1], [1], pids, np.full(6, 2)).score(values[None])
    assert scores.worst.ap_step[0] == pytest.approx(min(seen))
    assert scores.best.ap_step[0] == pytest.approx(max(seen))
    assert scores.tied_hits[0] == 3


def test_hits_tied_among_themselves_only_are_no_tie():
    scores = RetrievalProtocol([1], [1], [1, 1, 2], [2, 3, 2]).score(np.array([[0.5, 0.5, 0.7]]))
    assert scores.tied_hits[0] == 0
    assert scores.worst.ap_step[0] == 1.0


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), levels=st.sampled_from([3, 20, 1_000_000]))
def test_order_of_the_gallery_and_junk_never_matter(seed, levels):
    rng = np.random.default_rng(seed)
    labels = _labels(seed, queries=6, gallery=60, people=5)
    distance = rng.integers(levels, size=(6, 60)).astype(np.float32)
    scores = RetrievalProtocol(*labels).score(distance)
    shuffle = rng.permutation(60)
    shuffle = np.concatenate([shuffle, rng.choice(np.arange(60), 7)])  # 7 more, as junk
    pids, camids = labels[2][shuffle], labels[3][shuffle]
    pids[60:] = -1
    again = RetrievalProtocol(labels[0], labels[1], pids, camids).score(distance[:, shuffle])
    for side in ("worst", "best"):
        for name in ("first_hit", "ap_step", "ap_trapezoid", "inp"):
            a, b = getattr(getattr(scores, side), name), getattr(getattr(again, side), name)
            np.testing.assert_allclose(a, b, atol=1e-12)
    matched = scores.hits > 0
    for side in (scores.worst, scores.best):
        assert (side.ap_trapezoid[matched] <= side.ap_step[matched] + 1e-12).all()
    assert (scores.worst.ap_step[matched] <= scores.best.ap_step[matched] + 1e-12).all()


def test_blocks_and_kept_columns_give_the_same_scores():
    labels = _labels(5)
    distance = np.random.default_rng(5).random((25, 300)).astype(np.float32)
    protocol = RetrievalProtocol(*labels)
    whole = protocol.score(distance)
    assert len(protocol.kept) < 300
    part = protocol.score(distance[10:20, protocol.kept], first_query=10)
    np.testing.assert_array_equal(part.worst.ap_step, whole.worst.ap_step[10:20])
    np.testing.assert_array_equal(part.hits, whole.hits[10:20])


def test_cmc_never_falls_and_keeping_the_own_camera_helps():
    labels = _labels(7)
    distance = np.random.default_rng(7).random((25, 300))
    scores = RetrievalProtocol(*labels).score(distance)
    assert all(a <= b for a, b in pairwise(cmc_curve(scores)))
    lenient = RetrievalProtocol(*labels, exclude_same_camera=False).score(distance)
    assert (lenient.hits > scores.hits).any()
    assert (lenient.valid >= scores.valid).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bad_distances_are_named_not_ranked(bad):
    protocol = RetrievalProtocol([1, 1, 2], [1, 2, 1], [1, 2, 1], [3, 3, 3])
    distance = np.full((3, 3), 0.5)
    distance[1, 2] = bad
    with pytest.raises(UserError, match=r"query row 1: .*NaN or infinite"):
        protocol.score(distance)


def test_a_bad_distance_to_junk_is_no_matter():
    protocol = RetrievalProtocol([1], [1], [1, -1, 2], [2, 2, 2])
    assert protocol.score(np.array([[0.1, np.nan, 0.2]])).worst.first_hit[0] == 1


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (([], [], [1], [1]), "the query holds no image"),
        (([1], [1], [], []), "the gallery holds no image"),
        (([1], [1], [-1, -1], [1, 2]), "the gallery holds no image"),
        (([1, -1], [1, 1], [1], [2]), "query row 1: person -1"),
        (([0], [1], [1], [2]), "query row 0: person 0"),
        (([1, 2], [1], [1], [2]), "person labels for"),
    ],
)
def test_unusable_labels_are_named(arguments, problem):
    with pytest.raises(UserError, match=problem):
        RetrievalProtocol(*map(np.array, arguments))


def test_no_valid_match_at_all_is_an_error_not_rank_one():
    one_camera = RetrievalProtocol([1, 2], [1, 1], [1, 2, 3], [1, 1, 1])
    scores = one_camera.score(np.random.default_rng(0).random((2, 3)))
    for no_match in ("skip", "zero"):
        with pytest.raises(UserError, match="none of the 2 queries has a valid match"):
            mean_values(scores, no_match=no_match)


def test_a_query_whose_whole_gallery_is_left_out():
    protocol = RetrievalProtocol([1, 2], [1, 1], [1, 1], [1, 1])
    scores = protocol.score(np.array([[0.1, 0.2], [0.1, 0.2]]))
    assert scores.valid.tolist() == [0, 2]
    assert scores.hits.tolist() == [0, 0]


def test_a_matrix_of_another_shape_is_refused():
    protocol = RetrievalProtocol([1], [1], [1, 2], [2, 2])
    with pytest.raises(UserError, match="1 queries and 2 gallery images"):
        protocol.score(np.zeros((1, 3)))
    with pytest.raises(UserError, match="shape"):
        protocol.score(np.zeros((2, 2)))


@pytest.mark.parametrize("pid", [-2, -5, -(2**40)])
def test_a_gallery_image_of_a_negative_person_is_neither_junk_nor_somebody(pid):
    with pytest.raises(UserError, match=rf"gallery row 2: person {pid} \(2 such rows\)"):
        RetrievalProtocol([1, 1], [1, 2], [1, -1, pid, 0, pid], [3] * 5)
    RetrievalProtocol([1, 1], [1, 2], [1, -1, 2, 0, 2], [3] * 5)
