"""A person of a photo in another pose: the frame, the proportions, what is laid over what, what is said."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reposer.data.keypoints import JOINTS, NECK, NOSE, middle_hip, torso_length
from reposer.generation.pictures import Person
from reposer.generation.reposing import Layer, cut, frame_of, proportioned, remarks, working_size
from reposer.generation.targets import PoseTarget, canonical_pose

FRONT = PoseTarget("canonical-front", canonical_pose("front"), "torso")
BACK = PoseTarget("canonical-back", canonical_pose("back"), "torso")
ANKLE, HIP = JOINTS.index("right-ankle"), JOINTS.index("right-hip")


def somebody(joints: np.ndarray, size: tuple[int, int] = (256, 128)) -> Person:
    mask = np.zeros(size, bool)
    mask[20:240, 40:90] = True
    nothing = np.zeros(size, np.uint8)
    image = np.zeros((*size, 3), np.uint8)
    return Person("x", image, nothing, mask, joints.astype(np.float32), size, "")


def standing(torso: float = 60.0, legs: float = 1.0, head: float = 1.0) -> np.ndarray:
    """A front whose parts are so many times an adult's."""
    pose = canonical_pose("front").astype(float)
    neck = pose[NECK, 1]
    y = np.where(pose[:, 1] < neck, neck + (pose[:, 1] - neck) * head, pose[:, 1])
    y = np.where(y > 0, y * legs, y)
    return np.stack([pose[:, 0], y], 1) * torso + (64, 110)


def sizes(joints: np.ndarray) -> np.ndarray:
    """Torso, legs and head in pixels."""
    torso = float(torso_length(joints))
    return np.array([torso, joints[ANKLE, 1] - middle_hip(joints)[1], joints[NECK, 1] - joints[NOSE, 1]])


@pytest.mark.parametrize(("legs", "head"), [(1.0, 1.0), (0.7, 1.5)])
def test_a_pose_takes_the_proportions_of_the_person(legs, head):
    source = somebody(standing(55, legs, head))
    for target in (FRONT, PoseTarget("canonical-left", canonical_pose("left"), "torso")):
        made = proportioned(target, source)
        assert np.allclose(sizes(made.keypoints), sizes(source.keypoints), rtol=0.06)
        assert np.abs(made.keypoints[NECK] - source.keypoints[NECK]).max() < 5
    child = head / (1 + legs * 1.58) > 0.5
    said = remarks(source, np.ones((256, 128), bool), FRONT)
    assert any("child" in one for one in said) == child


@pytest.mark.parametrize("feet", [110 - 60.0, 110 - 60.0 - 1e-6, -1e6])
def test_ankles_as_high_as_the_neck_are_no_fault(feet):
    joints = standing()
    joints[NECK, 1] = 50
    joints[[ANKLE, JOINTS.index("left-ankle")], 1] = feet
    said = remarks(somebody(joints), np.ones((256, 128), bool), FRONT)
    assert not any("child" in one for one in said)
    joints[:, 1] = 255 - standing(55, 0.7, 1.5)[:, 1]  # a child on their hands
    joints[:, 0] = standing(55, 0.7, 1.5)[:, 0]
    said = remarks(somebody(joints), np.ones((256, 128), bool), FRONT)
    assert any("child" in one for one in said)


def test_half_a_person_stays_as_large():
    joints = standing(100)
    joints[8:14] = np.nan  # no hips, no legs
    known = np.ones((256, 128), bool)
    known[150:] = False
    source = somebody(joints)
    made = proportioned(FRONT, source).keypoints
    shoulders = JOINTS.index("right-shoulder"), JOINTS.index("left-shoulder")
    widths = [abs(pose[shoulders[0], 0] - pose[shoulders[1], 0]) for pose in (made, joints)]
    assert widths[0] == pytest.approx(widths[1], rel=0.1)
    assert np.isnan(made[ANKLE]).all()  # below the frame
    (said,) = remarks(source, known, FRONT)
    assert said.startswith("hips and legs are not in the photo")


def test_what_is_turned_away_is_said():
    source = somebody(standing())
    whole = np.ones((256, 128), bool)
    assert remarks(source, whole, FRONT) == []
    assert any("seen from the front" in one for one in remarks(source, whole, BACK))
    behind = somebody(canonical_pose("back") * 60 + (64, 110))
    assert any("seen from behind" in one for one in remarks(behind, whole, FRONT))
    nobody = somebody(np.full((18, 2), np.nan))
    assert any("fewer than 6" in one for one in remarks(nobody, whole, FRONT))


def test_a_frame_is_twice_as_high_as_wide_and_reaches_beyond_the_photo():
    for box in ((10, 10, 60, 200), (0, 50, 300, 200), (5, 5, 6, 6)):
        left, top, right, bottom = frame_of(box)
        assert bottom - top == 2 * (right - left)
        assert left <= box[0]
        assert right >= box[2]
        assert top <= box[1]
        assert bottom >= box[3]
        assert working_size((left, top, right, bottom))[0] <= 512
    photo = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    pixels, known = cut(photo, (-1, 0, 1, 4))
    assert (pixels[:, 0] == pixels[:, 1]).all()
    assert known.tolist() == [[False, True], [False, True], [False, False], [False, False]]


@pytest.mark.parametrize("rows", [64, 1400])
def test_a_layer_changes_nothing_but_where_the_person_was_and_is(rows):
    generator = np.random.default_rng(0)
    photo = generator.integers(0, 256, (rows, rows // 2, 3), dtype=np.uint8)
    alpha, hole = torch.zeros(1, 1, rows, rows // 2), torch.zeros(1, 1, rows, rows // 2, dtype=torch.bool)
    alpha[..., rows // 4 : rows // 2, rows // 8 : rows // 4] = 1
    hole[..., rows // 4 : rows // 2, rows // 4 : rows // 3] = True
    layer = Layer(torch.full((1, 3, rows, rows // 2), 7.0), alpha, hole)
    made = layer.over(photo)
    assert (made[alpha[0, 0].bool().numpy()] == 7).all()
    outside = np.ones(photo.shape[:2], bool)
    edge = max(2, rows // 90) + 1
    outside[rows // 4 - edge : rows // 2 + edge, rows // 8 - edge : rows // 3 + edge] = False
    assert (made[outside] == photo[outside]).all()
    painted = made[hole[0, 0].numpy()].astype(float)
    assert painted.std() < 0.6 * photo.astype(float).std()  # smooth, from around
    known = np.zeros(photo.shape[:2], bool)
    known[: rows // 2] = True
    assert layer.within(known).over(photo[: rows // 2]).shape == (rows // 2, rows // 2, 3)
