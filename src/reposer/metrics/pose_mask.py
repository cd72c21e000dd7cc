"""The person mask that GFLA and PATN draw from key-points: what "mask" means in the published mask-LPIPS
figures.

GFLA (script/metrics.py, as PATN's tool/pose_utils.py): a rectangle of half-width 4 along every limb whose two
joints are present, a disc of radius 4 around every joint, then a morphological closing with a 5x5 square.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from skimage.draw import disk, polygon
from skimage.morphology import closing

RADIUS = 4.0  # pixels, at 128x64
CLOSING = 5  # pixels, side of the square
# OpenPose-18 joints. Six links are no limbs: they fill the torso's sides (8-11, 11-5, 8-2), join the shoulder
# to both ears of PATN's naming (1-16, 1-17) and one ear to the other (16-17).
LIMBS = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13)),
    *((1, 0), (0, 14), (14, 16), (0, 15), (15, 17), (1, 16), (1, 17), (8, 11), (11, 5), (8, 2), (16, 17)),
)


def pose_mask(keypoints: NDArray[np.float32], height: int, width: int) -> NDArray[np.bool_]:
    """Mask (H, W) of one person from key-points (J, 2), x and y in pixels with NaN for a missing joint.

    Pixels count by their centers: inside or on a rectangle's edge (scikit-image's polygon rule), closer than
    4 to a joint. Two joints at one point get no rectangle (the script divides by zero there); their discs
    cover it.
    """
    mask = np.zeros((height, width), bool)
    points = np.asarray(keypoints, np.float64)[:, ::-1]  # y, x
    present = np.asarray(~np.isnan(points).any(axis=1))
    for start, end in LIMBS:
        if present[start] and present[end] and (points[start] != points[end]).any():
            corners = _rectangle(points[start], points[end])
            mask[polygon(corners[:, 0], corners[:, 1], shape=mask.shape)] = True  # type: ignore[no-untyped-call]
    for center in points[present]:
        mask[disk(tuple(center), RADIUS, shape=mask.shape)] = True  # type: ignore[no-untyped-call]
    return np.asarray(closing(mask, np.ones((CLOSING, CLOSING), bool)), bool)


def _rectangle(start: NDArray[np.float64], end: NDArray[np.float64]) -> NDArray[np.float64]:
    """(4, 2) corners y, x of the limb's rectangle."""
    along = start - end
    across = RADIUS * np.array([-along[1], along[0]]) / np.linalg.norm(along)
    return np.array([start + across, start - across, end - across, end + across])
