"""Samplers of Re-ID: pure functions of seed and step that show everybody equally often."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reposer.data.samplers import ClassGroups, draw_image_pairs, draw_images, draw_people

LABELS = np.array([0, 2, 1, 1, 0, 2, 2, 3, 3, 3, 3, 3, 1, 0, 0, 4])  # class 4 has one image


def test_groups_by_hand():
    groups = ClassGroups.of(np.array([1, 0, 1, 2]))
    assert groups.classes == 3
    assert [groups.of_class(k).tolist() for k in range(3)] == [[1], [0, 2], [3]]
    with pytest.raises(ValueError, match="every class"):
        ClassGroups.of(np.array([0, 2]))


@given(st.integers(1, 40), st.integers(1, 17), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_shuffled_images_come_equally_often(n, batch, seed):
    steps = 2 * n  # 2 n batches of `batch` images are 2 `batch` rounds exactly
    drawn = np.concatenate([draw_images(n, batch, seed, step) for step in range(steps)])
    assert set(Counter(drawn.tolist()).values()) == {2 * batch}
    for start in range(0, len(drawn), n):  # every round holds each image once
        assert sorted(drawn[start : start + n].tolist()) == list(range(n))


def test_p_by_k_batches():
    groups = ClassGroups.of(LABELS)
    counts: Counter[int] = Counter()
    for step in range(50):
        rows = draw_people(groups, 2, 4, seed=3, step=step).reshape(2, 4)
        for person in rows:
            labels = set(LABELS[person].tolist())
            assert len(labels) == 1
            available = int((labels.pop() == LABELS).sum())
            assert len(set(person.tolist())) == min(4, available)  # all different where there are enough
        counts.update(LABELS[rows[:, 0]].tolist())
    assert set(counts.values()) == {20}  # 100 people drawn of 5


def test_draws_depend_on_seed_and_step_only():
    groups = ClassGroups.of(LABELS)
    draws = [
        lambda seed, step: draw_images(16, 8, seed, step),
        lambda seed, step: draw_people(groups, 3, 2, seed, step),
        lambda seed, step: draw_image_pairs(groups, 8, 0.5, seed, step),
    ]
    for draw in draws:
        again, other_seed, other_step = draw(1, 7), draw(2, 7), draw(1, 8)
        assert np.array_equal(draw(1, 7), again)
        assert not np.array_equal(draw(1, 7), other_seed)
        assert not np.array_equal(draw(1, 7), other_step)


def test_pairs_are_what_they_should_be():
    groups = ClassGroups.of(LABELS)
    seen_negative = set()
    positives = total = 0
    for step in range(200):
        pairs = draw_image_pairs(groups, 8, 0.3, seed=0, step=step)
        assert pairs.shape == (8, 2)
        assert (pairs[:, 0] != pairs[:, 1]).all()
        same = LABELS[pairs[:, 0]] == LABELS[pairs[:, 1]]
        assert not same[LABELS[pairs[:, 0]] == 4].any()  # has no other image
        can = LABELS[pairs[:, 0]] != 4
        positives, total = positives + int(same.sum()), total + int(can.sum())
        seen_negative |= {tuple(sorted(pair)) for pair in pairs[~same].tolist()}
    assert positives / total == pytest.approx(0.3, abs=0.03)
    different = {(a, b) for a in range(16) for b in range(a + 1, 16) if LABELS[a] != LABELS[b]}
    assert seen_negative == different  # every one is possible, and no other


def test_people_of_few_and_of_many_images_are_drawn_equally_often():
    """As the docs say of the preset bot: the original draws people by their number of images instead."""
    counts = np.array([2, 3, 4, 20, 72, 15, 15, 15])
    groups = ClassGroups.of(np.repeat(np.arange(8), counts))
    drawn = np.concatenate([draw_people(groups, 4, 4, 3, step) for step in range(20)])
    assert np.bincount(groups.labels[drawn]).tolist() == [4 * 10] * 8
    seen = np.bincount(groups.labels[np.unique(drawn)])
    expected = counts * (1 - np.maximum(1 - 4 / counts, 0) ** 10)  # ten turns of four images without return
    np.testing.assert_allclose(seen, expected, atol=4)
    assert (seen[:3] == counts[:3]).all()
