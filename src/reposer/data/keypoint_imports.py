"""Keypoints from other programs' files: JSON of OpenPose, VITON and AlphaPose, comma CSV, PIDM's texts.

Every reader gives OpenPose-18 poses by image name, and the problems of bad rows or files; good ones are kept.
A set whose poses as a whole mean something else (``keypoints.wrong_meaning``) is refused.
The colon CSV is this project's own format (keypoints.py). Coordinates below 0 count as missing.

* openpose, viton: one JSON for each image, ``<stem>_keypoints.json`` or ``<stem>.json``, with
  ``people[].pose_keypoints_2d`` (or ``pose_keypoints``): x, y, confidence of 18 (COCO) or 25 (BODY_25)
  joints. Confidence 0 is a missing joint. Of several people the one with the largest sum is taken.
* comma: one CSV, header ``file_id,img_h,img_w,p0_x,p0_y,...`` with 18 joints, x first, -1 missing.
* alphapose: one JSON for all images, a list of ``{"image_id": NAME, "keypoints": [x, y, score, ...],
  "score"}`` as AlphaPose writes it: COCO's 17 joints, or Halpe's 26 or 136, which begin with them. A joint
  with a score below 0.3 is missing, the neck is the middle of the shoulders; the best person is taken.
* pidm: one text file for each image, ``<stem>.txt``, 18 rows "x y"; PIDM's own files are shifted by -40 in x
  (a 176-wide crop of a 256-wide image): give ``shift_x=40`` to undo it.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from reposer.data.keypoints import (
    BODY25_JOINTS,
    COCO_JOINTS,
    Pose,
    body25_to_openpose,
    coco_to_openpose,
    read_keypoints_csv,
    whose_count,
    wrong_meaning,
)
from reposer.data.records import AnnotationError, AnnotationProblem, text_lines
from reposer.errors import UserError, known
from reposer.storage.bounded import parse_json
from reposer.storage.paths import RefusedFileError, is_packed, printable, read_regular
from reposer.structures import NUM_JOINTS

Poses = dict[str, Pose]
Problems = list[AnnotationProblem]
FORMATS = ("colon", "comma", "alphapose", "openpose", "viton", "pidm")
TABLES = ("colon", "comma", "alphapose")  # one file for all images; the others are a file for each
ALPHAPOSE_THRESHOLD = 0.3  # of the scores of joints, which are at most about 1
_MAX_JSON, _MAX_TEXT = 5_000_000, 100_000  # bytes of one image's file
_MAX_ALL = 1_000_000_000  # of one file for all images
_ALPHAPOSE_COUNTS = (17, 26, 136)  # each begins with COCO's 17
_MAX_COORDINATE = 1e6
_COMMA_HEADER = ["file_id", "img_h", "img_w"] + [f"p{j}_{axis}" for j in range(NUM_JOINTS) for axis in "xy"]


class _BadError(ValueError):
    """Ends the reading of one image's keypoints."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def import_keypoints(
    path: str | Path, kind: str, names: Iterable[str], *, shift_x: float = 0.0
) -> tuple[Poses, Problems]:
    """Poses (18, 2) by image name, and what was wrong.

    Args:
        path: the CSV, or the folder of JSON or text files.
        kind: one of FORMATS.
        names: file names of the images; files are looked for by their stems. Every row of a CSV is kept.
        shift_x: added to every x.

    Raises:
        UserError: unknown kind, a path of the wrong kind, or a CSV with another header.
    """
    known("keypoints of kind", kind, FORMATS)
    path = Path(path)
    refuse_other_kind(path, kind)
    if kind in TABLES:
        table = read_table(path, kind, shift_x)
        return table.poses, table.problems
    poses, problems = _from_folder(path, kind, names, _read_pidm if kind == "pidm" else _read_openpose)
    return _settled(path, poses, shift_x), problems


class KeypointTable(NamedTuple):
    """One file for all images."""

    poses: Poses
    problems: Problems
    sizes: dict[str, tuple[int, int]]  # (H, W) of the images that the poses are for, where the file says it


def read_table(path: Path, kind: str, shift_x: float = 0.0) -> KeypointTable:
    """A file of one of TABLES, ``shift_x`` added to every x.

    Raises:
        AnnotationError: another header, or poses that as a whole mean something else.
    """
    sizes: dict[str, tuple[int, int]] = {}
    if kind == "comma":
        poses, problems, sizes = _read_comma(path)
    else:
        poses, problems = (read_keypoints_csv if kind == "colon" else _read_alphapose)(path)
    return KeypointTable(_settled(path, poses, shift_x), problems, sizes)


def _settled(path: Path, poses: Poses, shift_x: float) -> Poses:
    """The poses, moved, without joints that lie nowhere; refused where all mean something else."""
    moved = {name: pose + np.array([shift_x, 0], np.float32) for name, pose in poses.items()}
    poses = {name: _without_negative(pose) for name, pose in moved.items()}
    if wrong := wrong_meaning(poses.values()):
        raise AnnotationError(path, "keypoints", *wrong)
    return poses


def refuse_other_kind(path: Path, kind: str) -> None:
    """Refuse a file where a folder is wanted and the other way round, and say what lies there.

    Raises:
        UserError: with the option that would read it, where there is one.
    """
    if not path.exists():
        raise UserError(
            f"{printable(path)}: no such {'file' if kind in TABLES else 'folder'}", "check the path"
        )
    if kind in TABLES:
        if path.is_dir():
            raise UserError(f"{printable(path)}: is a folder", f"{kind} is one file for all images: give it")
        return
    if path.is_dir():
        return
    problem, advice = "is a file", f"give the folder that holds a file of {kind} for each image"
    if path.suffix.lower() == ".json":
        content = _json_kind(path)
        if content == "alphapose":
            problem, advice = "is AlphaPose's file for all images", f"say alphapose:{printable(path)}"
        elif content == "coco":
            problem, advice = (
                "is a file of COCO's annotations",
                "write a file for each image, or AlphaPose's list",
            )
        elif content == "openpose":
            problem, advice = "is the file of one image", f"give its folder: {kind}:{printable(path.parent)}"
    elif path.suffix.lower() in (".csv", ".txt"):
        advice += f"; a table is read by colon:{printable(path)} or comma:{printable(path)}"
    raise UserError(f"{printable(path)}: {problem}; {kind} is a folder", advice)


def _json_kind(path: Path) -> str:
    """Whose JSON a file is: "alphapose", "coco", "openpose", or "" for another."""
    try:
        data = parse_json(read_regular(path, max_bytes=_MAX_ALL))
    except (ValueError, RecursionError, RefusedFileError):
        return ""
    if isinstance(data, list) and data and isinstance(data[0], dict):
        return "alphapose" if {"image_id", "keypoints"} <= data[0].keys() else ""
    if isinstance(data, dict):
        return "coco" if "annotations" in data else "openpose" if "people" in data else ""
    return ""


def keypoint_places(folder: Path, kind: str, name: str) -> list[Path]:
    """Where an image's keypoints are looked for, in a kind with a file for each; the first one counts."""
    stem = name.rpartition(".")[0] or name
    suffixes = (".txt",) if kind == "pidm" else ("_keypoints.json", ".json")
    return [folder / f"{stem}{suffix}" for suffix in suffixes]


def _from_folder(
    folder: Path, kind: str, names: Iterable[str], read: Callable[[Path, Path], Pose]
) -> tuple[Poses, Problems]:
    poses: Poses = {}
    problems: Problems = []
    for name in names:
        places = keypoint_places(folder, kind, name)
        place = next((p for p in places if _plain(p, folder) and os.path.exists(p)), None)
        if place is None:
            message = f"no {places[0].name} for {printable(name)}"
            problems.append(AnnotationProblem(printable(folder), 0, "name", message, "missing-keypoints"))
            continue
        try:
            poses[name] = read(place, folder)
        except _BadError as error:
            problems.append(AnnotationProblem(printable(place), 0, error.field, str(error), "bad-keypoints"))
        except RefusedFileError as error:
            problems.append(AnnotationProblem(printable(place), 0, "file", error.reason, "bad-keypoints"))
    return poses, problems


def _plain(path: Path, folder: Path) -> bool:
    """Whether it lies below ``folder`` by its text: of what does not, nobody asks whether it is there."""
    return path.is_relative_to(folder) and ".." not in path.parts[len(folder.parts) :]


def _read_openpose(path: Path, root: Path) -> Pose:
    try:
        data = parse_json(read_regular(path, max_bytes=_MAX_JSON, root=root))
    except (ValueError, RecursionError) as error:
        raise _BadError("file", f"is no JSON ({str(error)[:80]})") from error
    people = data.get("people") if isinstance(data, dict) else None
    if not isinstance(people, list) or not all(isinstance(one, dict) for one in people):
        raise _BadError("people", "is no list of people")
    if not people:
        return np.full((NUM_JOINTS, 2), np.nan, np.float32)
    joints = [_person(one) for one in people[:1000]]
    return _pose(max(joints, key=lambda one: float(one[:, 2].sum())))


def _person(person: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(18, 3) x, y, confidence."""
    field = "pose_keypoints_2d" if "pose_keypoints_2d" in person else "pose_keypoints"
    values = person.get(field)
    if not isinstance(values, list) or len(values) not in (3 * NUM_JOINTS, 3 * BODY25_JOINTS):
        found = f"{len(values)} values" if isinstance(values, list) else "no list"
        whose = whose_count(len(values) // 3) if isinstance(values, list) and len(values) % 3 == 0 else ""
        raise _BadError(field, f"{found}{whose}; expected x, y, confidence of 18 or 25 joints")
    joints = np.array([_number(value, field) for value in values]).reshape(-1, 3)
    joints = joints if len(joints) == NUM_JOINTS else body25_to_openpose(joints)
    joints[joints[:, 2] <= 0, :2] = -1
    return np.asarray(joints, np.float64)


def _read_pidm(path: Path, root: Path) -> Pose:
    text = read_regular(path, max_bytes=_MAX_TEXT, root=root).decode("utf-8", "replace")
    rows = [line.replace(",", " ").split() for line in text.splitlines() if line.strip()]
    if len(rows) != NUM_JOINTS or any(len(row) != 2 for row in rows):
        raise _BadError("rows", f"{len(rows)} rows; expected {NUM_JOINTS} of x and y")
    return _pose(np.array([[_parsed(value, f"row {i + 1}") for value in row] for i, row in enumerate(rows)]))


def _read_comma(path: Path) -> KeypointTable:
    lines = text_lines(path)
    header = lines[0].decode("utf-8", "replace").strip()
    if [name.strip() for name in header.split(",")] != _COMMA_HEADER:
        advice = f"the first line must be {','.join(_COMMA_HEADER[:5])},... with {NUM_JOINTS} joints"
        problem = "is that of another file" if path.is_symlink() else f"is {header[:60]!r}"
        raise AnnotationError(path, "header", problem, advice, row=1)
    poses: Poses = {}
    sizes: dict[str, tuple[int, int]] = {}
    problems: Problems = []
    for row, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        try:
            name, size, pose = _comma_row(line)
            if name in poses:
                raise _BadError("file_id", f"{name[:60]} occurs twice; the first row is kept")
            poses[name], sizes[name] = pose, size
        except _BadError as error:
            problems.append(AnnotationProblem(printable(path), row, error.field, str(error), "bad-keypoints"))
    return KeypointTable(poses, problems, sizes)


def _read_alphapose(path: Path) -> tuple[Poses, Problems]:
    try:
        data = parse_json(read_regular(path, max_bytes=_MAX_ALL))
    except (ValueError, RecursionError) as error:
        if is_packed(path):
            raise AnnotationError(path, "file", "is packed, no JSON", "unpack it") from error
        raise AnnotationError(path, "file", f"is no JSON ({str(error)[:80]})", "get it again") from error
    if not isinstance(data, list):
        advice = "give alphapose-results.json; a folder of OpenPose's files is openpose:FOLDER"
        raise AnnotationError(path, "file", "is no list of people, as AlphaPose writes it", advice)
    best: dict[str, tuple[float, Pose]] = {}
    problems: Problems = []
    for number, entry in enumerate(data, start=1):
        try:
            name, score, pose = _alphapose_person(entry)
        except _BadError as error:
            problem = f"person {number}: {error}"
            problems.append(AnnotationProblem(printable(path), 0, error.field, problem, "bad-keypoints"))
            continue
        if name not in best or score > best[name][0]:
            best[name] = (score, pose)
    return {name: pose for name, (_, pose) in best.items()}, problems


def _alphapose_person(entry: Any) -> tuple[str, float, Pose]:
    """Image, score and (18, 2) of one person."""
    if not isinstance(entry, dict):
        raise _BadError("person", "is no record")
    name, values = entry.get("image_id"), entry.get("keypoints")
    if not isinstance(name, str) or not name or not name.isprintable():
        raise _BadError("image_id", f"{str(name)[:40]!r} is not the name of an image file")
    if not isinstance(values, list) or len(values) not in [3 * count for count in _ALPHAPOSE_COUNTS]:
        found = f"{len(values)} values" if isinstance(values, list) else "no list"
        raise _BadError("keypoints", f"{found}; expected x, y, score of 17, 26 or 136 joints")
    joints = np.array([_number(value, "keypoints") for value in values[: 3 * COCO_JOINTS]]).reshape(-1, 3)
    pose, _ = coco_to_openpose(joints[:, :2], joints[:, 2], ALPHAPOSE_THRESHOLD)
    return name.replace("\\", "/"), _number(entry.get("score", 0), "score"), pose


def _comma_row(line: bytes) -> tuple[str, tuple[int, int], Pose]:
    """Image, its (H, W) and (18, 2) of one row."""
    try:
        (fields,) = csv.reader([line[:10_000].decode("utf-8")], strict=True)
    except (UnicodeDecodeError, ValueError, csv.Error) as error:
        raise _BadError("row", f"is no CSV row ({str(error)[:60]})") from error
    if len(fields) != len(_COMMA_HEADER):
        raise _BadError("row", f"has {len(fields)} fields; expected {len(_COMMA_HEADER)}")
    name = fields[0].strip()
    if not name or "/" in name or "\\" in name or not name.isprintable():
        raise _BadError("file_id", f"{name[:60]!r} is not a file name")
    values = [_parsed(text, column) for text, column in zip(fields[1:], _COMMA_HEADER[1:], strict=True)]
    height, width = values[:2]
    if not (height > 0 and width > 0 and height.is_integer() and width.is_integer()):
        raise _BadError("img_h", f"{height:g} x {width:g} is no size of an image in pixels")
    points = np.array(values[2:]).reshape(NUM_JOINTS, 2)
    outside = (points[:, 0] >= width) | (points[:, 1] >= height)
    if outside.any():
        joint = int(np.flatnonzero(outside)[0])
        raise _BadError(f"p{joint}_x", f"joint {joint} lies outside the image ({width:g} x {height:g})")
    return name, (int(height), int(width)), _pose(points)


def _pose(points: np.ndarray[Any, np.dtype[np.float64]]) -> Pose:
    """(18, 2 or more) -> (18, 2); -1, -1 is a missing joint."""
    pose = np.asarray(points[:, :2], np.float32).copy()
    pose[(pose == -1).all(axis=1)] = np.nan
    return pose


def _without_negative(pose: Pose) -> Pose:
    """A joint with a coordinate below 0 lies outside every image: missing."""
    return np.where((pose < 0).any(axis=1, keepdims=True), np.float32(np.nan), pose)


def _parsed(text: str, field: str) -> float:
    try:
        return _number(float(text), field)
    except ValueError as error:
        if isinstance(error, _BadError):
            raise
        raise _BadError(field, f"{text.strip()[:40]!r} is not a number") from error


def _number(value: Any, field: str) -> float:
    if type(value) not in (int, float):  # bool is an int to isinstance
        raise _BadError(field, f"{str(value)[:40]!r} is not a number")
    if not (abs(value) < _MAX_COORDINATE and math.isfinite(value)):
        raise _BadError(field, f"{str(value)[:40]} is no coordinate")
    return float(value)


def read_pose_json(path: str | Path) -> tuple[Pose, tuple[int, int] | None]:
    """One pose (J, 2) from a JSON file, and the (H, W) of the image that it is for, where the file says so.

    Either OpenPose's or VITON's layout, as in :func:`import_keypoints`, or ``{"keypoints": [[x, y] or null,
    ... 18 of them], "width": W, "height": H}`` in the order of ``JOINTS``; the size may be left out.

    Raises:
        AnnotationError: the file cannot be read or is of another layout; names the field.
    """
    path = Path(path)
    advice = "give OpenPose's JSON, or keypoints: 18 of [x, y] or null"
    try:
        data = parse_json(read_regular(path, max_bytes=_MAX_JSON))
        if isinstance(data, dict) and "keypoints" in data:
            return _own_layout(data)
        return _without_negative(_read_openpose(path, path.parent)), None
    except RefusedFileError as error:
        raise AnnotationError(printable(path), "file", error.reason, advice) from error
    except _BadError as error:
        raise AnnotationError(printable(path), error.field, str(error), advice) from error
    except (ValueError, RecursionError) as error:
        raise AnnotationError(printable(path), "file", f"is no JSON ({str(error)[:80]})", advice) from error


def _own_layout(data: dict[str, Any]) -> tuple[Pose, tuple[int, int] | None]:
    points = data["keypoints"]
    if not isinstance(points, list) or len(points) != NUM_JOINTS:
        found = f"{len(points)} points" if isinstance(points, list) else "no list"
        raise _BadError("keypoints", f"{found}; expected {NUM_JOINTS}")
    pose = np.full((NUM_JOINTS, 2), np.nan, np.float32)
    for joint, point in enumerate(points):
        field = f"keypoints[{joint}]"
        if point is None:
            continue
        if not isinstance(point, list) or len(point) != 2:
            raise _BadError(field, "is neither [x, y] nor null")
        pose[joint] = [_number(value, field) for value in point]
    sides = [data.get("height"), data.get("width")]
    if sides == [None, None]:
        return _without_negative(pose), None
    if not all(type(side) is int and 0 < side < _MAX_COORDINATE for side in sides):
        raise _BadError("width", "width and height: two whole numbers of pixels, or neither")
    height, width = data["height"], data["width"]
    return _without_negative(pose), (height, width)
