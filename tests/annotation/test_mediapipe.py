"""What is done around MediaPipe's networks; they themselves are held to real people in tests/real."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from scipy import ndimage

from reposer.annotation import mediapipe
from reposer.annotation.annotators import AnnotatorChoice
from reposer.annotation.interfaces import PERSON, AnnotatorInfo
from reposer.annotation.makers import find_people
from reposer.annotation.mediapipe import BlazePose, LiteNetwork, PoseFinder, SelfieMasks, squared
from reposer.annotation.networks import Lanes
from reposer.data.keypoints import JOINTS
from reposer.errors import MissingWeightsError, UserError

INFO = AnnotatorInfo("fake")
RED = np.array([1, 0, 0], np.float32)


class Fake:
    """In the place of a LiteNetwork: ``answer(one view)`` gives the outputs of an image."""

    def __init__(self, size, answer):
        self.size, self._answer = size, answer
        self.lanes = Lanes(2)

    def __call__(self, x, outputs):
        made = [self._answer(one) for one in x]
        return [np.stack([one[number] for one in made]).astype(np.float32) for number in outputs]


def middle(view: np.ndarray) -> tuple[float, float]:
    """x, y of the red of a view, in pixels from its corner."""
    y, x = ndimage.center_of_mass(view[..., 0] - view[..., 1])
    return x + 0.5, y + 0.5


def points_at_red(view):
    """BlazePose's outputs with every point on the red spot, the left wrist unseen, the nose far outside."""
    raw = np.zeros((39, 5))
    raw[:, :2], raw[:, 3:] = middle(view), 6.0
    raw[15, 3] = -6.0
    raw[0, 0] = 1e4
    return raw.ravel(), [0.9]


def spotted(height: int, width: int, x: int, y: int) -> torch.Tensor:
    """A gray image with a red spot of 3 x 3 pixels around x, y."""
    image = np.full((height, width, 3), 100, np.uint8)
    image[y - 1 : y + 2, x - 1 : x + 2] = (255, 0, 0)
    return torch.from_numpy(image).permute(2, 0, 1)


@pytest.mark.parametrize(
    ("height", "width", "x", "y"), [(128, 64, 20, 100), (60, 91, 70, 9), (700, 300, 50, 650)]
)
def test_points_come_back_to_the_pixels_that_the_network_saw(height, width, x, y):
    images = torch.stack([spotted(height, width, x, y)] * 2)
    poses = BlazePose(Fake(256, points_at_red), INFO)(images)
    found = poses.keypoints[0, JOINTS.index("right-knee")]
    assert np.abs(found - (x, y)).max() < 0.02 * max(height, width) / 64
    missing = {JOINTS[i] for i in np.flatnonzero(np.isnan(poses.keypoints[0, :, 0]))}
    assert {"nose", "left-wrist"} <= missing  # outside, and unseen
    assert not {"right-knee", "left-knee", "right-wrist", "neck"} & missing
    assert {JOINTS[i] for i in np.flatnonzero(poses.scores[0] == 0)} == missing
    assert poses.people.tolist() == [1, 1]


def test_nobody_has_no_joints():
    poses = BlazePose(Fake(256, lambda view: (points_at_red(view)[0], [0.001])), INFO)(
        spotted(64, 32, 9, 9)[None]
    )
    assert np.isnan(poses.keypoints).all()
    assert poses.people.tolist() == [0]


def test_the_square_repeats_the_edge():
    image = torch.zeros(1, 3, 8, 4, dtype=torch.uint8)
    image[..., 0], image[..., -1] = 255, 51
    view = squared(image, 8, 8)
    assert view.shape == (1, 8, 8, 3)
    assert (view[0, :, :3] == 1).all()
    assert np.allclose(view[0, :, 5:], 0.2)


@pytest.mark.parametrize(("height", "width"), [(64, 32), (31, 64)])
def test_a_mask_is_that_of_the_network_at_the_size_of_the_image(height, width):
    image = torch.zeros(1, 3, height, width, dtype=torch.uint8)
    image[0, 0, 8:24, 6:20] = 255
    selfie = SelfieMasks(Fake(256, lambda view: (view[..., :1],)), INFO)
    masks = selfie(torch.cat([image, torch.zeros_like(image)]))
    wanted = (image[0, 0] > 0).numpy()
    assert (masks.mask[0] != wanted).sum() <= 4  # a corner's pixel
    assert masks.source == ("network", "everything")
    assert masks.mask[1].all()


def reds(view: np.ndarray) -> list[tuple[slice, ...]]:
    """The red rectangles of a view that are large enough to be seen."""
    labels, _ = ndimage.label(view[..., 0] > 0.6)
    return [found for found in ndimage.find_objects(labels) if found[0].stop - found[0].start >= 20]


def rings_of_reds(view):
    """The pose detector's outputs: an anchor for each red rectangle."""
    view = (view + 1) / 2
    raw, scores = np.zeros((2254, 12)), np.full((2254, 1), -100.0)
    for number, (rows, columns) in enumerate(reds(view)):
        center = np.array([columns.start + columns.stop, rows.start + rows.stop]) / 2
        place = 100 * number
        anchor = (np.array([place // 2 % 28, place // 2 // 28]) + 0.5) / 28 * 224
        raw[place, 4:6] = center - anchor
        raw[place, 6:8] = center - anchor - (0, (rows.stop - rows.start) / 2)
        scores[place] = 3.0
    return raw, scores


def body_of_red(view):
    """BlazePose's outputs: the mask is what is red and in the middle, with joints at its corners."""
    red = view[..., 0] > 0.6
    labels, _ = ndimage.label(red)
    own = (labels == labels[128, 128]) & red
    raw = np.zeros((39, 5))
    raw[:, :2], raw[:, 3] = 128, 5.0
    if own.any():
        rows, columns = np.nonzero(own)
        raw[:2, :2] = [[columns.min(), rows.min()], [columns.max(), rows.max()]]
    return raw.ravel(), [0.8 if own.any() else 0.1], np.where(own, 4.0, -4.0)[..., None]


def test_everybody_in_a_photo_is_found_once_and_to_the_edges():
    photo = np.zeros((700, 1100, 3), np.uint8)
    people = [(100, 150, 220, 500), (600, 100, 760, 640), (900, 300, 960, 420)]
    for left, top, right, bottom in people:
        photo[top:bottom, left:right] = (255, 0, 0)
    finder = PoseFinder(Fake(224, rings_of_reds), Fake(256, body_of_red))
    boxes, scores = find_people(finder, photo)
    assert len(boxes) == 3  # seen whole and in parts of the photo, and each once
    for wanted, found in zip(people, boxes[np.argsort(boxes[:, 0])], strict=True):
        assert np.abs(found - wanted).max() < 8
    assert scores.min() == pytest.approx(0.8)
    (found,) = finder([torch.zeros(3, 90, 60)])
    assert found["boxes"].shape == (0, 4)
    assert PERSON not in found["labels"]


def test_what_is_missing_is_said_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("REPOSER_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    choice = AnnotatorChoice(parser="none", may_download=False)
    with pytest.raises(
        MissingWeightsError, match=r"selfie_segmentation\.tflite.*wheel of mediapipe 0\.10\.21"
    ):
        choice.open()
    broken = tmp_path / "pose_landmark_full.tflite"
    broken.write_bytes(b"no network")
    with pytest.raises(UserError, match="sha256 does not begin with"):
        AnnotatorChoice("none", "none", f"blazepose_full={broken}").open()
    with monkeypatch.context() as patch:
        patch.setitem(__import__("sys").modules, "ai_edge_litert.interpreter", None)
        with pytest.raises(UserError, match=r"pip install reposer\[annotate\]"):
            LiteNetwork(broken)


def test_litert_is_silent_and_so_are_its_faults(capfd, tmp_path):
    with pytest.raises(UserError, match="LiteRT cannot read it"):
        LiteNetwork(tmp_path / "nothing.tflite")
    with mediapipe._quiet():
        os.write(2, b"kernels")
    assert capfd.readouterr().err == ""
