"""Fit modes against hand-worked numbers, PATN's crop, and a planted pixel that all arrays must agree on."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from reposer.data.preparing.packing import FITS, Placement, known_fit
from reposer.errors import UserError


def joints(*points: tuple[float, float]) -> np.ndarray:
    return np.array(points, np.float32)


def test_cropping_is_patns_crop():
    """256x256 to 256x176 is image[:, 40:-40], and x is less by 40."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (256, 256, 3), np.uint8)
    place = Placement.of((256, 256), (256, 176), "crop")
    np.testing.assert_array_equal(place.picture(image), image[:, 40:-40])
    np.testing.assert_array_equal(place.labels(image[..., 0]), image[:, 40:-40, 0])
    moved = place.keypoints(joints((40, 0), (39, 5), (215, 255), (216, 7), (np.nan, np.nan)))
    np.testing.assert_array_equal(moved, joints((0, 0), *[(np.nan,) * 2], (175, 255), *[(np.nan,) * 2] * 2))


def test_padding_is_white_and_background():
    image = np.zeros((256, 176, 3), np.uint8)
    place = Placement.of((256, 176), (256, 256), "pad")
    padded = place.picture(image)
    assert (padded[:, :40] == 255).all()
    assert (padded[:, 216:] == 255).all()
    assert (padded[:, 40:216] == 0).all()
    labels = place.labels(np.full((256, 176), 7, np.uint8))
    assert np.unique(labels[:, :40]).tolist() == [0]
    assert np.unique(labels[:, 40:216]).tolist() == [7]
    np.testing.assert_array_equal(place.keypoints(joints((0, 3))), joints((40, 3)))


def test_resizing_squeezes_the_whole_picture():
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (1101, 750, 3), np.uint8)
    place = Placement.of((1101, 750), (256, 256))
    wanted = np.asarray(Image.fromarray(image).resize((256, 256), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(place.picture(image), wanted)
    middle = place.keypoints(joints((374.5, 550)))
    np.testing.assert_allclose(middle, joints((127.5, 127.5)), atol=1e-4)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("original", [(40, 24), (24, 40), (200, 31), (33, 90), (32, 32), (64, 32)])
def test_picture_map_and_joint_stay_together(fit, original):
    """A bright labeled block stays under its joint, whatever the sizes."""
    height, width = original
    y, x = height // 2, width // 2
    image = np.zeros((height, width, 3), np.uint8)
    labels = np.zeros((height, width), np.uint8)
    image[y - 4 : y + 5, x - 4 : x + 5] = 200
    labels[y - 4 : y + 5, x - 4 : x + 5] = 9
    place = Placement.of(original, (48, 32), fit)
    picture, placed, joint = place.picture(image), place.labels(labels), place.keypoints(joints((x, y)))
    assert picture.shape == (48, 32, 3)
    column, row = joint[0].round().astype(int)
    assert placed[row, column] == 9
    assert picture[row, column, 0] > 150
    center = np.argwhere(placed == 9).mean(axis=0)
    np.testing.assert_allclose(center, joint[0][::-1], atol=1.0)


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_shapes_are_kept(fit):
    """A square stays a square, unlike by resizing."""
    labels = np.zeros((90, 30), np.uint8)
    labels[35:55, 5:25] = 1
    placed = Placement.of((90, 30), (60, 40), fit).labels(labels)
    rows, columns = (np.ptp(axis) + 1 for axis in np.nonzero(placed))
    assert abs(rows - columns) <= 1


def test_an_unknown_fit_is_refused():
    with pytest.raises(UserError, match="resize, pad, crop"):
        known_fit("stretch")
