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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from reposer.config import differences, read_json
from reposer.errors import UserError
from reposer.images import MAX_FILE_BYTES, without_metadata
from reposer.jobs.shards import Job, Shard
from reposer.storage.files import sha256_bytes, sha256_file, write_atomic
from reposer.storage.manifest import FILE_COLUMNS, is_sealed, part_path, read_part
from reposer.storage.paths import RefusedFileError, check_relative, contained, printable, read_regular

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
    outputs: tuple[tuple[str, str], ...]  # pairs of columns: a made file, relative to the root, and its hash
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
        return [Shard(number, images) for number, images in enumerate(shards)]

    def fault(self, part: Path, shard: Shard) -> str:
        """See Job."""
        try:
            table = read_part(part)
        except UserError as error:
            return str(error)
        if table.column_names != [name for name, _ in (*FILE_COLUMNS, *self.folder.columns)]:
            return f"{part.name} is of another version"
        rows = table.to_pylist()
        if {row["file"] for row in rows} != set(shard.items):
            return f"{part.name} has other images"
        places: set[str] = set()
        for row in rows:
            if not _unchanged(self.images, row):
                return f"{row['file']} has changed"
            if not row["left_out"] and self.given(row["file"]) != (row.get(GIVEN) or ""):
                return f"your own mask or keypoint file of {row['file']} has changed"
            for place, digest in self.outputs:
                made = row[place] if not row["left_out"] else None
                if made in places:
                    return f"{made} stands in {part.name} twice"
                places |= {made} if made else set()
                fault = place_fault(self.folder.root, made, row[digest]) if made else ""
                if fault:
                    return f"{made} {fault}"
        return ""

    def again(self, shard: Shard, fault: str) -> str:
        """See Job."""
        return f"{shard.items[0]} and {len(shard.items) - 1} more are annotated again: {fault}"


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
