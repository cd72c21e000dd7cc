"""Other programs' joint orders as OpenPose-18: COCO-17 and OpenPose's BODY_25."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reposer.data.keypoints import LEFT_SHOULDER, NECK, RIGHT_SHOULDER, Pose
from reposer.structures import NUM_JOINTS

COCO_JOINTS, BODY25_JOINTS = 17, 25
# COCO joint of each OpenPose joint; the neck (-1) is the middle of the shoulders.
_COCO = np.array([0, -1, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3])
# BODY_25 has a middle hip as joint 8, and feet from 19 on
_BODY25 = np.array([*range(8), *range(9, 19)])


def coco_to_openpose(
    points: NDArray[np.floating], scores: NDArray[np.floating], threshold: float
) -> tuple[Pose, NDArray[np.float32]]:
    """COCO-17 points (..., 17, 2) and scores (..., 17) -> poses (..., 18, 2) and scores (..., 18).

    A joint below ``threshold`` is missing: NaN, score 0. The neck is the mean of the shoulders with the lower
    of their scores; it is missing when one of them is.
    """
    known = np.asarray(scores >= threshold) & np.isfinite(points).all(-1)
    pose = np.where(known[..., None], points, np.nan)[..., _COCO, :].astype(np.float32)
    values = np.where(known, scores, 0.0)[..., _COCO].astype(np.float32)
    shoulders = [RIGHT_SHOULDER, LEFT_SHOULDER]
    pose[..., NECK, :] = pose[..., shoulders, :].mean(-2)
    present = ~np.isnan(pose[..., NECK, 0])
    values[..., NECK] = np.where(present, values[..., shoulders].min(-1), 0.0)
    return pose, values


def body25_to_openpose(points: NDArray[np.floating]) -> NDArray[np.floating]:
    """(..., 25, C) of BODY_25 -> (..., 18, C)."""
    if points.shape[-2] != BODY25_JOINTS:
        raise ValueError(f"{points.shape[-2]} joints are not BODY_25's")
    converted = points[..., _BODY25, :]
    assert converted.shape[-2] == NUM_JOINTS
    return converted
