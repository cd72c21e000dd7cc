"""From a list of labeled image files to person records: what the readers of several layouts share."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from reposer.data.layouts.folder_scan import drop_collisions, portable_key, unread, without_suffix
from reposer.data.preparing.annotation_lookup import Annotations
from reposer.data.records import AnnotationProblem
from reposer.errors import UserError
from reposer.image_rules import ACCEPTED
from reposer.images import read_picture
from reposer.storage.paths import RefusedFileError, contained, printable, require_regular
from reposer.structures import PersonRecord

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
# What lies beside the images and is no image: lists of the layouts, and what the tools here write.
_LISTS = frozenset({"lists", "annotation", "fashion_data", "people.json", "keypoints.csv"})
_LIST = re.compile(
    r"list_(train|val|query|gallery)(\.txt)?|(cuhk03_new_protocol_config|splits_classic)_\w+\.(mat|json)"
    r"|(train|test)\.lst|fas(h)?ion-.*\.csv|market-pairs-(train|test)\.csv",
    re.ASCII,
)
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
    """A file whose own name need not be unique or begin with the identity: 0012_c3_<path, '_' for '/'>.

    A path that a comma list could not hold loses its commas, quotes and outer blanks, and gets a piece of its
    hash instead, so that the name stays its own; a file without a known suffix gets ".jpg".
    """
    plain = path.replace("/", "_").strip()
    suffix = "" if plain.lower().endswith(IMAGE_SUFFIXES) else ".jpg"
    if '"' in plain or "," in plain or plain != path.replace("/", "_"):
        digest = hashlib.sha256(path.encode()).hexdigest()[:8]
        suffix = suffix or "." + plain.rpartition(".")[2]
        plain = re.sub('[,"]', "_", f"{without_suffix(plain)}_{digest}")
    return LabeledFile(path, f"{pid:04d}_c{camid}_{plain}{suffix}", pid, camid, split, clothes)


def zero_problems(files: Iterable[LabeledFile], advice: str) -> Problems:
    """One warning where person 0 stands outside the gallery: 0 is a distractor here, others count from it."""
    zero = [file for file in files if file.pid == 0 and file.split != "gallery"]
    if not zero:
        return []
    counts = ", ".join(
        f"{sum(f.split == split for f in zero):,} of {split}" for split in sorted({f.split for f in zero})
    )
    message = (
        f"person 0 means a distractor, nobody to train on or look for: {counts} images. If people are counted"
        f" from 0 here, {advice}"
    )
    return [AnnotationProblem(printable(zero[0].path), 0, "pid", message, "person-zero")]


def read_labeled(
    root: Path,
    files: Sequence[LabeledFile],
    problems: Problems,
    annotations: Annotations,
    on_progress: Progress | None = None,
    stem: Callable[[str], str] = without_suffix,
) -> list[PersonRecord]:
    """Decode every file once, in the given order; good ones become records, the rest is listed.

    Parsing maps and masks are found by the stem, so two files of one stem cannot both stand in a folder;
    keypoints are found by the name. A file of a name that another folder has too (queries that are kept in
    the gallery) gets a name that holds its folder, and shares annotations where it is a copy.

    Args:
        root: the data set's folder.
        files: what the layout lists.
        problems: gets a line for each file that cannot be used, or only by a rule.
        annotations: where maps, masks and keypoints are.
        on_progress: called after each image.
        stem: the part of a name that annotations are called by.

    Raises:
        UserError: no usable image.
    """
    files, twins = _own_names(files, stem)
    by_path = {file.path: file for file in files}
    kept, collisions = drop_collisions((file.path, stem(file.name)) for file in files)
    problems += collisions
    records: list[PersonRecord] = []
    by_bytes: dict[str, str] = {}  # sha256 -> name of the first
    for done, (path, key) in enumerate(kept, start=1):
        record = _read_person(root, by_path[path], problems, annotations.look_only)
        if record is not None:
            first = by_bytes.setdefault(record.sha256, record.name) if record.sha256 else record.name
            copied = twins.get(record.name) == first or (annotations.look_only and record.name in twins)
            records.append(annotations.attach(record, stem(twins[record.name]) if copied else key, problems))
        if on_progress is not None:
            on_progress(done, len(kept))
    if not records:
        reason = f" ({problems[0]})" if problems else ""
        raise UserError(f"{printable(root)}: no usable image{reason}", "give the folder of a data set")
    problems += annotations.doubts()
    return annotations.add_keypoints(records, problems, twins)


def unread_problems(
    root: Path, records: Sequence[PersonRecord], problems: Problems, annotations: Annotations, *more: str
) -> Problems:
    """A line for whatever lies in the data set's folder and was neither used nor listed.

    Args:
        more: files, absolute or relative to ``root``, that were read as a whole.
    """
    used = {path for r in records for path in (r.path, r.parsing, r.mask) if path is not None}
    tables = [Path(file) for file in more]
    tables += [table.absolute() for table in annotations.keypoints]
    known = {
        os.path.relpath(root.absolute() / table, root.absolute()).replace(os.sep, "/") for table in tables
    }
    return unread(root, used, problems, known | _LISTS | {f for f in os.listdir(root) if _LIST.fullmatch(f)})


def hold_out(root: Path, records: Sequence[PersonRecord], holdout: int) -> list[PersonRecord]:
    """The records with the training people of the ``holdout`` highest pids marked "val".

    Args:
        root: the data set's folder, for messages.

    Raises:
        UserError: a holdout of everybody, or a negative one.
    """
    people = sorted({record.pid for record in records if record.split == "train"})
    if holdout < 0 or (holdout and holdout >= len(people)):
        problem = f"{printable(root)}: has {len(people):,} people to train on, {holdout:,} cannot be held out"
        raise UserError(problem, f"hold out 0 to {max(0, len(people) - 1):,}")
    held = set(people[len(people) - holdout :])
    return [
        replace(record, split="val") if record.split == "train" and record.pid in held else record
        for record in records
    ]


def left_out(path: str, field: str, error: RefusedFileError) -> AnnotationProblem:
    """The problem of a file that a rule refuses."""
    message = f"{error.reason}; left out: {error.advice}" if error.advice else f"{error.reason}; left out"
    return AnnotationProblem(printable(path), 0, field, message, error.rule)


def _own_names(
    files: Sequence[LabeledFile], stem: Callable[[str], str]
) -> tuple[list[LabeledFile], dict[str, str]]:
    """The files, those whose name stands in an earlier folder renamed; new name -> the name before."""
    holders: dict[str, tuple[str, str]] = {}  # key -> folder, name
    renamed, twins = [], {}
    for file in files:
        folder = file.path.rpartition("/")[0]
        holder, name = holders.setdefault(portable_key(stem(file.name)), (folder, file.name))
        if holder != folder:
            file = labeled(file.path, file.pid, file.camid, file.split, file.clothes)
            if portable_key(stem(file.name)) in holders:  # x/y_1.jpg and x_y/1.jpg
                digest = hashlib.sha256(file.path.encode()).hexdigest()[:8]
                base, dot, suffix = file.name.rpartition(".")
                file = file._replace(name=f"{base}_{digest}{dot}{suffix}")
            twins[file.name] = name
        renamed.append(file)
    return renamed, twins


def _read_person(root: Path, file: LabeledFile, problems: Problems, look_only: bool) -> PersonRecord | None:
    labels = (file.name, file.path, file.pid, file.camid, file.split)
    try:
        path = contained(root, file.path)
        if look_only:
            require_regular(path, root)
            return PersonRecord(*labels, 0, 0, "", clothes=file.clothes)
        picture = read_picture(path, root)
    except RefusedFileError as error:
        problems.append(left_out(file.path, "image", error))
        return None
    problems += [
        AnnotationProblem(file.path, 0, "image", f"used by this rule: {ACCEPTED[rule]}", rule)
        for rule in picture.rules
    ]
    height, width = picture.pixels.shape[:2]
    return PersonRecord(*labels, width, height, picture.sha256, clothes=file.clothes)
