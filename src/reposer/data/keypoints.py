"""Body keypoints: the 18 OpenPose joints, the field's colon CSV, left/right under a flip, and pose geometry.

A pose is (J, 2) float32: x to the right and y down, in pixels, 0 at the center of the first pixel; NaN, NaN
for a missing joint. The CSV of PATN, GFLA, DPTN and others stores the **y list first**, then x, and -1 for a
missing joint.

A file does not say which joint is which, what is x, or in what unit. One pose proves little; a set does:
bones are short, people stand upright, and pixels are larger than 1. ``wrong_meaning`` looks at that.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from reposer.data.records import AnnotationError, AnnotationProblem, text_lines
from reposer.errors import UserError
from reposer.storage.files import write_atomic
from reposer.storage.paths import check_relative
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
_OTHER_STARTS = {"[": "alphapose:FILE", "{": "openpose:FOLDER", "file_id,": "comma:FILE"}  # of a first line
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
        poses (J, 2) by image name, and the problems, which name the image of their row. Of several rows with
        one name the first is kept and the others are problems.

    Raises:
        RefusedFileError: the file cannot be read.
        AnnotationError: its header is not the one above, or its poses as a whole mean something else (see
            ``wrong_meaning``).
    """
    lines = text_lines(Path(path))
    header = lines[0].decode("utf-8", "replace").strip()
    if header != HEADER:
        # what a link in somebody else's folder leads to is shown to nobody
        linked = Path(path).is_symlink()
        problem = "is that of another file" if linked else f"is {header[:60] or 'nothing'!r}"
        known = next((kind for start, kind in _OTHER_STARTS.items() if header.startswith(start)), "")
        advice = f"the first line must be {HEADER}"
        advice += f"; `reposer annotate --keypoints {known}` reads this one" if known and not linked else ""
        raise AnnotationError(path, "header", problem, advice, row=1)
    poses: dict[str, Pose] = {}
    rows: dict[str, int] = {}
    problems: list[AnnotationProblem] = []
    everybody: list[Pose] = []
    for row, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        try:
            name, pose = _parse_row(line)
            everybody.append(pose)
            if name in rows:
                _bad("name", f"{name} is in row {rows[name]} already; that row is kept")
            if sizes is not None and name in sizes:
                _check_inside(pose, *sizes[name])
        except _BadFieldError as error:
            listed = AnnotationProblem(str(path), row, error.field, error.message, name=_row_name(line))
            problems.append(listed)
        else:
            poses[name], rows[name] = pose, row
    if wrong := wrong_meaning(everybody):
        raise AnnotationError(path, "keypoints", *wrong)
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
                f"{path}, {name}: keypoints must be {NUM_JOINTS} points, in the image or NaN, NaN"
            )
        numbers = [[_number(value) for value in column] for column in np.where(missing, -1, values).T]
        lines.append(f"{name}: {numbers[1]}: {numbers[0]}")
    write_atomic(path, ("\n".join(lines) + "\n").encode())


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


# ---- the meaning of a set

MIN_POSES = 5  # fewer say nothing about the set that they are from
_MIN_BONES = 6  # of a pose that is measured
_FRACTION = (
    1.5  # no person is so small in pixels; a little above 1, since joints may be put outside a picture
)
_OFTEN = 0.05  # of the poses with a joint in the corner: more than chance
_MANY_POSES, _UPPER_LEFT = 20, 0.55  # so many people are not all in a quarter of their images
_WORSE = 1.2  # bones of the wrong order are longer by more than this
# number of joints -> whose it is, where it is not one that is read
JOINT_COUNTS = {
    14: "LSP's or CrowdPose's",
    15: "MPI's",
    16: "MPII's",
    17: "COCO's, or Human3.6M's",
    19: "OpenPose's COCO with background",
    26: "Halpe's",
    33: "MediaPipe's",
    133: "COCO-WholeBody's",
    135: "BODY_135's",
    136: "Halpe's full body",
}
_COCO_BONES = (
    *((0, 1), (0, 2), (1, 3), (2, 4), (5, 6), (5, 7), (7, 9), (6, 8), (8, 10), (5, 11), (6, 12), (11, 12)),
    *((11, 13), (13, 15), (12, 14), (14, 16)),
)
# Pairs of joints that a bone joins, in each order that 18 values (or 25, once cut to 18) may be in
_BONES: dict[str, tuple[tuple[int, int], ...]] = {
    "OpenPose's": (
        *((0, 1), (1, 2), (2, 3), (3, 4), (1, 5), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11)),
        *((11, 12), (12, 13), (0, 14), (0, 15), (14, 16), (15, 17)),
    ),
    "COCO-17's with the neck behind it": (*_COCO_BONES, (5, 17), (6, 17), (0, 17)),
    # read as BODY_25's its joint 8 is dropped and the others after it move up
    "BODY_25B's": (
        *(
            (a - (a > 8), b - (b > 8))
            for a, b in (*_COCO_BONES, (5, 17), (6, 17), (17, 18))
            if 8 not in (a, b)
        ),
    ),
}


def wrong_meaning(poses: Iterable[Pose]) -> tuple[str, str] | None:
    """What a set of poses (18, 2) is instead of OpenPose-18 in pixels, and what to do; None: all is well.

    Four things are looked at, each over all poses together: several joints of a pose in the corner, at 0, 0,
    stand for missing ones; coordinates of about 1 at most are fractions of the image; bones that are shorter
    on the whole in another known order of joints tell that order; and a set whose torsos lie (neck to hips
    more across than down, in four of five) has y in the place of x. Of the last three, fewer than MIN_POSES
    poses with joints say nothing; a pose repeated at another place or size counts once.
    """
    everybody = [pose for pose in poses if not np.isnan(pose).all()]
    if wrong := _zeros(everybody) or _fractions(everybody):
        return wrong
    known = [pose for pose in everybody if int((~np.isnan(pose[:, 0])).sum()) >= _MIN_BONES]
    if len(known) < MIN_POSES:
        return None
    joints = np.stack(known).astype(np.float64)
    low, high = np.nanmin(joints, axis=1, keepdims=True), np.nanmax(joints, axis=1, keepdims=True)
    shapes = np.round((joints - low) / np.maximum((high - low).max(-1, keepdims=True), 1e-9), 2)
    if len({shape.tobytes() for shape in shapes}) < MIN_POSES:
        return None
    lengths = {order: _bone_length(joints, bones) for order, bones in _BONES.items()}
    order = min(lengths, key=lengths.__getitem__)
    own = next(iter(_BONES))
    if lengths[own] > _WORSE * lengths[order]:
        return (
            f"the joints of {len(known):,} poses are in {order} order by the lengths of their bones, not in"
            f" {own} (where joint 1, the neck, lies between 2 and 5)",
            f"write them in {own} order: nose, neck, right shoulder, elbow, wrist, left shoulder, ...",
        )
    torsos = joints[:, [8, 11]].mean(1) - joints[:, NECK]
    torsos = torsos[~np.isnan(torsos).any(1)]
    across = np.abs(torsos[:, 0]) > np.abs(torsos[:, 1])
    if len(torsos) >= MIN_POSES and across.mean() >= 0.8:
        return (
            f"{int(across.sum()):,} of {len(torsos):,} people lie on their side: x and y are swapped",
            "exchange the two (this project's CSV has y before x; other files have x before y), or turn"
            " the images upright",
        )
    return None


def smaller_meaning(poses: Sequence[Pose], sizes: Sequence[tuple[int, int]]) -> str:
    """What is odd where all poses (18, 2) keep to the upper left of their images; "" where nothing is.

    Args:
        sizes: (width, height) of the image of each.
    """
    if len(poses) < _MANY_POSES or np.isnan(poses).all():
        return ""
    farthest = np.nanmax(np.stack(poses) / np.array(sizes)[:, None], axis=(0, 1))
    if (farthest > _UPPER_LEFT).any():
        return ""
    return (
        f"no joint of {len(poses):,} poses lies beyond {100 * farthest[0]:.0f} % of the width and"
        f" {100 * farthest[1]:.0f} % of the height: if they were found in smaller pictures, multiply them"
    )


def _zeros(poses: list[Pose]) -> tuple[str, str] | None:
    """Whether joints lie at 0, 0 as no two of a person can, or one of every twentieth person."""
    joints = np.array([int((pose == 0).all(-1).sum()) for pose in poses])
    single = int((joints == 1).sum())
    if not (joints > 1).any() and (single < MIN_POSES or single < _OFTEN * len(joints)):
        return None
    return (
        f"{int(joints.sum()):,} joints of {int((joints > 0).sum()):,} poses lie at 0, 0, the corner: these"
        " are missing ones",
        "write a missing joint as -1, -1 (in JSON with confidence 0)",
    )


def _fractions(poses: list[Pose]) -> tuple[str, str] | None:
    """Whether no joint of a set is farther from the corner than about a pixel; whole numbers are pixels."""
    if len(poses) < MIN_POSES:
        return None
    joints = np.stack(poses)
    highest = float(np.nanmax(joints))
    if highest > _FRACTION or not (np.nan_to_num(joints) % 1).any():
        return None
    return (
        f"all coordinates of {len(poses):,} poses are at most {highest:.3g}: fractions of the image",
        "multiply x by the image's width and y by its height (OpenPose: --keypoint_scale 0)",
    )


def _bone_length(joints: NDArray[np.float64], bones: tuple[tuple[int, int], ...]) -> float:
    """Median over poses (N, 18, 2) of the mean length of bones, in diagonals of the pose; inf: unknown."""
    first, second = (joints[:, [bone[end] for bone in bones]] for end in (0, 1))
    lengths = np.linalg.norm(first - second, axis=-1)
    counts = (~np.isnan(lengths)).sum(1)
    extent = np.nanmax(joints, axis=1) - np.nanmin(joints, axis=1)
    usable = (counts >= _MIN_BONES) & (np.linalg.norm(extent, axis=1) > 0)
    if int(usable.sum()) < MIN_POSES:
        return float("inf")
    means = np.nansum(lengths[usable], axis=1) / counts[usable]
    return float(np.median(means / np.linalg.norm(extent[usable], axis=1)))


def whose_count(joints: int) -> str:
    """In brackets whose number of joints this is, or nothing where it is nobody's."""
    return f" ({joints} joints are {JOINT_COUNTS[joints]})" if joints in JOINT_COUNTS else ""


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


def _row_name(line: bytes) -> str:
    """Whose a bad row is, spelled as the names of files are: what stands before its columns."""
    text = line.decode("utf-8", "surrogateescape")
    return text.split(":" if ":" in text else ", [", maxsplit=1)[0].strip()


def _parse_numbers(text: str, field: str) -> list[float]:
    try:
        values = json.loads(text, parse_constant=lambda word: _bad(field, f"{word} is not a coordinate"))
    except (ValueError, RecursionError):
        _bad(field, f"{text.strip()[:40]!r} is not a list of numbers")
    if not isinstance(values, list):
        _bad(field, f"{text.strip()[:40]!r} is not a list of numbers")
    if len(values) != NUM_JOINTS:
        _bad(field, f"has {len(values)} values; expected {NUM_JOINTS}{whose_count(len(values))}")
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


# ---- Other programs' joint orders as OpenPose-18: COCO-17 and OpenPose's BODY_25.

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
