"""The journal of an annotation job: what was asked, which images in which shards, what has been made of each.

A shard is a fixed list of images. Its files are staged, fsynced and renamed to their places; then its rows
appear in ``manifest/``, and their seal. A shard is done when its seal is there, every file has its hash, and
its images, and the user's own files that were used for them, are still the ones that were read; every other
shard is made again. So a kill -9 at any moment
costs at most the shards at hand. New images are appended as new shards. In the folder ``annotation``:

    job.json                      what annotates, with what settings; another job is refused
    plan.json                     the shards; folders of the user's own annotations among the images
    manifest/part-00000.parquet   at least a row for each image; ``pyarrow.parquet.read_table`` reads them all
    manifest/_part-00000.sha256   the seal
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from reposer.config import differences, read_json
from reposer.errors import UserError
from reposer.images import MAX_FILE_BYTES, without_metadata
from reposer.storage.files import (
    remove_temporaries,
    remove_tree,
    sha256_bytes,
    sha256_file,
    sync_folder,
    write_atomic,
)
from reposer.storage.manifest import (
    FILE_COLUMNS,
    JOB,
    MANIFEST,
    Columns,
    is_sealed,
    part_path,
    read_part,
    write_part,
)
from reposer.storage.paths import (
    RefusedFileError,
    check_relative,
    contained,
    made_folder,
    printable,
    read_regular,
    unlinked,
)
from reposer.storage.seals import MARK, SEAL

GIVEN = "given_sha256"  # column of the hash of the user's own files that were used for an image
BOOK = "annotation"  # the folder, beside what is made
PHOTOS = "photos"  # a folder in it: the journal of the cutting, where people were cut out of photos
PLAN, STAGING = "plan.json", ".staging"
SHARD_ITEMS = 64
_FSYNC_THREADS = 8  # waiting for a disk takes no processor time

Shard = tuple[int, list[str]]  # its number and its images, relative to the folder of images
Rows = list[dict[str, Any]]
Given = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Task:
    """What a job is; pickled for its processes."""

    images: Path  # folder of the images that are read
    root: Path  # folder in which files are made
    book: Path  # folder of the journal
    settings: Mapping[str, Any]  # everything the annotations depend on; JSON
    environment: Mapping[str, Any]  # may change low bits, so a change is reported, not refused
    columns: Columns  # of the manifest after file and sha256, which are an image's
    outputs: tuple[tuple[str, str], ...]  # pairs of columns: a made file, relative to root, and its hash
    beside: tuple[str, ...] = ()  # folders of the user's annotations in ``images``: no image of them counts


def open_journal(task: Task, images: Sequence[str], foreign: Sequence[Path]) -> tuple[list[Shard], list[str]]:
    """Start the job or recognize it; for who holds the lock of ``task.book`` alone.

    Args:
        task: the job.
        images: all images that are there now.
        foreign: what must not exist before the job's first start, because the job would write over it.

    Returns:
        All shards, and notes for the user.

    Raises:
        UserError: the folder holds another job, or annotations that this program did not make.
    """
    path = task.book / JOB
    if not path.exists():
        there = next((place for place in foreign if os.path.lexists(place)), None)
        if there is not None:
            raise UserError(
                f"{printable(there)}: is there already, and was not made by this job",
                "give another folder with --out, or move it away",
            )
        document = {"settings": dict(task.settings), "environment": dict(task.environment), MARK: SEAL}
        write_atomic(path, f"{json.dumps(document, indent=2, sort_keys=True)}\n".encode())
    earlier = read_json(path)
    changed = differences(earlier.get("settings", {}), task.settings)
    if changed:
        raise UserError(
            f"{printable(task.book)}: belongs to another job, these differ: {'; '.join(changed)}",
            "give another folder with --out, or delete this one with the annotations beside it",
        )
    remove_temporaries(task.book)
    made_folder(task.book, MANIFEST)
    remove_temporaries(task.book / MANIFEST)
    remove_tree(unlinked(task.book, STAGING))  # of a killed writer
    other = differences(earlier.get("environment", {}), task.environment)
    notes = [f"started in another environment, single pixels may differ: {'; '.join(other)}"] * bool(other)
    return _planned(task, images, notes), notes


def unfinished(task: Task, shards: Sequence[Shard], notes: list[str], given: Given) -> list[Shard]:
    """The shards that are not done; adds a note for each that has to be made again.

    Args:
        task: the job.
        shards: all of them.
        notes: for the user.
        given: hash of the user's own files for an image, as they are now.
    """
    todo = []
    for number, images in shards:
        path = part_path(task.book, number)
        if is_sealed(path):
            fault = _fault(task, path, images, given)
            if not fault:
                continue
            notes.append(f"{images[0]} and {len(images) - 1} more are annotated again: {fault}")
        todo.append((number, images))
    return todo


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


class ShardFiles:
    """The files of one shard on their way: staged by ``put``, then moved to their places by ``commit``."""

    def __init__(self, task: Task, number: int) -> None:
        self._task, self._number = task, number
        self._staging = made_folder(task.book, f"{STAGING}/{number}")
        self._places: dict[str, Path] = {}

    def put(self, place: str, data: bytes) -> str:
        """Stage a file for ``place``, relative to the root; returns its sha256. Callable in any thread.

        Raises:
            RefusedFileError: the place lies outside the root, through a link.
        """
        digest = sha256_bytes(data)
        staged = self._staging / sha256_bytes(place.encode())  # a flat name, one for each place
        with open(staged, "xb") as file:
            file.write(data)
        self._places[place] = staged
        return digest

    def commit(self, rows: Rows) -> None:
        """Make all of it durable, move it to its place, and only then say so in the manifest."""
        with ThreadPoolExecutor(_FSYNC_THREADS) as pool:
            deque(pool.map(_sync, self._places.values()), maxlen=0)
        folders: dict[str, Path] = {}  # by their relative paths
        for place, staged in self._places.items():
            unlinked(self._task.root, place)
            inside, _, name = place.rpartition("/")
            if inside not in folders:
                folders[inside] = made_folder(self._task.root, inside)
            os.replace(staged, folders[inside] / name)  # a link of this name is replaced, not followed
        above = {parent for folder in folders.values() for parent in (folder, *folder.parents)}
        for folder in sorted((one for one in above if one.is_relative_to(self._task.root)), reverse=True):
            sync_folder(folder)
        write_part(part_path(self._task.book, self._number), rows, self._task.columns, synthetic=False)
        os.rmdir(self._staging)


def _planned(task: Task, images: Sequence[str], notes: list[str]) -> list[Shard]:
    """The shards of plan.json, with new ones for images that are new."""
    path, beside = task.book / PLAN, list(task.beside)
    shards = read_shards(path) if path.exists() else []
    known = {image for shard in shards for image in shard}
    new = [image for image in images if image not in known]
    if shards and new:
        notes.append(f"{len(new):,} images are new since the last call")
    if new or beside != read_beside(path):
        shards += [new[i : i + SHARD_ITEMS] for i in range(0, len(new), SHARD_ITEMS)]
        plan = {"shards": shards} | ({"beside": beside} if beside else {})
        write_atomic(path, f"{json.dumps(plan)}\n".encode())
    return list(enumerate(shards))


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


def _fault(task: Task, part: Path, images: Sequence[str], given: Given) -> str:
    """Why a sealed shard is not what is wanted now; empty when it is."""
    try:
        table = read_part(part)
    except UserError as error:
        return str(error)
    if table.column_names != [name for name, _ in (*FILE_COLUMNS, *task.columns)]:
        return f"{part.name} is of another version"
    rows = table.to_pylist()
    if {row["file"] for row in rows} != set(images):
        return f"{part.name} has other images"
    places: set[str] = set()
    for row in rows:
        if not _unchanged(task.images, row):
            return f"{row['file']} has changed"
        if not row["left_out"] and given(row["file"]) != (row.get(GIVEN) or ""):
            return f"your own mask or keypoint file of {row['file']} has changed"
        for place, digest in task.outputs:
            made = row[place] if not row["left_out"] else None
            if made in places:
                return f"{made} stands in {part.name} twice"
            places |= {made} if made else set()
            fault = place_fault(task.root, made, row[digest]) if made else ""
            if fault:
                return f"{made} {fault}"
    return ""


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
