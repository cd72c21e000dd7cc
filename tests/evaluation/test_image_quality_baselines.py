"""The nearest pose against a brute-force search."""

from __future__ import annotations

import numpy as np
import pytest

from reposer.evaluation import image_quality as baselines
from reposer.evaluation.image_quality import nearest_poses


def _poses(seed: int, count: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    poses = (rng.random((count, 18, 2)) * [64, 128]).astype(np.float32)
    poses[rng.random((count, 18)) < 0.35] = np.nan
    return poses


def _literal(a: np.ndarray, b: np.ndarray) -> float | None:
    """Mean distance of the common joints, at least 6; poses around the mid-hip, in own torso lengths."""

    def normal(pose: np.ndarray) -> np.ndarray | None:
        hip = (pose[8] + pose[11]) / 2
        torso = float(np.hypot(*(pose[1] - hip)))
        return None if np.isnan(torso) or torso == 0 else (pose - hip) / torso

    a, b = normal(a.astype(np.float64)), normal(b.astype(np.float64))
    if a is None or b is None:
        return None
    distances = [float(np.hypot(*(p - q))) for p, q in zip(a, b, strict=True) if not np.isnan(p + q).any()]
    return sum(distances) / len(distances) if len(distances) >= 6 else None


@pytest.mark.parametrize("chunk", [3, 64])
def test_equals_brute_force(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "CHUNK", chunk)
    targets, candidates = _poses(0, 20), _poses(1, 60)
    rng = np.random.default_rng(2)
    target_pids, candidate_pids = rng.integers(0, 4, 20), rng.integers(0, 4, 60)
    names = [f"{i:03d}" for i in rng.permutation(60)]
    expected = []
    for pose, pid in zip(targets, target_pids, strict=True):
        best = (np.inf, "", -1)
        for i in range(60):
            distance = None if candidate_pids[i] == pid else _literal(pose, candidates[i])
            if distance is not None:
                best = min(best, (distance, names[i], i))
        expected.append(best[2])
    assert -1 in expected  # a target without a torso
    found = nearest_poses(targets, target_pids, candidates, candidate_pids, names)
    assert found.tolist() == expected


def test_ties_go_to_the_smaller_name_and_never_to_the_same_person() -> None:
    pose = np.nan_to_num(_poses(3, 1), nan=5.0)
    same = np.repeat(pose, 4, axis=0)
    pids = np.array([1, 2, 3, 4])
    assert nearest_poses(pose, np.array([9]), same, pids, ["d", "b", "a", "c"]).tolist() == [2]
    assert nearest_poses(pose, np.array([3]), same, pids, ["d", "b", "a", "c"]).tolist() == [1]
    assert nearest_poses(pose, np.array([1]), same[:1], pids[:1], ["d"]).tolist() == [-1]
    assert nearest_poses(pose, np.array([1]), same[:0], pids[:0], []).tolist() == [-1]
