"""The skeleton of a rendered person: proportions, pose, forward kinematics and the 18 OpenPose joints.

Body frame (meters): x towards the person's left, y up, z forward (where the face looks). In the rest pose
the person stands straight with hanging arms, feet on y = 0. Proportions follow Drillis and Contini's
segment lengths as fractions of the height (Winter, Biomechanics and Motor Control of Human Movement, fig.
4.1), with our own widths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

BONES = (
    *("pelvis", "waist", "chest", "neck", "head"),
    *("r_arm", "r_forearm", "r_hand", "l_arm", "l_forearm", "l_hand"),
    *("r_thigh", "r_shin", "r_foot", "l_thigh", "l_shin", "l_foot"),
    *("r_bag", "l_bag"),  # hang from the hands, always upright
)
BONE = {name: index for index, name in enumerate(BONES)}
PARENTS = (-1, 0, 1, 2, 3, 2, 5, 6, 2, 8, 9, 0, 11, 12, 0, 14, 15, 7, 10)

# The bone that carries each OpenPose joint, in the order of reposer.data.keypoints.JOINTS, and how far behind
# the visible surface (meters) the joint may lie and still count as seen: its depth below skin and cloth.
JOINT_BONES = tuple(
    BONE[name]
    for name in (
        "head",
        "chest",
        "r_arm",
        "r_forearm",
        "r_hand",
        "l_arm",
        "l_forearm",
        "l_hand",
        "r_thigh",
        "r_shin",
        "r_foot",
        "l_thigh",
        "l_shin",
        "l_foot",
        "head",
        "head",
        "head",
        "head",
    )
)
# Detectors name shoulders and hips in side views too (94 % of Market-1501's images have all four): 0.36.
_DEPTHS = {
    **{"head": 0.05, "chest": 0.25, "arm": 0.36, "forearm": 0.12, "hand": 0.09},
    **{"thigh": 0.36, "shin": 0.17, "foot": 0.11},
}
JOINT_DEPTH = np.array([_DEPTHS[BONES[bone].split("_")[-1]] for bone in JOINT_BONES])
# Nose, right and left eye, right and left ear: meters from the middle of the head at a height of 1.72 m
FACE_JOINTS = {
    0: (0.0, -0.022, 0.105),
    14: (-0.031, 0.012, 0.082),
    15: (0.031, 0.012, 0.082),
    16: (-0.074, -0.008, -0.004),
    17: (0.074, -0.008, -0.004),
}
# Where they look, in the head's frame: from behind they are hidden even where they stand out at its rim.
JOINT_NORMALS = np.zeros((18, 3))
JOINT_NORMALS[[0, 14, 15, 16, 17]] = (
    (0.0, 0.0, 1.0),
    (-0.35, 0.0, 0.94),
    (0.35, 0.0, 0.94),
    (-0.98, 0.0, 0.20),
    (0.98, 0.0, 0.20),
)


@dataclass(frozen=True, slots=True)
class BodyShape:
    """What makes two undressed bodies differ."""

    height: float  # meters, without shoes and hair
    female: float  # 0 typical male, 1 typical female proportions
    build: float  # girth factor: 0.85 slim, 1 average, 1.25 heavy
    legs: float = 1.0  # length of the legs relative to the average
    shoulders: float = 1.0  # width of the shoulders relative to the average

    @property
    def k(self) -> float:
        """Scale from the drawing height of 1.72 m."""
        return self.height / 1.72


@dataclass(frozen=True, slots=True)
class Pose:
    """Where a person looks and how the joints are bent.

    ``angles`` (19, 3) are degrees about x, y, z of each bone relative to its parent, applied as Rx Rz Ry.
    """

    action: str  # "stand", "walk", "arms_up", ...
    yaw: float  # degrees: 0 faces the camera, 90 faces the image's right, 180 shows the back
    angles: NDArray[np.float64] = field(default_factory=lambda: np.zeros((len(BONES), 3)))

    def named_angles(self) -> dict[str, list[float]]:
        """The bones that are bent, for people.json."""
        return {
            name: np.round(self.angles[i], 2).tolist() for i, name in enumerate(BONES) if self.angles[i].any()
        }


def rest_joints(shape: BodyShape) -> NDArray[np.float64]:
    """(19, 3) position of each bone's joint in the rest pose, meters."""
    h, f = shape.height, shape.female
    shoulder = h * (0.1055 - 0.0125 * f) * shape.shoulders
    hip = h * (0.0500 + 0.0030 * f)
    hip_y, knee_y, ankle_y = 0.520 * h * shape.legs, 0.283 * h * shape.legs, 0.043 * h
    up = hip_y - 0.520 * h  # what longer legs lift
    squeeze = 1.0 - up / (0.40 * h)  # the trunk gives back what the legs take

    def trunk(y: float) -> float:
        return hip_y + (y - 0.520) * h * squeeze

    arm = {"x": shoulder, "y": trunk(0.797), "z": -0.006 * h}
    points = {
        "pelvis": (0.0, trunk(0.540), 0.0),
        "waist": (0.0, trunk(0.600), -0.004 * h),
        "chest": (0.0, trunk(0.690), -0.006 * h),
        "neck": (0.0, trunk(0.822), -0.012 * h),
        "head": (0.0, trunk(0.872), -0.002 * h),
    }
    for side, sign in (("r", -1.0), ("l", 1.0)):
        points[f"{side}_arm"] = (sign * arm["x"], arm["y"], arm["z"])
        points[f"{side}_forearm"] = (sign * arm["x"], arm["y"] - 0.172 * h, arm["z"])
        points[f"{side}_hand"] = (sign * arm["x"], arm["y"] - 0.314 * h, arm["z"])
        points[f"{side}_bag"] = (sign * arm["x"], arm["y"] - 0.372 * h, arm["z"] + 0.008 * h)
        points[f"{side}_thigh"] = (sign * hip, hip_y, 0.0)
        points[f"{side}_shin"] = (sign * hip, knee_y, 0.004 * h)
        points[f"{side}_foot"] = (sign * hip, ankle_y, -0.010 * h)
    return np.array([points[name] for name in BONES])


def joint_rest_positions(shape: BodyShape, rest: NDArray[np.float64]) -> NDArray[np.float64]:
    """(18, 3) OpenPose joints in the rest pose: the limb joints and five points on the head's surface."""
    k = shape.k
    joints = np.array([rest[bone] for bone in JOINT_BONES])
    joints[1] = (rest[BONE["r_arm"]] + rest[BONE["l_arm"]]) / 2 + (0.0, 0.020 * k, 0.0)  # OpenPose's neck
    head = head_center(shape, rest)
    for index, offset in FACE_JOINTS.items():
        joints[index] = head + np.array(offset) * k
    return joints


def head_center(shape: BodyShape, rest: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3,) middle of the head, between the ears, in the rest pose."""
    center: NDArray[np.float64] = rest[BONE["head"]] + np.array([0.0, 0.062, 0.012]) * shape.height
    return center


def rotations(degrees: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rx Rz Ry for (N, 3) degrees about x, y, z -> (N, 3, 3)."""
    radians = degrees * (math.pi / 180.0)
    (cx, cy, cz), (sx, sy, sz) = np.cos(radians).T, np.sin(radians).T
    turns = np.empty((len(degrees), 3, 3))
    turns[:, 0, 0], turns[:, 0, 1], turns[:, 0, 2] = cz * cy, -sz, cz * sy
    turns[:, 1, 0], turns[:, 1, 1], turns[:, 1, 2] = cx * sz * cy + sx * sy, cx * cz, cx * sz * sy - sx * cy
    turns[:, 2, 0], turns[:, 2, 1], turns[:, 2, 2] = sx * sz * cy - cx * sy, sx * cz, sx * sz * sy + cx * cy
    return turns


def forward_kinematics(
    pose: Pose, rest: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """World rotation (19, 3, 3) and joint position (19, 3) of every bone; the pelvis turns in its place."""
    local = rotations(np.concatenate((pose.angles, [[0.0, pose.yaw, 0.0]])))
    turns = np.empty((len(BONES), 3, 3))
    places = np.empty((len(BONES), 3))
    turns[0] = local[-1] @ local[0]
    places[0] = rest[0]
    offsets = rest[1:] - rest[list(PARENTS[1:])]
    for bone in range(1, len(BONES)):
        parent = PARENTS[bone]
        turns[bone] = turns[parent] @ local[bone] if bone < BONE["r_bag"] else local[-1]
        places[bone] = places[parent] + turns[parent] @ offsets[bone - 1]
    return turns, places
