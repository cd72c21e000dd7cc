"""Orientations of a stick figure turned about its axis, and the cases that mislead."""

from __future__ import annotations

import math

import numpy as np
import pytest

from reposer.data.keypoints import FLIP_JOINTS, JOINTS
from reposer.data.orientation import (
    ORIENTATIONS,
    UNKNOWN,
    face_share,
    facing,
    orientation,
    shoulder_vector,
)

# x across the body (the person's left is positive), depth in front of the body, y down; torso 40 long
_BODY = {
    "nose": (0, 8, 8),
    "neck": (0, 0, 20),
    "shoulder": (17, 0, 22),
    "elbow": (18, 0, 38),
    "wrist": (18, 2, 54),
    "hip": (9, 0, 60),
    "knee": (9, 5, 85),
    "ankle": (9, 0, 110),
    "eye": (3, 7, 6),
    "ear": (6, 0, 8),
}

DEGREES = (0, 60, 90, 120, 180, 240, 270, 300)


def turned(degrees: float) -> np.ndarray:
    """The figure facing the camera at 0 and the image's right edge at 90."""
    angle = math.radians(degrees)
    pose = []
    for name in JOINTS:
        side, _, part = name.rpartition("-")
        across, depth, y = _BODY[part]
        across = -across if side == "right" else across
        pose.append((32 + across * math.cos(angle) + depth * math.sin(angle), y))
    return np.array(pose, np.float32)


@pytest.mark.parametrize(("place", "degrees"), list(enumerate(DEGREES)))
def test_the_figure_turned_about_its_axis(place: int, degrees: float) -> None:
    assert ORIENTATIONS[orientation(turned(degrees))] == ORIENTATIONS[place]


def test_a_front_shows_the_right_shoulder_on_the_left() -> None:
    assert shoulder_vector(turned(0)) == pytest.approx(-34 / 40)
    assert shoulder_vector(turned(180)) == pytest.approx(34 / 40)


def test_a_mirrored_image_mirrors_the_orientation() -> None:
    poses = np.stack([turned(degrees) for degrees in DEGREES])
    names = [ORIENTATIONS[i] for i in orientation([63, 0] + [-1, 1] * poses[:, FLIP_JOINTS])]
    swapped = {"left": "right", "right": "left"}
    expected = ["-".join(swapped.get(word, word) for word in name.split("-")) for name in ORIENTATIONS]
    assert names == expected


def test_without_a_nose_the_bent_knees_tell_the_side() -> None:
    pose = turned(90)
    pose[JOINTS.index("nose")] = np.nan
    assert facing(pose) == 1
    assert ORIENTATIONS[orientation(pose)] == "right"
    pose[JOINTS.index("left-ankle")] = np.nan  # one whole leg is enough
    assert facing(pose) == 1
    pose[JOINTS.index("right-ankle")] = np.nan
    assert facing(pose) == 0
    assert orientation(pose) == UNKNOWN


def test_unknown_without_a_shoulder_or_a_torso() -> None:
    for joint in ("left-shoulder", "right-shoulder", "neck", "left-hip"):
        pose = turned(0)
        pose[JOINTS.index(joint)] = np.nan
        assert orientation(pose) == UNKNOWN


def test_hair_without_a_face_makes_a_back_of_a_faceless_front() -> None:
    pose = turned(0)
    hair, face = np.zeros((2, 8, 8), np.uint8)
    hair[:2], hair[2, :2] = 2, 13
    face[:2] = 13
    shares = face_share(np.stack([hair, face, np.zeros((8, 8), np.uint8)]))
    np.testing.assert_allclose(shares, [2 / 18, 1, np.nan])
    assert ORIENTATIONS[orientation(pose, shares[0])] == "front"  # a face joint was found
    for joint in ("nose", "right-eye", "left-eye"):
        pose[JOINTS.index(joint)] = np.nan
    found = [ORIENTATIONS[i] for i in orientation(np.stack([pose] * 3), shares)]
    assert found == ["back", "front", "front"]
