"""The format of an annotation job: images in shards of a growing list, rows about images, files beside them.

Written by the rules of :mod:`reposer.jobs.shards`. A shard is done when every file has its hash, and its
images, and the user's own files that were used for them, are still the ones that were read. New images are
appended as new shards. In the folder ``annotation``, besides the journal's own files:

    job.json    what annotates, with what settings
    plan.json   the shards; folders of the user's own annotations among the images
    manifest/   at least a row for each image
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from reposer.annotation.overview import FLAGS, write_overview
from reposer.config import differences, read_json
from reposer.data.keypoints import Pose, write_keypoints_csv
from reposer.data.label_files import read_mask
from reposer.data.parsing import LIP_LABELS
from reposer.data.preparing.annotation_lookup import SeenMasks
from reposer.data.records import AnnotationProblem, problems_csv
from reposer.errors import UserError
from reposer.image_rules import ACCEPTED
from reposer.images import MAX_FILE_BYTES, without_metadata
from reposer.jobs.shards import Job, Rows, Shard, Work
from reposer.storage.files import remove_tree, sha256_bytes, sha256_file, write_atomic
from reposer.storage.manifest import (
    FILE_COLUMNS,
    JOB,
    STALE,
    RowSchema,
    fitted,
    is_sealed,
    part_path,
    read_part,
    stale_files,
)
from reposer.storage.paths import (
    RefusedFileError,
    check_relative,
    contained,
    delete,
    printable,
    read_regular,
    unlinked,
)
from reposer.structures import NUM_JOINTS

GIVEN = "given_sha256"  # column of the hash of the user's own files that were used for an image
BOOK = "annotation"  # the folder, beside what is made
PHOTOS = "photos"  # a folder in it: the journal of the cutting, where people were cut out of photos
PLAN = "plan.json"
SHARD_ITEMS = 64


@dataclass(frozen=True)
class AnnotationJob(Job):
    """Rows about images, which are the items."""

    unit = "images"
    drift = "single pixels may differ"
    another = (
        "belongs to another job",
        "give another folder with --out, or delete this one with the annotations beside it",
    )

    images: Path  # folder of the images that are read
    listed: Sequence[str]  # all images that are there now, relative to it
    beside: Sequence[str] = ()  # folders of the user's annotations in ``images``: no image of them counts
    foreign: Sequence[Path] = ()  # what a first start must not find, because it would write over it
    given: Callable[[str], str] = lambda image: ""  # hash of the user's own files for an image, as they are

    def changed(self, earlier: dict[str, Any]) -> list[str]:
        """See Job; only the settings count."""
        return differences(earlier.get("settings", {}), self.settings)

    def refuse_foreign(self) -> None:
        """See Job."""
        there = next((place for place in self.foreign if os.path.lexists(place)), None)
        if there is not None:
            raise UserError(
                f"{printable(there)}: is there already, and was not made by this job",
                "give another folder with --out, or move it away",
            )

    def shards(self, notes: list[str]) -> list[Shard]:
        """Those of plan.json, with new ones for images that are new."""
        path, beside = self.folder.book / PLAN, list(self.beside)
        shards = read_shards(path) if path.exists() else []
        known = {image for shard in shards for image in shard}
        new = [image for image in self.listed if image not in known]
        if shards and new:
            notes.append(f"{len(new):,} images are new since the last call")
        if new or beside != read_beside(path):
            shards += [new[i : i + SHARD_ITEMS] for i in range(0, len(new), SHARD_ITEMS)]
            plan = {"shards": shards} | ({"beside": beside} if beside else {})
            write_atomic(path, f"{json.dumps(plan)}\n".encode())
        return _numbered(shards)

    def planned(self) -> list[Shard]:
        """See Job: those of plan.json."""
        return _numbered(read_shards(self.folder.book / PLAN))

    def fault(self, part: Path, shard: Shard) -> str:
        """See Job."""
        names = [name for name, _ in (*FILE_COLUMNS, *self.folder.columns)]
        try:
            table = read_part(part)
            if table.column_names != names:
                return f"{part.name} is of another version"
            table = fitted(table, RowSchema(self.folder.columns, gaps=names), part)
        except UserError as error:
            return str(error)
        rows = table.to_pylist()
        if {row["file"] for row in rows} != set(shard.items):
            return f"{part.name} has other images"
        places: set[str] = set()
        for row in rows:
            if not _unchanged(self.images, row):
                return f"{row['file']} has changed"
            if not row["left_out"] and self.given(row["file"]) != (row.get(GIVEN) or ""):
                return f"your own mask or keypoint file of {row['file']} has changed"
            for place, digest in self.folder.outputs:
                made = row[place] if not row["left_out"] else None
                if made in places:
                    return f"{made} stands in {part.name} twice"
                places |= {made} if made else set()
                fault = place_fault(self.folder.root, made, row[digest]) if made else ""
                if fault:
                    return f"{made} {fault}"
        return ""

    def drop_stale(self) -> None:
        """Delete what earlier rows named and those of the finished journal do not, if it is as it was made.

        Raises:
            UserError: not finished, or damaged.
        """
        root, book = self.folder.root, self.folder.book
        if not (book / STALE).is_dir():
            return
        rows = [row for row in read_book(book).to_pylist() if not row["left_out"]]
        named = {row[place] for row in rows for place, _ in self.folder.outputs}
        for place, digest in stale_files(book).items():
            if place not in named and not place_fault(root, place, digest):
                delete(root, place)
        remove_tree(unlinked(book, STALE))

    def again(self, shard: Shard, fault: str) -> str:
        """See Job."""
        return f"{shard.items[0]} and {len(shard.items) - 1} more are annotated again: {fault}"


def _numbered(shards: Sequence[Sequence[str]]) -> list[Shard]:
    return [Shard(number, images) for number, images in enumerate(shards)]


def read_book(book: Path) -> pa.Table:
    """All rows of a finished journal, in the order of its shards.

    Raises:
        UserError: not finished, or damaged.
    """
    shards = read_shards(book / PLAN)
    parts = [part_path(book, number) for number in range(len(shards))]
    if not parts or not all(is_sealed(part) for part in parts):
        raise UserError(f"{printable(book)}: is not finished", "run the same command again to go on")
    return pa.concat_tables([read_part(part) for part in parts])


def read_shards(path: Path) -> list[list[str]]:
    """The images of each shard, from plan.json.

    Raises:
        UserError: missing, damaged, or no plan.
    """
    shards = read_json(path).get("shards")
    if not isinstance(shards, list) or not all(isinstance(shard, list) and shard for shard in shards):
        raise UserError(f"{path}: holds no plan", "restore it, or annotate into another folder")
    for image in (image for shard in shards for image in shard):
        try:
            check_relative(image)
        except ValueError as error:
            problem = f"{path}: {printable(str(image)[:100])}: {error}"
            raise UserError(problem, "restore it, or annotate into another folder") from error
    return shards


def read_beside(path: Path) -> list[str]:
    """The folders of the user's annotations among the images, from plan.json; [] without any or without it.

    Raises:
        UserError: damaged.
    """
    beside = read_json(path).get("beside", []) if path.exists() else []
    if not isinstance(beside, list) or not all(isinstance(folder, str) for folder in beside):
        raise UserError(f"{path}: holds no plan", "restore it, or annotate into another folder")
    return beside


def earlier_settings(root: Path) -> dict[str, Any]:
    """The settings of the job that was begun in this folder; none where there is none that can be read."""
    try:
        settings = read_json(root / BOOK / JOB).get("settings")
    except UserError:
        return {}  # no job here, or a damaged one: that of the command itself says so
    return dict(settings) if isinstance(settings, dict) else {}


def source_hash(path: Path, root: Path) -> str:
    """sha256 of an image file as it is now; empty where it cannot be read."""
    try:
        return sha256_bytes(read_regular(path, max_bytes=MAX_FILE_BYTES, root=root))
    except RefusedFileError:
        return ""


def place_fault(root: Path, place: str, digest: str) -> str:
    """Why a made file is not as it was written; empty when it is."""
    try:
        path = contained(root, place)
    except RefusedFileError as error:
        return error.reason
    if not path.is_file():
        return "is missing"
    return "" if sha256_file(path) == digest else "differs from its sha256"


def _unchanged(images: Path, row: Mapping[str, Any]) -> bool:
    """Whether the source is what the row says: the file itself, or the one that its copy was made of."""
    name, digest = str(row["file"]), str(row["sha256"])
    place = images / check_relative(name)
    if source_hash(place, images) == digest:
        return True
    try:
        data = read_regular(place, max_bytes=MAX_FILE_BYTES, root=images)
        return sha256_bytes(without_metadata(data, name)) == digest
    except RefusedFileError:
        return False


# ---- What a finished job writes from its journal: keypoints CSV, problems, counts, the page's parts.
#
# Nothing here depends on when or in how many calls the job was done: the same journal gives the same bytes.


KEYPOINTS, PROBLEMS, REPORT = "keypoints.csv", "problems.csv", "report.json"
_SHOWN = 10  # rules or flags in the printed summary


@dataclass(slots=True)
class AnnotationReport:
    """Outcome of ``annotate``; all but the last three fields stand in report.json."""

    images: int  # that were looked at
    annotated: int
    left_out: int  # images that a rule refused
    rules: dict[str, int]  # lines of problems.csv by rule
    flags: dict[str, int]  # images by flag of overview.FLAGS
    labels: dict[str, int]  # images in which a LIP-20 label occurs
    root: Path = Path()
    work: Work = field(default_factory=Work)
    unread: int = 0  # further images that were not looked at, for their names or formats

    def __str__(self) -> str:
        work = self.work
        if work.said:
            return "\n".join([f"{self.root}: {work.said}", *work.notes])
        there = f", {work.kept:,} were done before" if work.kept else ""
        done = "looked at" if self.left_out else "annotated"
        good = f": {self.annotated:,} annotated" if self.left_out else ""
        lines = [f"{self.root}: {work.written:,} images {done}{work.speed()}{there}{good}", *work.notes]
        if left_out := self.left_out + self.unread:
            unread = f" ({self.unread:,} of them for name or format)" if self.unread else ""
            see = self.root / BOOK / PROBLEMS
            lines.append(f"{left_out:,} of {self.images + self.unread:,} images left out{unread}, see {see}")
        lines += [f"  {rule}: {count:,}" for rule, count in list(self.rules.items())[:_SHOWN]]
        if self.flags:
            lines.append("worth a look:")
        lines += [f"  {flag}: {count:,} ({FLAGS[flag]})" for flag, count in self.flags.items()]
        return "\n".join(lines)


def write_results(
    job: AnnotationJob,
    work: Work,
    problems: Sequence[AnnotationProblem],
    *,
    with_keypoints: bool,
    own_mask: Callable[[str], str] = str,
    unread: int = 0,
) -> AnnotationReport:
    """Write everything beside the journal, and the keypoints where there are any; stale files go.

    Args:
        job: finished.
        work: what was done.
        problems: those that stand in no row of the journal.
        with_keypoints: whether keypoints were looked for.
        own_mask: the user's mask of an image, for messages.
        unread: images that stand in no row of the journal, for their names or formats.

    Raises:
        UserError: the journal is not finished; a full disk.
    """
    root, book = job.folder.root, job.folder.book
    job.drop_stale()
    rows = read_book(book).to_pylist()
    good = [row for row in rows if not row["left_out"]]
    doubts = _mask_doubts(job, good, own_mask)
    work.notes += (str(doubt) for doubt in doubts if doubt.rule == "mask-inverted")
    listed = [*problems, *doubts, *row_problems(rows)]
    if with_keypoints:
        poses, unfit = listed_poses(good)
        listed += unfit
        write_keypoints_csv(root / KEYPOINTS, poses)
    write_atomic(book / PROBLEMS, problems_csv(listed))
    counts = count(rows, listed)
    write_atomic(book / REPORT, f"{json.dumps(counts, indent=2)}\n".encode())
    write_overview(book, job.images, root, good, counts, job.settings)
    return AnnotationReport(**counts, root=root, work=work, unread=unread)


def count(rows: Rows, problems: Sequence[AnnotationProblem]) -> dict[str, Any]:
    """The first six fields of an AnnotationReport, from a journal's rows and all lines of problems.csv."""
    good = [row for row in rows if not row["left_out"]]
    rules = Counter(problem.rule for problem in problems if problem.rule not in ACCEPTED)
    flags = Counter(flag for row in good for flag in row["flags"])
    pixels = [row["label_pixels"] for row in good if row["label_pixels"]]
    seen = (np.array(pixels) > 0).sum(axis=0) if pixels else np.zeros(0, np.int64)
    return {
        "images": len(rows),
        "annotated": len(good),
        "left_out": len(rows) - len(good),
        "rules": dict(sorted(rules.items())),
        "flags": {flag: flags[flag] for flag in FLAGS if flags[flag]},
        "labels": dict(zip(LIP_LABELS, seen.tolist(), strict=False)),
    }


def row_problems(rows: Rows) -> list[AnnotationProblem]:
    """What the rows of a journal list."""
    return [
        AnnotationProblem(cell["file"], 0, cell["field"], cell["message"], cell["rule"])
        for row in rows
        for cell in row["problems"] or ()
    ]


def _mask_doubts(job: AnnotationJob, rows: Rows, own_mask: Callable[[str], str]) -> list[AnnotationProblem]:
    """Warnings about the user's own masks, all or single ones; the same check as that of ``prepare``."""
    seen = SeenMasks()
    for row in rows:
        if row["mask_source"] == "folder":
            mask = read_mask(contained(job.folder.root, row["mask"]), root=job.folder.root)
            seen.add(own_mask(row["file"]), mask)
    found = [AnnotationProblem(file, 0, "mask", odd, "odd-mask") for file, odd in seen.odd()]
    if doubt := seen.doubt("invert these files, or give --inverted-masks to `reposer prepare` later"):
        folder = printable(job.settings["mask"]["folder"])
        found.insert(0, AnnotationProblem(folder, 0, "mask", doubt, "mask-inverted"))
    return found


def listed_poses(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Pose], list[AnnotationProblem]]:
    """Poses by path, in the order of paths; a path that the colon CSV cannot hold is listed."""
    poses: dict[str, Pose] = {}
    problems = []
    for row in sorted(rows, key=lambda row: str(row["file"])):
        name = row["file"]
        if row["keypoints"] is None:
            continue
        if name != name.strip() or any(character in name for character in ':"'):
            message = "the name holds a colon, a quote or outer spaces, which the keypoint CSV cannot; no row"
            problems.append(AnnotationProblem(name, 0, "keypoints", message, "bad-keypoints"))
            continue
        poses[name] = np.array(row["keypoints"], np.float32).reshape(NUM_JOINTS, 2)
    return poses, problems
