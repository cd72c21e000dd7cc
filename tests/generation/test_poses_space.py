"""The pose space against a distance written joint by joint, and covering against a slow greedy search."""

import tracemalloc

import numpy as np
import pytest
from planted import SHOULDERS, Planted, keypoints, pack_planted

from reposer.data.keypoints import LEFT_HIP, NECK, RIGHT_HIP, normalize_pose
from reposer.data.packed import PackedPeople
from reposer.generation import poses as module
from reposer.generation.donors import DonorPlan, choose_donors
from reposer.generation.poses import FAR, PoseSpace, cover
from reposer.studies.study_stages import pose_coverage


def _poses(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random poses with joints missing, and orientations, some unknown."""
    rng = np.random.default_rng(seed)
    base = keypoints("front-right")
    poses = np.nan_to_num(base, nan=20)[None] + rng.normal(0, 2, (count, 18, 2))
    missing = rng.random((count, 18)) < rng.choice([0.1, 0.3, 0.6], (count, 1))
    missing[: count // 2, [NECK, RIGHT_HIP, LEFT_HIP]] = False
    poses[missing] = np.nan
    return poses.astype(np.float32), rng.integers(-1, 8, count)


def _slow_distance(a: np.ndarray, b: np.ndarray, way_a: int, way_b: int) -> float:
    a, b = normalize_pose(a), normalize_pose(b)
    squares = [((p - q) ** 2).sum() for p, q in zip(a, b, strict=True) if not np.isnan(p + q).any()]
    known = min((~np.isnan(pose[:, 0])).sum() for pose in (a, b)) >= 6
    if len(squares) < 6 or way_a < 0 or way_b < 0 or not known:
        return np.inf
    return float(np.sqrt(np.mean(squares) + np.sin(np.pi * (way_a - way_b) / 8) ** 2))


def test_distance_equals_the_formula():
    poses, ways = _poses(40, seed=1)
    space = PoseSpace.of(poses, ways)
    expected = [
        [_slow_distance(a, b, m, n) for b, n in zip(poses, ways, strict=True)]
        for a, m in zip(poses, ways, strict=True)
    ]
    assert np.isinf(expected).any()
    assert np.isfinite(expected).any()
    np.testing.assert_allclose(space.distance(space), expected, atol=2e-3)


def test_opposite_orientations_of_one_pose_are_one_torso_apart():
    pose = keypoints("front")
    space = PoseSpace.of(np.stack([pose, pose, pose]), np.array([0, 4, 2]))
    np.testing.assert_allclose(space.distance(space)[0], [0, 1, np.sqrt(0.5)], atol=1e-3)


def test_cover_equals_a_slow_greedy_search():
    poses, ways = _poses(60, seed=2)
    space = PoseSpace.of(poses, ways)
    space = space[space.known]
    have, candidates = space[np.arange(5)], space[np.arange(5, len(space))]
    taken = cover(have, candidates, 20)
    covered = list(range(5))
    distance = space.distance(space)
    for choice in taken.tolist():
        free = [i for i in range(5, len(space)) if i not in covered]
        counts = {o: sum(space.orientations[i] == o for i in covered) for o in range(8)}
        fewest = min(counts[int(space.orientations[i])] for i in free)
        reach = {
            i: min(distance[i, j] for j in covered)
            for i in free
            if counts[int(space.orientations[i])] == fewest
        }
        assert reach[choice + 5] == max(reach.values())
        covered.append(choice + 5)
    assert len(set(taken.tolist())) == 20


@pytest.mark.parametrize("at_once", [0, 1, 60, 55 * 55 - 1])
def test_cover_takes_the_same_where_distances_are_not_held_at_once(monkeypatch, at_once):
    poses, ways = _poses(60, seed=2)
    space = PoseSpace.of(poses, ways)
    space = space[space.known]
    have, candidates = space[np.arange(20)], space[np.arange(20, len(space))]
    wanted = cover(have, candidates, 20)
    monkeypatch.setattr(module, "_AT_ONCE", at_once)
    asked = []
    distance = PoseSpace.distance
    monkeypatch.setattr(PoseSpace, "distance", lambda a, b: asked.append(len(a) * len(b)) or distance(a, b))
    assert cover(have, candidates, 20).tolist() == wanted.tolist()
    assert max(asked) <= max(at_once, len(candidates))


def test_memory_of_cover_does_not_grow_with_the_square_of_the_images(monkeypatch):
    monkeypatch.setattr(module, "_AT_ONCE", 2**18)
    peaks = []
    for count in (4_000, 16_000):
        poses, ways = _poses(count, seed=4)
        space = PoseSpace.of(poses, ways)
        space = space[space.known]
        have, candidates = space[np.arange(len(space) // 16)], space[np.arange(len(space) // 16, len(space))]
        tracemalloc.start()
        cover(have, candidates, 3)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2 * peaks[0]


def test_cover_takes_everything_when_asked_for_more():
    poses, _ = _poses(30, seed=3)
    space = PoseSpace.of(poses, np.zeros(30, np.int64))
    space = space[space.known]
    assert sorted(cover(space[:0], space, 100).tolist()) == list(range(len(space)))
    assert len(cover(space, space[:0], 5)) == 0


def test_typical_leaves_out_the_odd_one():
    rng = np.random.default_rng(4)
    poses = np.stack([keypoints("front", stride) for stride in rng.random(200)])
    poses[7] = keypoints("front")
    poses[7, [3, 4, 6, 7, 9, 10, 12, 13], 0] += 500  # a detector gone astray
    poses[9] = np.nan
    space = PoseSpace.of(poses, np.zeros(200, np.int64))
    typical = space.typical(np.random.default_rng(0), share=0.98)
    assert not typical[[7, 9]].any()
    assert 0.97 * 199 <= typical.sum() < 199
    assert not PoseSpace.of(poses[9:10], np.zeros(1, np.int64)).typical(np.random.default_rng(0)).any()


def test_mean_is_the_mean_of_the_joints():
    poses = np.stack([keypoints("front", stride) for stride in (0.0, 0.5, 1.0)])
    mean = PoseSpace.of(poses, np.zeros(3, np.int64)).mean()
    middle = PoseSpace.of(keypoints("front", 0.5)[None], np.zeros(1, np.int64))
    assert mean.distance(middle)[0, 0] == pytest.approx(0, abs=1e-3)
    assert mean.orientations.tolist() == [0]


def test_pose_coverage_by_hand(tmp_path):
    facings = list(SHOULDERS)
    people = [Planted(pid=1, facing=facings[i]) for i in (0, 0, 4)] + [
        Planted(pid=2, facing=name) for name in facings
    ]
    people += [Planted(pid=3, facing=None)]
    packed = pack_planted(tmp_path, people)
    rows = np.arange(len(people))
    real = pose_coverage(packed, rows)
    assert real["people"] == 3
    assert (real["images"], real["unknown"]) == (12, 1)
    assert real["orientations"] == pytest.approx((2 + 8 + 0) / 3)
    assert real["all_orientations"] == pytest.approx(1 / 3)
    space = PoseSpace.of_people(packed, rows)
    references = space[np.flatnonzero(space.typical(np.random.default_rng([0, 41])))]
    assert (references.distance(references) < FAR).all()
    to_one = references.distance(space[np.arange(3)]).min(1)
    to_two = references.distance(space[np.arange(3, 11)]).min(1)
    assert real["pose_gap"] == pytest.approx((to_one.mean() + to_two.mean()) / 2, abs=1e-4)
    assert real["worst_pose_gap"] == pytest.approx((to_one.max() + to_two.max()) / 2, abs=1e-4)
    plan = choose_donors(packed, "coverage", 4)
    after = pose_coverage(packed, rows, plan)
    assert after["orientations"] == pytest.approx((8 + 8 + len(_shown(space, packed, plan, 3))) / 3)
    assert len(_shown(space, packed, plan, 1)) == len(_shown(space, packed, plan, 2)) == 8
    assert after["images"] == 12 + len(plan.source)
    assert after["pose_gap"] < real["pose_gap"]


def _shown(space: PoseSpace, packed: PackedPeople, plan: DonorPlan, pid: int) -> set[int]:
    """Orientations of a person's real images and donors."""
    images = np.concatenate([np.flatnonzero(packed.pids == pid), plan.donor[packed.pids[plan.source] == pid]])
    return set(space.orientations[images].tolist()) - {-1}
