"""Bootstrap intervals against the textbook formula, and their treatment of identities."""

from __future__ import annotations

import numpy as np
import pytest

from reposer.metrics.intervals import bootstrap_weights, mean_interval


def test_single_values_give_the_textbook_interval():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    low, high = mean_interval(values, None)
    half = 1.96 * values.std(ddof=1) / 20
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.1 * half)
    assert (high - low) / 2 == pytest.approx(half, rel=0.08)


def test_repeating_every_image_of_a_person_adds_no_certainty():
    values = np.random.default_rng(1).normal(0.0, 1.0, 60)
    pids = np.arange(60) * 7
    assert mean_interval(np.repeat(values, 9), np.repeat(pids, 9)) == pytest.approx(
        mean_interval(values, pids)
    )
    single = mean_interval(np.repeat(values, 9), None)
    clustered = mean_interval(np.repeat(values, 9), np.repeat(pids, 9))
    assert clustered[1] - clustered[0] > 2.5 * (single[1] - single[0])


def test_one_person_has_no_interval():
    assert mean_interval(np.array([1.0, 2.0, 3.0]), np.array([5, 5, 5])) is None


def test_whole_people_are_drawn():
    pids = np.array([3, 3, 8, 9, 9, 9])
    weights = bootstrap_weights(6, pids, 50, seed=0)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 3] == weights[:, 5]).all()
    assert (weights[:, 0] + weights[:, 2] + weights[:, 3] == 3).all()  # three people are drawn
    assert (weights == bootstrap_weights(6, pids, 50, seed=0)).all()
