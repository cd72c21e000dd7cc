"""Body key-points: the 18 OpenPose joints, the field's colon CSV, left/right under a flip, and pose geometry.

A pose is (J, 2) float32: x to the right and y down, in pixels, 0 at the center of the first pixel; NaN, NaN
for a missing joint. The CSV of PATN, GFLA, DPTN and others stores the **y list first**, then x, and -1 for a
missing joint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from reposer.data.problems import AnnotationError, AnnotationProblem, text_lines
from reposer.errors import UserError
from reposer.files import write_atomic
from reposer.paths import check_relative
from reposer.structures import NUM_JOINTS

# OpenPose-COCO-18; left and right are the person's. PATN's own list of names calls the last four Leye, Reye,
# Lear, Rear, but its data are in this order (on Market-1501 joint 14 lies on the right-shoulder side in 4,646
# of 4,677 rows).
JOINTS = (
    "nose",
    "neck",
    "right-shoulder",
    "right-elbow",
    "right-wrist",
    "left-shoulder",
    "left-elbow",
    "left-wrist",
    "right-hip",
    "right-knee",
    "right-ankle",
    "left-hip",
    "left-knee",
    "left-ankle",
    "right-eye",
    "left-eye",
    "right-ear",
    "left-ear",
)
NOSE, NECK, RIGHT_SHOULDER, LEFT_SHOULDER, RIGHT_HIP, LEFT_HIP = 0, 1, 2, 5, 8, 11

# Joint j of a mirrored person is joint FLIP_JOINTS[j] of the person.
FLIP_JOINTS: NDArray[np.int64] = np.array([0, 1, 5, 6, 7, 2, 3, 4, 11, 12, 13, 8, 9, 10, 15, 14, 17, 16])

HEADER = "name:keypoints_y:keypoints_x"
MIN_COMMON_JOINTS = 6  # fewer joints in common say nothing about a pose
_LONGEST_ROW = 10_000  # bytes; 36 coordinates need a few hundred

Pose: TypeAlias = NDArray[np.float32]  # (..., J, 2)


def read_keypoints_csv(
    path: str | Path, sizes: Mapping[str, tuple[int, int]] | None = None
) -> tuple[dict[str, Pose], list[AnnotationProblem]]:
    """Read ``name:keypoints_y:keypoints_x`` rows; bad rows are listed, good ones kept, in file order.

    Args:
        sizes: (width, height) of images by name; a row whose joints lie outside its image is a problem. Rows
            of names that are not in ``sizes`` are not checked against a size.

    Returns:
        poses (J, 2) by image name, and the problems. Of several rows with one name the first is kept and the
        others are problems.

    Raises:
        RefusedFileError: the file cannot be read.
        AnnotationError: its header is not the one above.
    """
    lines = text_lines(Path(path))
    header = lines[0].decode("utf-8", "replace").strip()
    if header != HEADER:
        shown = header[:60] or "nothing"
        raise AnnotationError(path, "header", f"is {shown!r}", f"the first line must be {HEADER}", row=1)
    poses: dict[str, Pose] = {}
    rows: dict[str, int] = {}
    problems: list[AnnotationProblem] = []
    for row, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        try:
            name, pose = _parse_row(line)
            if name in rows:
                _bad("name", f"{name} is in row {rows[name]} already; that row is kept")
            if sizes is not None and name in sizes:
                _check_inside(pose, *sizes[name])
        except _BadFieldError as error:
            problems.append(AnnotationProblem(str(path), row, error.field, error.message))
        else:
            poses[name], rows[name] = pose, row
    return poses, problems


def write_keypoints_csv(path: str | Path, poses: Mapping[str, Pose]) -> None:
    """Write poses (J, 2) in the field's format; whole pixels are written as integers.

    Raises:
        UserError: a name with a colon or a line end, a negative or infinite coordinate, a half-missing joint.
    """
    lines = [HEADER]
    for name, pose in poses.items():
        if not name or name != name.strip() or any(c in name for c in ':"\r\n'):
            raise UserError(f"{path}, name {name!r}: does not fit the colon CSV", "rename the image")
        values = np.asarray(pose, np.float32)
        missing = np.isnan(values)
        bad = (missing[:, 0] != missing[:, 1]) | np.isinf(values).any(1) | (values < 0).any(1)
        if values.shape != (NUM_JOINTS, 2) or bad.any():
            raise UserError(
                f"{path}, {name}: key-points must be {NUM_JOINTS} points, in the image or NaN, NaN"
            )
        numbers = [[_number(value) for value in column] for column in np.where(missing, -1, values).T]
        lines.append(f"{name}: {numbers[1]}: {numbers[0]}")
    write_atomic(path, ("\n".join(lines) + "\n").encode())


def flip_keypoints(pose: Pose, width: int) -> Pose:
    """Mirror (..., J, 2) in an image of ``width`` pixels: x -> width - 1 - x; left and right joints swap."""
    flipped = np.asarray(pose, np.float32)[..., FLIP_JOINTS, :].copy()
    flipped[..., 0] = width - 1 - flipped[..., 0]
    return flipped


def scale_keypoints(pose: Pose, source_size: tuple[int, int], target_size: tuple[int, int]) -> Pose:
    """Carry (..., J, 2) over from sizes (H, W) to (H, W), pixel centers as image resizing maps them."""
    ratio = np.array([target_size[1] / source_size[1], target_size[0] / source_size[0]], np.float32)
    return ((np.asarray(pose, np.float32) + 0.5) * ratio - 0.5).astype(np.float32)


def has_torso(pose: Pose) -> NDArray[np.bool_]:
    """(...,) whether both shoulders and both hips of (..., J, 2) are present, as official pair lists ask."""
    torso = pose[..., [RIGHT_SHOULDER, LEFT_SHOULDER, RIGHT_HIP, LEFT_HIP], :]
    return np.asarray(~np.isnan(torso).any(axis=(-1, -2)))


def middle_hip(pose: Pose) -> Pose:
    """(..., 2) the middle of the hips; NaN when a hip is missing."""
    return np.asarray((pose[..., RIGHT_HIP, :] + pose[..., LEFT_HIP, :]) / 2, np.float32)


def torso_length(pose: Pose) -> NDArray[np.float32]:
    """(...,) pixels from the neck to the middle of the hips; NaN when unknown."""
    return np.asarray(np.linalg.norm(pose[..., NECK, :] - middle_hip(pose), axis=-1), np.float32)


def normalize_pose(pose: Pose) -> Pose:
    """(..., J, 2) centered at the middle of the hips, in torso lengths; NaN when that is unknown or 0."""
    length = torso_length(pose)[..., None, None]
    length = np.where(length > 0, length, np.nan)
    return np.asarray((pose - middle_hip(pose)[..., None, :]) / length, np.float32)


def pose_distance(a: Pose, b: Pose) -> NDArray[np.float32]:
    """(...,) mean Euclidean distance of the joints that both have, in torso lengths; a and b broadcast.

    NaN when fewer than 6 joints are common or a torso is unknown. For many against many, ``a[:, None]`` and
    ``b[None]`` give (A, B); joints are taken one by one, so memory stays at a few arrays of the result's
    size.
    """
    a, b = normalize_pose(a), normalize_pose(b)
    shape = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    total = np.zeros(shape, np.float32)
    common = np.zeros(shape, np.int32)
    for joint in range(a.shape[-2]):
        distance = np.hypot(a[..., joint, 0] - b[..., joint, 0], a[..., joint, 1] - b[..., joint, 1])
        present = ~np.isnan(distance)
        total += np.where(present, distance, 0)
        common += present
    return np.where(common >= MIN_COMMON_JOINTS, total / np.maximum(common, 1), np.nan).astype(np.float32)


class _BadFieldError(Exception):
    """Ends the reading of one row."""

    def __init__(self, field: str, message: str) -> None:
        self.field = field
        self.message = message


def _bad(field: str, message: str) -> NoReturn:
    raise _BadFieldError(field, message)


def _parse_row(line: bytes) -> tuple[str, Pose]:
    if len(line) > _LONGEST_ROW:
        _bad("row", f"has {len(line)} bytes; expected a name and two lists of {NUM_JOINTS} numbers")
    try:
        parts = line.decode("utf-8").split(":")
    except UnicodeDecodeError:
        _bad("row", "is not UTF-8 text")
    if len(parts) != 3:
        _bad("row", f"has {len(parts)} fields separated by ':'; expected 3 ({HEADER})")
    name = parts[0].strip()
    try:
        check_relative(name)
    except ValueError as error:
        _bad("name", f"{name[:60]!r} is not a file name: {error}")
    if not name.isprintable():
        _bad("name", f"{name[:60]!r} is not a file name")
    y = _parse_numbers(parts[1], "keypoints_y")
    x = _parse_numbers(parts[2], "keypoints_x")
    pose = np.array([x, y], np.float32).T
    missing = pose == -1
    for joint in np.flatnonzero(missing[:, 0] != missing[:, 1]):
        field = "keypoints_x" if missing[joint, 0] else "keypoints_y"
        _bad(field, f"{JOINTS[joint]} is missing (-1) here but not in the other list")
    pose[missing] = np.nan
    return name, np.ascontiguousarray(pose)


def _parse_numbers(text: str, field: str) -> list[float]:
    try:
        values = json.loads(text, parse_constant=lambda word: _bad(field, f"{word} is not a coordinate"))
    except (ValueError, RecursionError):
        _bad(field, f"{text.strip()[:40]!r} is not a list of numbers")
    if not isinstance(values, list):
        _bad(field, f"{text.strip()[:40]!r} is not a list of numbers")
    if len(values) != NUM_JOINTS:
        _bad(field, f"has {len(values)} values; expected {NUM_JOINTS}")
    for joint, value in zip(JOINTS, values, strict=True):
        _check_number(value, joint, field)
    return values


def _check_number(value: Any, joint: str, field: str) -> None:
    if type(value) is not int and type(value) is not float:  # bool is an int to isinstance
        _bad(field, f"{joint} is a {type(value).__name__}, not a number")
    if not (value == -1 or 0 <= value < 1e6):  # also refuses 1e999, which JSON reads as infinity
        shown = str(value) if isinstance(value, float) or abs(value) < 10**20 else "a huge number"
        _bad(field, f"{joint} is {shown}; a coordinate is -1 (missing) or at least 0")


def _check_inside(pose: Pose, width: int, height: int) -> None:
    for field, column, limit in (("keypoints_x", 0, width), ("keypoints_y", 1, height)):
        outside = np.flatnonzero(pose[:, column] >= limit)  # NaN is never outside
        if len(outside):
            value = pose[outside[0], column]
            hint = "; is the y list the first?" if pose[:, 1 - column][outside[0]] < limit else ""
            side = "width" if column == 0 else "height"
            _bad(field, f"{JOINTS[outside[0]]} at {value:g} lies outside the image ({side} {limit}){hint}")


def _number(value: np.float32) -> int | float:
    """Shortest text that reads back as the same float32."""
    return int(value) if float(value).is_integer() else float(np.format_float_positional(value, unique=True))
