"""Batches of real and generated images: counts, labels, chances; pure functions of seed and step."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from reposer.data.synthetic.mixed import (
    Mixture,
    draw_mixed_images,
    draw_mixed_pairs,
    draw_mixed_people,
    real_count,
    spread,
)

REAL = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 3])  # twelve images of four people
GENERATED = np.array([0, 0, 0, 0, 0, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3])  # person 1 has none


@pytest.fixture
def mixture() -> Mixture:
    return Mixture.of(REAL, GENERATED)


def test_every_batch_holds_the_share_and_all_images_come_equally_often(mixture):
    seen: Counter[int] = Counter()
    for step in range(30):  # 4 x 30 real draws of 12, 2 x 30 generated ones of 15
        rows = draw_mixed_images(mixture, 6, 4, seed=5, step=step)
        assert (rows < 12).sum() == 4
        seen.update(rows.tolist())
    assert [seen[i] for i in range(12)] == [10] * 12
    assert [seen[i] for i in range(12, 27)] == [4] * 15


@pytest.mark.parametrize(("count", "chosen"), [(8, 4), (64, 42), (5, 1), (7, 6)])
def test_parts_of_a_batch_are_alike(count, chosen):
    places = spread(count, chosen)
    assert places.sum() == chosen
    sums = np.cumsum(places)
    assert np.abs(sums - np.arange(1, count + 1) * chosen / count).max() < 1


@pytest.mark.parametrize("real", [None, 1, 3])
def test_each_person_of_a_batch_has_a_real_image(mixture, real):
    kinds: Counter[bool] = Counter()
    for step in range(60):
        rows = draw_mixed_people(mixture, 2, 4, real, seed=1, step=step).reshape(2, 4)
        for images in rows:
            labels = mixture.both.labels[images]
            assert len(set(labels.tolist())) == 1
            count = int((images < 12).sum())
            assert count >= 1
            if labels[0] == 1:
                assert count == 4
            elif real is not None:
                assert count == real
                assert len(set(images[images >= 12].tolist())) == min(
                    4 - real, (labels[0] == GENERATED).sum()
                )
        kinds.update((rows >= 12).ravel().tolist())
    assert kinds[True] > 50
    classes = [mixture.both.labels[draw_mixed_people(mixture, 2, 4, real, 1, s)][::4] for s in range(60)]
    assert set(Counter(np.concatenate(classes).tolist()).values()) == {30}


@pytest.mark.parametrize("share", [None, 0.5, 0.8])
def test_pairs_are_what_they_say(mixture, share):
    same = kinds = 0
    for step in range(100):
        pairs = draw_mixed_pairs(mixture, 10, 0.5, share, seed=2, step=step)
        labels = mixture.both.labels[pairs]
        assert (pairs[:, 0] != pairs[:, 1]).all()
        assert (labels[:, 0] == labels[:, 1]).sum() == 5
        if share is not None:
            assert (pairs[:, 0] < 12).sum() == real_count(10, share)
        same += int((labels[:, 0] == labels[:, 1]).sum())
        kinds += int((pairs[:, 1] < 12).sum())
    assert same == 500
    if share is not None:  # a little more: person 1 has no generated partner
        assert share - 0.03 < kinds / 1000 < share + 0.1


def test_a_step_is_a_pure_function_of_seed_and_step(mixture):
    draws = {
        "images": lambda seed, step: draw_mixed_images(mixture, 8, 4, seed, step),
        "people": lambda seed, step: draw_mixed_people(mixture, 2, 4, 2, seed, step),
        "pairs": lambda seed, step: draw_mixed_pairs(mixture, 8, 0.5, 0.5, seed, step),
    }
    for draw in draws.values():
        assert np.array_equal(draw(1, 7), draw(1, 7))
        assert not np.array_equal(draw(1, 7), draw(1, 8))
        assert not np.array_equal(draw(1, 7), draw(2, 7))
