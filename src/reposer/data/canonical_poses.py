"""Eight canonical poses, one for each of the eight orientations: a person who stands upright, arms hanging.

Drawn by hand as one skeleton in three dimensions, in torso lengths (neck to middle of the hips), with body
proportions of an adult of 3.4 torso lengths; turned about its long axis and projected in parallel. Diagonals
are turned by 60 degrees, not 45: there the shoulders are as wide as in the middle of what
``data.orientation`` calls a diagonal. A mirrored skeleton is that of the mirrored orientation. Hidden parts
of the face are missing, as detectors leave them; hidden limbs are there, as detectors guess them.
"""

from __future__ import annotations

import difflib

import numpy as np

from reposer.data.keypoints import JOINTS, Pose
from reposer.data.orientation import ORIENTATIONS
from reposer.errors import UserError

ALL = "all"
CROWN, SOLE = -1.72, 1.70  # y of the top of the head and of the ground, in torso lengths
_TURNS = (0, 60, 90, 120, 180, -120, -90, -60)  # degrees, in the order of ORIENTATIONS; right is positive

# x to the person's left, y down, z to the front; the middle of the hips is 0. Right joints are mirrored.
_MIDDLE = {"nose": (0.0, -1.42, 0.22), "neck": (0.0, -1.0, 0.0)}
_LEFT = {
    "shoulder": (0.38, -1.0, 0.0),
    "elbow": (0.46, -0.42, -0.05),
    "wrist": (0.48, 0.08, 0.10),
    "hip": (0.18, 0.0, 0.0),
    "knee": (0.19, 0.80, 0.05),
    "ankle": (0.19, 1.58, -0.05),
    "eye": (0.06, -1.50, 0.18),
    "ear": (0.14, -1.47, 0.02),
}
# Where a part of the face looks, in degrees to the left of straight ahead, and how far it may be turned away
# from the viewer and still be seen.
_LOOKS = {"nose": (0.0, 95.0), "eye": (25.0, 90.0), "ear": (90.0, 110.0)}


def canonical_pose(name: str) -> Pose:
    """(J, 2) x, y in torso lengths, centered at the middle of the hips, of an orientation.

    Raises:
        UserError: no such orientation; names the nearest.
    """
    if name not in ORIENTATIONS:
        near = difflib.get_close_matches(name, ORIENTATIONS, n=1, cutoff=0.0)
        known = ", ".join((*ORIENTATIONS, ALL))
        raise UserError(f"canonical pose {name!r}: unknown", f"did you mean {near[0]}? known: {known}")
    degrees = _TURNS[ORIENTATIONS.index(name)]
    turn = np.deg2rad(degrees)
    pose = np.full((len(JOINTS), 2), np.nan, np.float32)
    for number, joint in enumerate(JOINTS):
        side, _, part = joint.rpartition("-")
        sign = -1.0 if side == "right" else 1.0
        x, y, z = _LEFT[part] if side else _MIDDLE[joint]
        if part in _LOOKS:
            looks, limit = _LOOKS[part]
            away = abs((sign * looks + degrees + 180) % 360 - 180)  # from the viewer
            if away > limit:
                continue
        pose[number] = sign * x * np.cos(turn) + z * np.sin(turn), y
    return pose


def canonical_names(text: str) -> list[str]:
    """ "front,left" or "all" -> the names of orientations, each once.

    Raises:
        UserError: an unknown name, or none at all.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UserError("canonical: names no orientation", f"use {', '.join((*ORIENTATIONS, ALL))}")
    if names == [ALL]:
        return list(ORIENTATIONS)
    for name in names:
        canonical_pose(name)
    return list(dict.fromkeys(names))
