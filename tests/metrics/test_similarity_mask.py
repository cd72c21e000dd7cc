"""GFLA's mask against a slow test of every pixel."""

from __future__ import annotations

import numpy as np
import pytest

from reposer.metrics.similarity import LIMBS, pose_mask

H, W = 40, 24


def _literal(keypoints):
    """Pixel by pixel: in a limb's rectangle or nearer than 4 to a joint; then dilated and eroded by 5x5."""
    drawn = np.zeros((H, W), bool)
    for y in range(H):
        for x in range(W):
            pixel = np.array([x, y], float)
            for joint in keypoints:
                drawn[y, x] |= bool(np.hypot(*(pixel - joint)) < 4)  # False for NaN
            for start, end in LIMBS:
                a, b = keypoints[start].astype(float), keypoints[end].astype(float)
                length = np.hypot(*(b - a))
                if np.isnan(length) or length == 0:
                    continue
                along = np.dot(pixel - a, b - a) / length
                across = abs((pixel - a)[0] * (b - a)[1] - (pixel - a)[1] * (b - a)[0]) / length
                drawn[y, x] |= 0 <= along <= length and across <= 4
    around = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)]

    def neighbors(mask, y, x):
        return [mask[y + dy, x + dx] for dy, dx in around if 0 <= y + dy < H and 0 <= x + dx < W]

    dilated = np.array([[any(neighbors(drawn, y, x)) for x in range(W)] for y in range(H)])
    return np.array([[all(neighbors(dilated, y, x)) for x in range(W)] for y in range(H)])


@pytest.mark.parametrize("seed", range(6))
def test_mask_equals_the_pixel_loop(seed):
    rng = np.random.default_rng(seed)
    # not whole pixels: no pixel lies on an edge
    keypoints = (rng.random((18, 2)) * [W, H]).astype(np.float32)
    keypoints[rng.random(18) < 0.5] = np.nan
    expected = _literal(keypoints)
    assert 0 < expected.mean() < 1
    np.testing.assert_array_equal(pose_mask(keypoints, H, W), expected)


def test_limbs_are_those_of_the_script():
    """The script counts joints from 1."""
    script = "2-3 2-6 3-4 4-5 6-7 7-8 2-9 9-10 10-11 2-12 12-13 13-14 2-1 1-15 15-17 1-16 16-18 2-17 2-18"
    links = {
        frozenset(int(j) - 1 for j in link.split("-")) for link in f"{script} 9-12 12-6 9-3 17-18".split()
    }
    assert {frozenset(limb) for limb in LIMBS} == links
    assert len(LIMBS) == 23


def test_missing_joints_and_one_point_twice():
    keypoints = np.full((18, 2), np.nan, np.float32)
    assert not pose_mask(keypoints, H, W).any()
    keypoints[1] = keypoints[2] = (10, 20)
    np.testing.assert_array_equal(pose_mask(keypoints, H, W), _literal(keypoints))


def test_joints_outside_the_image_are_cut_off():
    keypoints = np.full((18, 2), np.nan, np.float32)
    keypoints[1], keypoints[2] = (-2.5, 10.2), (W + 3.3, H + 1.7)
    np.testing.assert_array_equal(pose_mask(keypoints, H, W), _literal(keypoints))
