"""Left and right by key-points: a pixel belongs to the nearer of the person's two limbs.

For models that know no sides, and for those whose own sides are not to be trusted.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from reposer.annotation.segmentation_model import SIDELESS, SIDELESS_CODES
from reposer.data.parsing import LIP_LABELS

# Joints of a limb from the trunk outwards: (left, right), OpenPose order.
_LIMBS = {
    "arms": ((5, 6, 7), (2, 3, 4)),
    "legs": ((11, 12, 13), (8, 9, 10)),
    "shoes": ((13,), (10,)),
}
_INSTEAD = {"shoes": "legs"}  # where no ankle is known


def resolve_sides(parsing: NDArray[np.uint8], keypoints: NDArray[np.float32]) -> NDArray[np.uint8]:
    """One map with arms, legs and shoes told apart.

    A pixel goes to the side whose limb (line through the joints that are known) is nearer; ties go to the
    left. With one limb known everything goes to its side. With none, the person is taken to face the camera:
    what lies left of the middle of these pixels in the image is the person's right.

    Args:
        parsing: (H, W) LIP-20 with SIDELESS_CODES.
        keypoints: (18, 2) x, y in pixels, NaN for a missing joint.
    """
    resolved = parsing.copy()
    for part, (left, right) in SIDELESS.items():
        rows, columns = np.nonzero(parsing == SIDELESS_CODES[part])
        if not len(rows):
            continue
        points = np.stack([columns, rows], axis=1).astype(np.float64)
        to_left, to_right = (_distance(points, keypoints, part, side) for side in (0, 1))
        if np.isinf(to_left).all() and np.isinf(to_right).all():
            is_right = points[:, 0] < (points[:, 0].min() + points[:, 0].max()) / 2
        else:
            is_right = to_right < to_left
        resolved[rows, columns] = np.where(is_right, LIP_LABELS.index(right), LIP_LABELS.index(left))
    return resolved


def correct_sides(parsing: NDArray[np.uint8], keypoints: NDArray[np.float32]) -> NDArray[np.uint8]:
    """One map whose arms, legs and shoes are told apart anew, where both limbs have a joint that is known.

    Elsewhere the model's own sides stay: a single limb says less than they do.

    Args:
        parsing: (H, W) LIP-20.
        keypoints: (18, 2) x, y in pixels, NaN for a missing joint.
    """
    corrected = parsing.copy()
    for part, names in SIDELESS.items():
        left, right = (LIP_LABELS.index(name) for name in names)
        rows, columns = np.nonzero((parsing == left) | (parsing == right))
        points = np.stack([columns, rows], axis=1).astype(np.float64)
        to_left, to_right = (_distance(points, keypoints, part, side) for side in (0, 1))
        if not (np.isinf(to_left).any() or np.isinf(to_right).any()):
            corrected[rows, columns] = np.where(to_right < to_left, right, left)
    return corrected


def _distance(
    points: NDArray[np.float64], keypoints: NDArray[np.float32], part: str, side: int
) -> NDArray[np.float64]:
    """(P,) distance to a side's limb; infinite where none of its joints is known."""
    joints = np.asarray(keypoints, np.float64)[list(_LIMBS[part][side])]
    joints = joints[~np.isnan(joints).any(axis=1)]
    if not len(joints):
        if part in _INSTEAD:
            return _distance(points, keypoints, _INSTEAD[part], side)
        return np.full(len(points), np.inf)
    nearest = np.linalg.norm(points - joints[0], axis=1)
    for start, end in pairwise(joints):
        line = end - start
        along = ((points - start) @ line / max(float(line @ line), 1e-12)).clip(0, 1)
        nearest = np.minimum(nearest, np.linalg.norm(points - start - along[:, None] * line, axis=1))
    return np.asarray(nearest)
