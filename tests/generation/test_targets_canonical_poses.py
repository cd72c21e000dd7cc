"""Canonical poses face where their names say, mirror each other and have a person's proportions."""

from __future__ import annotations

import numpy as np
import pytest

from reposer.data.keypoints import FLIP_JOINTS, JOINTS, normalize_pose, pose_distance
from reposer.data.orientation import ORIENTATIONS, orientation
from reposer.errors import UserError
from reposer.generation.targets import canonical_names, canonical_pose


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_each_pose_is_of_its_own_orientation(name):
    pose = canonical_pose(name)
    assert ORIENTATIONS[int(orientation(pose))] == name
    np.testing.assert_allclose(normalize_pose(pose), pose, atol=1e-6)  # torso lengths from the hips already


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("front", "front"),
        ("back", "back"),
        ("front-right", "front-left"),
        ("right", "left"),
        ("back-right", "back-left"),
    ],
)
def test_a_mirrored_pose_is_the_mirrored_orientation(name, other):
    np.testing.assert_allclose([-1, 1] * canonical_pose(name)[FLIP_JOINTS], canonical_pose(other), atol=1e-6)


def test_the_face_is_seen_from_the_front_only():
    def seen(name):
        return {JOINTS[j] for j in np.flatnonzero(~np.isnan(canonical_pose(name)[:, 0]))} - set(JOINTS[1:14])

    face = {"nose", "right-eye", "left-eye", "right-ear", "left-ear"}
    assert seen("front") == face
    assert seen("right") == {"nose", "right-eye", "right-ear"}  # facing right shows the right side
    assert seen("left") == {"nose", "left-eye", "left-ear"}
    assert seen("back") == {"right-ear", "left-ear"}
    assert seen("front-right") == face - {"left-ear"}


def test_neighbors_are_nearer_than_opposites():
    front, right, back = (canonical_pose(name) for name in ("front", "right", "back"))
    assert pose_distance(front, right) < pose_distance(front, back)


def test_names():
    assert canonical_names("front, left,front") == ["front", "left"]
    assert canonical_names("all") == list(ORIENTATIONS)
    with pytest.raises(UserError, match="canonical pose frnt: unknown: did you mean front"):
        canonical_names("frnt")
    with pytest.raises(UserError, match="names no orientation"):
        canonical_names(" , ")
