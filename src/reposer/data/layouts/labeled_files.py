"""From a list of labeled image files to person records: what the readers of several layouts share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from reposer.data.layouts.folder_scan import drop_collisions
from reposer.data.preparing.annotation_lookup import Annotations
from reposer.data.problems import AnnotationProblem
from reposer.errors import UserError
from reposer.image_rules import ACCEPTED
from reposer.images import read_picture
from reposer.paths import RefusedFileError, printable
from reposer.structures import PersonRecord

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
NO_CAMERA = 0  # camid where nobody knows the camera; data sets count theirs from 1

Progress = Callable[[int, int], None]  # (images done, images in all)
Problems = list[AnnotationProblem]


class LabeledFile(NamedTuple):
    """An image file and what its layout says about it."""

    path: str  # relative to the data set's root, '/' as separator
    name: str  # unique in the data set; begins with the identity, as pair lists want it
    pid: int
    camid: int
    split: str  # "train", "val", "query" or "gallery"
    clothes: int = -1  # number of the outfit, from 0; -1 unknown


Listing = tuple[list[LabeledFile], Problems]


def labeled(path: str, pid: int, camid: int, split: str, clothes: int = -1) -> LabeledFile:
    """A file whose own name need not be unique or begin with the identity: 0012_c3_<path, '_' for '/'>."""
    return LabeledFile(path, f"{pid:04d}_c{camid}_{path.replace('/', '_')}", pid, camid, split, clothes)


def read_labeled(
    root: Path,
    files: Sequence[LabeledFile],
    problems: Problems,
    annotations: Annotations,
    on_progress: Progress | None = None,
    stem: Callable[[str], str] = lambda name: name.rpartition(".")[0],
) -> list[PersonRecord]:
    """Decode every file once, in the given order; good ones become records, the rest is listed.

    Parsing maps and masks are found by the stem, so two files of one stem cannot both stand in a data set;
    key-points are found by the name.

    Args:
        root: the data set's folder.
        files: what the layout lists.
        problems: gets a line for each file that cannot be used, or only by a rule.
        annotations: where maps, masks and key-points are.
        on_progress: called after each image.
        stem: the part of a name that annotations are called by.

    Raises:
        UserError: no usable image.
    """
    by_path = {file.path: file for file in files}
    kept, collisions = drop_collisions((file.path, stem(file.name)) for file in files)
    problems += collisions
    records: list[PersonRecord] = []
    for done, (path, key) in enumerate(kept, start=1):
        record = _read_person(root, by_path[path], problems)
        if record is not None:
            records.append(annotations.attach(record, key, problems))
        if on_progress is not None:
            on_progress(done, len(kept))
    if not records:
        reason = f" ({problems[0]})" if problems else ""
        raise UserError(f"{printable(root)}: no usable image{reason}", "give the folder of a data set")
    return annotations.add_keypoints(records, problems)


def hold_out(records: Sequence[PersonRecord], holdout: int) -> list[PersonRecord]:
    """The records with the training people of the ``holdout`` highest pids marked "val".

    Raises:
        UserError: a holdout of everybody, or a negative one.
    """
    people = sorted({record.pid for record in records if record.split == "train"})
    if holdout < 0 or (holdout and holdout >= len(people)):
        raise UserError(f"holdout {holdout}: {len(people)} people to train on", "hold out fewer")
    held = set(people[len(people) - holdout :])
    return [
        replace(record, split="val") if record.split == "train" and record.pid in held else record
        for record in records
    ]


def left_out(path: str, field: str, error: RefusedFileError) -> AnnotationProblem:
    """The problem of a file that a rule refuses."""
    message = f"{error.reason}; left out: {error.advice}" if error.advice else f"{error.reason}; left out"
    return AnnotationProblem(printable(path), 0, field, message, error.rule)


def _read_person(root: Path, file: LabeledFile, problems: Problems) -> PersonRecord | None:
    try:
        picture = read_picture(root / file.path, root)
    except RefusedFileError as error:
        problems.append(left_out(file.path, "image", error))
        return None
    problems += [
        AnnotationProblem(file.path, 0, "image", f"used by this rule: {ACCEPTED[rule]}", rule)
        for rule in picture.rules
    ]
    height, width = picture.pixels.shape[:2]
    labels = (file.name, file.path, file.pid, file.camid, file.split)
    return PersonRecord(*labels, width, height, picture.sha256, clothes=file.clothes)
