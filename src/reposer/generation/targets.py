"""Targets of which only the pose is known: keypoints from a file, of a named image, or canonical ones.

A target without an image has no maps: its Person carries MISSING_LABEL and an empty mask, and whoever needs
maps has them predicted (:mod:`reposer.generation.pose_transfer`) or says that they are missing.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from reposer.config import canonical_json
from reposer.data.keypoint_imports import read_pose_json
from reposer.data.keypoints import JOINTS, NECK, Pose, middle_hip, read_keypoints_csv, scale_keypoints
from reposer.data.orientation import ORIENTATIONS
from reposer.data.packed import PackedPeople
from reposer.data.records import AnnotationProblem
from reposer.errors import UserError, find
from reposer.generation.pictures import Person, beside
from reposer.images import read_picture
from reposer.storage.files import sha256_bytes
from reposer.storage.paths import printable
from reposer.structures import MISSING_LABEL

# ---- Eight canonical poses, one for each of the eight orientations: a person who stands upright, arms
# hanging.
#
# Drawn by hand as one skeleton in three dimensions, in torso lengths (neck to middle of the hips), with body
# proportions of an adult of 3.4 torso lengths; turned about its long axis and projected in parallel.
# Diagonals are turned by 60 degrees, not 45: there the shoulders are as wide as in the middle of what
# ``data.orientation`` calls a diagonal. A mirrored skeleton is that of the mirrored orientation. Hidden parts
# of the face are missing, as detectors leave them; hidden limbs are there, as detectors guess them.

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
    degrees = find("canonical pose", name, dict(zip(ORIENTATIONS, _TURNS, strict=True)), ALL)
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


CANONICAL = "canonical:"
KEYPOINTS = "keypoints.csv"  # beside an image or in the folder above, as data sets have it
MARGIN = 0.04  # of the frame's height, left free above and below where the source's height is not known
_ANKLES = [JOINTS.index(f"{side}-ankle") for side in ("right", "left")]
_GRAY = 128


@dataclass(frozen=True, slots=True)
class PoseTarget:
    """A pose to take."""

    name: str  # what files and manifests call it
    keypoints: Pose  # (J, 2) pixels of ``size``; "torso": torso lengths from the middle of the hips
    size: (
        tuple[int, int] | Literal["source", "torso"]
    )  # (H, W) of the frame; "source": of each source's photo

    @property
    def sha256(self) -> str:
        """Of the pose."""
        return sha256_bytes(
            canonical_json([self.size, [[repr(float(v)) for v in p] for p in self.keypoints]])
        )

    def for_source(self, source: Person) -> Person:
        """The target for one source: keypoints in pixels of its size, nothing else.

        Raises:
            UserError: no keypoint lies inside the image.
        """
        height, width = source.image.shape[:2]
        if self.size == "torso":
            pose = place(self.keypoints, source)
        else:
            frame = source.original_size if self.size == "source" else self.size
            corner = source.corner if self.size == "source" else (0, 0)
            pose = scale_keypoints(self.keypoints - np.array(corner, np.float32), frame, (height, width))
        pose = inside(pose, (height, width))
        if np.isnan(pose).all():
            raise UserError(
                f"target {printable(self.name)}: no keypoint lies inside the image",
                "give keypoints in pixels of the source image, or width and height of theirs",
            )
        return Person(
            name=self.name,
            image=np.full((height, width, 3), _GRAY, np.uint8),
            parsing=np.full((height, width), MISSING_LABEL, np.uint8),
            mask=np.zeros((height, width), np.bool_),
            keypoints=pose,
            original_size=source.original_size,
            sha256=self.sha256,
        )


def read_targets(text: str, people: PackedPeople | None = None) -> list[PoseTarget]:
    """What ``--target`` names.

    Args:
        text: "canonical:front,left", "canonical:all", a JSON file (``data.keypoint_imports.read_pose_json``;
            without a size it is in pixels of the source image), the name of an image in ``people``, or an
            image file that keypoints.csv beside it has a row for.
        people: prepared people.

    Raises:
        UserError: none of these, an unknown name, or a pose without a single keypoint.
    """
    if text.startswith(CANONICAL):
        names = canonical_names(text.removeprefix(CANONICAL))
        return [PoseTarget(f"canonical-{name}", canonical_pose(name), "torso") for name in names]
    if people is not None and text in people.name_index():
        target = PoseTarget(text, people.keypoints[people.index(text)], people.size)
    elif text.lower().endswith(".json"):
        pose, own = read_pose_json(text)
        target = PoseTarget(Path(text).name, pose, own or "source")
    elif Path(text).is_file():
        target = _beside_image(Path(text))
    else:
        known = [] if people is None else difflib.get_close_matches(text, people.names, n=1)
        advice = f"did you mean {known[0]}?" if known else "give canonical:front, a .json file or an image"
        raise UserError(f"--target {printable(text)}: neither a file nor an image of the data set", advice)
    if np.isnan(target.keypoints).all():
        raise UserError(f"target {printable(target.name)}: has no keypoint", "choose another pose")
    return [target]


def keypoints_beside(image: Path) -> Pose | None:
    """The image's row of the keypoints.csv beside it, in the image's pixels; None without.

    Raises:
        UserError: its row, or the file, is damaged.
    """
    read: dict[Path, tuple[dict[str, Pose], list[AnnotationProblem]]] = {}
    for folder, name in beside(image):
        if (folder / KEYPOINTS).is_file():
            if folder not in read:
                read[folder] = read_keypoints_csv(folder / KEYPOINTS)
            poses, problems = read[folder]
            if name in poses:
                return poses[name]
            bad = next((problem for problem in problems if problem.name == name), None)
            if bad is not None:
                raise UserError(printable(str(bad)), "correct the row")
    return None


def place(pose: Pose, source: Person) -> Pose:
    """A pose (J, 2) in torso lengths as pixels: as tall as the source, and where it stands.

    The height is that of the first of these that is known: the source's keypoints from neck to the lower
    ankle, the rows of its mask unless that is the whole image, the frame with a margin.
    """
    height, width = source.image.shape[:2]
    ankle = float(np.nanmax(pose[_ANKLES, 1]))
    points = inside(source.keypoints, (height, width))
    neck, feet = float(points[NECK, 1]), lowest(points[_ANKLES, 1])
    rows, columns = np.flatnonzero(source.mask.any(1)), np.flatnonzero(source.mask.any(0))
    if feet - neck > 0:  # False for NaN
        scale = (feet - neck) / (ankle - float(pose[NECK, 1]))
        y = neck - float(pose[NECK, 1]) * scale
    elif len(rows) and not source.mask.all():
        scale = float(rows[-1] - rows[0] + 1) / (SOLE - CROWN)
        y = rows[0] - CROWN * scale
    else:
        scale = height * (1 - 2 * MARGIN) / (SOLE - CROWN)
        y = height * MARGIN - CROWN * scale
    hips = float(middle_hip(points)[0])
    if not np.isnan(hips):
        x = hips
    elif not np.isnan(points[NECK, 0]):
        x = float(points[NECK, 0])
    elif len(columns):
        x = float(columns[0] + columns[-1]) / 2
    else:
        x = (width - 1) / 2
    return np.asarray(pose * np.float32(scale) + np.array([x, y], np.float32), np.float32)


def inside(pose: Pose, size: tuple[int, int]) -> Pose:
    """(J, 2) with joints outside an image of (H, W) missing: pixel centers reach from 0 to W - 1."""
    limit = np.array([size[1] - 0.5, size[0] - 0.5], np.float32)
    known = ((pose >= -0.5) & (pose <= limit)).all(-1, keepdims=True)  # False for NaN
    return np.where(known, pose, np.float32(np.nan)).astype(np.float32)


def lowest(values: NDArray[np.float32]) -> float:
    """The largest y of (N,); NaN where none is known."""
    return float(np.nanmax(values)) if not np.isnan(values).all() else float("nan")


def _beside_image(image: Path) -> PoseTarget:
    pose = keypoints_beside(image)
    if pose is None:
        raise UserError(
            f"{printable(image)}: has no keypoints", f"put a row for it into {KEYPOINTS} beside it"
        )
    height, width = read_picture(image).pixels.shape[:2]
    return PoseTarget(image.name, pose, (height, width))
