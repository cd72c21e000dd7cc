"""DeepFashion's published key-points: which file, which frame, and where the joints lie in the image at hand.

The published CSVs count pixels of one of two frames, not of the image: fasion-annotation-*.csv of 256x256
(height x width), fasion-resize-annotation-*.csv of its middle columns 40 to 215, 256x176. The download's img/
is square with white borders; img_highres/ is narrow like the second frame. ("fasion": the official spelling.)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from reposer.data.keypoints import JOINTS, Pose, read_keypoints_csv, scale_keypoints
from reposer.data.layouts.inshop_names import parse_inshop_name
from reposer.data.problems import AnnotationProblem
from reposer.errors import UserError
from reposer.paths import RefusedFileError, printable
from reposer.structures import PersonRecord

SQUARE, NARROW, BORDER = (
    (256, 256),
    (256, 176),
    40,
)  # (H, W) of the frames; columns that NARROW lacks each side
_ALMOST_SQUARE = 0.84  # width / height above which an image has borders: halfway between the frames
_SIZE = re.compile("([1-9][0-9]{1,4})x([1-9][0-9]{1,4})", re.ASCII)
FILES = tuple(
    f"{fashion}{resized}-annotation-{{}}.csv"
    for resized in ("-resize", "")
    for fashion in ("fasion", "fashion")
)

Frame = tuple[int, int] | None  # (H, W) that the joints are counted in; None: the image's own pixels


def frame_of(path: Path, frame: str) -> Frame:
    """The frame of a key-point file: "image", "HEIGHTxWIDTH", or "auto": by the published file names.

    Raises:
        UserError: another text.
    """
    if frame == "auto" and "annotation" not in path.name:
        return None
    if frame == "auto":
        return NARROW if "resize" in path.name else SQUARE
    match = _SIZE.fullmatch(frame)
    if frame != "image" and match is None:
        raise UserError(f"frame {frame!r}: unknown", "use auto, image, 256x176 or another HEIGHTxWIDTH")
    return None if match is None else (int(match[1]), int(match[2]))


def to_image(pose: Pose, frame: tuple[int, int], size: tuple[int, int]) -> Pose:
    """(J, 2) of a frame (H, W) in pixels of an image (H, W); joints may come to lie outside it.

    A narrow frame is the middle of a square image and a narrow image the middle of a square frame; any other
    frame is the whole image.
    """
    bordered = size[1] / size[0] > _ALMOST_SQUARE
    shift = {(NARROW, True): BORDER, (SQUARE, False): -BORDER}.get((frame, bordered), 0)
    frame = (frame[0], frame[1] + 2 * shift)
    return scale_keypoints(pose + np.array([shift, 0], np.float32), frame, size)


def add_keypoints(
    records: Sequence[PersonRecord], files: Iterable[tuple[Path, Frame]], problems: list[AnnotationProblem]
) -> tuple[list[PersonRecord], list[str]]:
    """The records with their key-points, and the names of all rows in file order.

    Rows may name an image in either spelling. A joint outside the picture is missing then, and listed; of
    records without a size (a dry run) joints stay as they are.

    Raises:
        UserError: a file as a whole cannot be used.
    """
    by_name = {record.name: record for record in records}
    poses: dict[str, Pose] = {}
    order: dict[str, None] = {}
    for path, frame in files:
        rows, bad = read_keypoints_csv(path, _limits(by_name, frame))
        problems += [replace(problem, rule="bad-keypoints") for problem in bad]
        for row, pose in rows.items():
            name = _flat(row)
            order.setdefault(name)
            wrong = ("unknown-image", "is no usable image of the data set") if name not in by_name else None
            wrong = ("bad-keypoints", f"is {name}, which has a row already") if name in poses else wrong
            if wrong:
                message = f"{printable(row)} {wrong[1]}; the row is left out"
                problems.append(AnnotationProblem(printable(path), 0, "name", message, wrong[0]))
            else:
                poses[name] = _placed(by_name[name], pose, path, frame, problems)
    if order:
        problems += [
            AnnotationProblem(name, 0, "keypoints", "no usable row", "missing-keypoints")
            for name in sorted(by_name.keys() - poses.keys())
        ]
    return [replace(record, keypoints=poses.get(record.name)) for record in records], list(order)


def _placed(
    record: PersonRecord, pose: Pose, path: Path, frame: Frame, problems: list[AnnotationProblem]
) -> Pose:
    if frame is None or not record.width:
        return pose
    moved = to_image(pose, frame, (record.height, record.width))
    limit = np.array([record.width, record.height], np.float32) - 0.5
    outside = ((moved < -0.5) | (moved >= limit)).any(axis=1)  # NaN is never outside
    if outside.any():
        names = ", ".join(JOINTS[joint] for joint in np.flatnonzero(outside))
        message = f"{record.name}: outside the picture, taken as missing: {names}"
        problems.append(AnnotationProblem(printable(path), 0, "joints", message, "joint-outside"))
        moved[outside] = np.nan
    return moved


def _limits(records: Mapping[str, PersonRecord], frame: Frame) -> dict[str, tuple[int, int]]:
    """(width, height) that the joints of an image must lie in, by both spellings."""
    limits = {}
    for record in records.values():
        if frame is None and not record.width:
            continue
        size = (record.width, record.height) if frame is None else (frame[1], frame[0])
        limits[record.name] = limits[parse_inshop_name(record.name).original] = limits[record.path] = size
    return limits


def _flat(name: str) -> str:
    try:
        return parse_inshop_name(name).flat
    except RefusedFileError:
        return name
