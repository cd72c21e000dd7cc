"""PCKh against a count by hand and a loop."""

from __future__ import annotations

import numpy as np
import pytest

from reposer.metrics.similarity import pckh


def test_it_counts_joints_by_hand():
    target = np.full((1, 18, 2), np.nan, np.float32)
    target[0, :4] = [(10, 10), (10, 20), (5, 20), (0, 0)]  # nose and neck: a head of 10 pixels
    found = target.copy()
    found[0, 0] = (13, 14)  # 5 away: just right
    found[0, 1] = (10, 25.1)  # too far
    found[0, 2] = np.nan  # not found
    found[0, 9] = (1, 1)  # the target lacks it
    assert pckh(found, target) == pytest.approx(2 / 4)
    assert pckh(target, target) == 1


def test_it_equals_a_loop():
    rng = np.random.default_rng(0)
    target, found = (rng.uniform(0, 40, (30, 18, 2)).astype(np.float32) for _ in range(2))
    target[rng.random((30, 18)) < 0.3] = np.nan
    found[rng.random((30, 18)) < 0.2] = np.nan
    values = pckh(found, target)
    for value, points, truth in zip(values, found, target, strict=True):
        head = [truth[j] for j in (0, 1, 14, 15, 16, 17) if not np.isnan(truth[j]).any()]
        if len(head) < 2:
            assert np.isnan(value)
            continue
        size = max(np.ptp([p[0] for p in head]), np.ptp([p[1] for p in head]))
        seen = [j for j in range(18) if not np.isnan(truth[j]).any()]
        right = [
            j
            for j in seen
            if not np.isnan(points[j]).any() and np.hypot(*(points[j] - truth[j])) <= 0.5 * size
        ]
        assert value == pytest.approx(len(right) / len(seen))


def test_targets_without_a_head_or_a_joint_have_no_value():
    target = np.full((3, 18, 2), np.nan, np.float32)
    target[1, 5] = 3.0  # a shoulder alone
    target[2, [0, 1]] = 4.0  # a head without size
    assert np.isnan(pckh(np.zeros_like(target), target)).all()
    with pytest.raises(ValueError, match="shapes"):
        pckh(np.zeros((1, 17, 2), np.float32), np.zeros((1, 17, 2), np.float32))
