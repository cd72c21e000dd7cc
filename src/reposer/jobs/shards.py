"""Many files and their manifest, written so that a kill -9 at any moment loses, doubles and changes nothing.

A job is a fixed list of items in shards of fixed ranges. A shard's files are written in ``.staging``,
fsynced and renamed into ``images/``; then its rows appear in ``manifest/``, and their seal, by renames.
A shard is done when its seal is there and every hash is right; every other shard is made again, so a job must
make the same bytes for the same item. The result is a plain folder:

    job.json                      what is made, from what, by what; another job is refused in this folder
    images/<file>
    manifest/part-00000.parquet   a row for each file; ``pyarrow.parquet.read_table`` reads them all
    manifest/_part-00000.sha256   the seal: the sha256 of the part, readable by ``sha256sum --check``

Imports no torch.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from reposer.config import differences, read_json
from reposer.errors import UserError
from reposer.storage.files import (
    DiskError,
    remove_temporaries,
    remove_tree,
    sha256_bytes,
    sync_folder,
    write_atomic,
)
from reposer.storage.lock import locked, share
from reposer.storage.manifest import (
    IMAGES,
    JOB,
    MANIFEST,
    SCHEMA_VERSION,
    Columns,
    file_faults,
    is_sealed,
    part_path,
    read_part,
    seal_job,
    write_part,
)
from reposer.storage.paths import made_folder, unlinked
from reposer.storage.seals import MARK, SEAL

# ---- The folder of a job: is it the same job, which of its shards are done. Imports no torch.

STAGING = ".staging"


def open_job(folder: Path, document: Mapping[str, Any], environment: Mapping[str, Any]) -> list[str]:
    """Start the job or recognize it, and clear away what a killed writer left; for who holds the lock alone.

    Args:
        document: what job.json says of the job.
        environment: versions, threads, device; a change is reported, not refused.

    Returns:
        Notes for the user.

    Raises:
        UserError: the folder holds another job, or something else.
    """
    path = folder / JOB
    if not path.exists():
        names = (entry.name for entry in folder.iterdir())
        foreign = sorted(name for name in names if not name.startswith(f".{JOB}.tmp-"))  # a killed start
        if foreign:
            raise UserError(f"{folder}: is not empty (holds {foreign[0]})", "choose a new folder")
        said = {**document, MARK: SEAL, "environment": dict(environment)}
        whole = json.dumps(said, indent=2, sort_keys=True)
        write_atomic(path, (whole + "\n").encode())
    earlier = read_json(path)
    before = earlier.pop("environment", {})
    earlier.pop(MARK, None)
    changed = differences(earlier, document)
    if changed:
        raise UserError(
            f"{folder}: holds another job, these differ: {'; '.join(changed)}",
            "choose another folder, or the settings the job was started with",
        )
    remove_temporaries(folder)
    for name in (IMAGES, MANIFEST):
        made_folder(folder, name)
    remove_temporaries(folder / MANIFEST)
    remove_tree(unlinked(folder, STAGING))  # of a killed writer
    other = differences(before, environment)
    return [f"started in another environment, pictures may differ by 1/255: {'; '.join(other)}"] * bool(other)


def unfinished(folder: Path, shards: Sequence[range], notes: list[str]) -> list[tuple[int, range]]:
    """Number and range of the shards that are not done; adds a note for each that has to be made again."""
    todo = []
    for number, shard in enumerate(shards):
        path = part_path(folder, number)
        if is_sealed(path):
            fault = _shard_fault(folder, path, len(shard))
            if not fault:
                continue
            notes.append(f"shard {number} is made again: {fault}")
        todo.append((number, shard))
    return todo


def _shard_fault(folder: Path, path: Path, items: int) -> str:
    """What is wrong with a shard whose part is there; empty when it is done."""
    try:
        rows = read_part(path)
    except UserError as error:
        return str(error)
    if rows.num_rows != items:
        return f"{path.name} has {rows.num_rows} rows, not {items}"
    return next((f"{IMAGES}/{name} {reason}" for name, reason in file_faults(folder, rows)), "")


_FSYNC_THREADS = 8  # waiting for a disk takes no processor time


class OutputFile(NamedTuple):
    """One file of a shard."""

    name: str  # in images/
    data: bytes
    row: dict[str, Any]  # the manifest's columns after FILE_COLUMNS


class WorkUnit(NamedTuple):
    """A part of a shard: ``encode`` makes its files, and is called in another thread."""

    items: int
    encode: Callable[[], list[OutputFile]]


@dataclass(frozen=True, slots=True)
class Job:
    """What is written: a fixed list of items, always the same bytes for the same item."""

    settings: Mapping[str, Any]  # everything the bytes depend on; JSON
    environment: Mapping[str, Any]  # versions, threads, device: may change low bits, so a change is reported
    items: int
    columns: Columns  # of the manifest, after FILE_COLUMNS
    produce: Callable[[range], Iterator[WorkUnit]]  # the units of a range of items, in order
    shard_items: int

    def shards(self) -> list[range]:
        """The fixed ranges of items."""
        starts = range(0, self.items, self.shard_items)
        return [range(start, min(start + self.shard_items, self.items)) for start in starts]

    def document(self) -> dict[str, Any]:
        """What job.json says of it."""
        return {
            "schema_version": SCHEMA_VERSION,
            "items": self.items,
            "shard_items": self.shard_items,
            "settings": dict(self.settings),
        }


@dataclass(slots=True)
class WriteReport:
    """What a call of ``write_job`` did."""

    folder: Path
    items: int  # of the whole job
    kept: int = 0  # files that were there already
    written: int = 0  # files made by this call
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)  # shards made again, another environment

    def __str__(self) -> str:
        rate = f" ({self.written / self.seconds:,.1f} a second)" if self.written and self.seconds else ""
        there = f", {self.kept:,} were there already" if self.kept else ""
        lines = [f"{self.folder}: {self.written:,} pictures written{rate}{there}", *self.notes]
        lines.append(f"pictures in {IMAGES}/, a row for each in {MANIFEST}/*.parquet, settings in {JOB}")
        return "\n".join(lines)


Progress = Callable[[int, int], None] | None  # (items done, items in all)
ShardWriter = Callable[[Path, Job, list[tuple[int, range]], int, WriteReport, Progress], None]


def write_job(
    folder: str | Path,
    job: Job,
    *,
    threads: int = 2,
    on_progress: Progress = None,
    writer: ShardWriter | None = None,
    before: Callable[[WriteReport], None] | None = None,
    after: Callable[[WriteReport], None] | None = None,
) -> WriteReport:
    """Do the job, or what is left of it.

    Args:
        folder: new, empty, or one where the same job was started.
        threads: encoding threads; the bytes do not depend on them.
        on_progress: called in this thread with (items done, items in all).
        writer: who makes the shards; default: this process (:func:`write_shards`).
        before: called when the folder is open and locked, before the first shard.
        after: called when every shard is done, still under the lock.

    Raises:
        UserError: the folder holds something else, or another process is writing there.
        DiskError: the disk is full or faulty; finished shards stay, and a later call goes on.
    """
    folder = Path(folder)
    started, report = time.monotonic(), WriteReport(folder, job.items)
    try:
        made_folder(folder)
        with locked(folder) as lock:
            report.notes += open_job(folder, job.document(), job.environment)
            if before is not None:
                before(report)
            todo = unfinished(folder, job.shards(), report.notes)
            share(folder, lock)
            report.kept = job.items - sum(len(shard) for _, shard in todo)
            if on_progress is not None:
                on_progress(report.kept, job.items)
            made_folder(folder, STAGING)
            try:
                (writer or write_shards)(folder, job, todo, threads, report, on_progress)
                (folder / STAGING).rmdir()
            except BaseException:
                shutil.rmtree(folder / STAGING, ignore_errors=True)  # the room may be wanted
                raise
            if after is not None:
                after(report)
            seal_job(folder)
    except (OSError, DiskError) as error:
        cause = error.__cause__ if isinstance(error, DiskError) else error
        reason = (cause.strerror if isinstance(cause, OSError) else None) or str(error)
        done = f"{report.kept + report.written:,} of {report.items:,} pictures"
        raise DiskError(
            f"{folder}: stopped after {done}: {reason}",
            "make room or mend the disk, then run it again: it goes on from there",
        ) from error
    report.seconds = time.monotonic() - started
    return report


# ---- the steps of a shard


def write_shards(
    folder: Path,
    job: Job,
    todo: list[tuple[int, range]],
    threads: int,
    report: WriteReport,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    """Encode in ``threads`` threads and commit in one more, while this thread produces the next units.

    The default :data:`ShardWriter`; for a process that holds the folder's lock. Counts in ``report``.
    """
    done = report.kept
    commits: deque[Future[int]] = deque()
    with ThreadPoolExecutor(threads) as encoders, ThreadPoolExecutor(1) as committer:
        for number, shard in todo:
            staging = folder / STAGING / str(number)
            staging.mkdir()
            staged: list[Future[list[dict[str, Any]]]] = []
            for unit in job.produce(shard):
                staged.append(encoders.submit(_stage, staging, unit))
                if len(staged) > 2 * threads:  # do not run ahead of the encoders; stop at their error
                    staged[-2 * threads - 1].result()
                done += unit.items
                if on_progress is not None:
                    on_progress(done, job.items)
            commits.append(committer.submit(_commit, folder, job, number, staging, staged))
            if len(commits) > 1:
                report.written += commits.popleft().result()
        while commits:
            report.written += commits.popleft().result()


def _stage(staging: Path, unit: WorkUnit) -> list[dict[str, Any]]:
    """Write the files of a unit, unsynced; returns their rows."""
    rows = []
    for name, data, row in unit.encode():
        with open(staging / name, "xb") as file:
            file.write(data)
        rows.append({"file": name, "sha256": sha256_bytes(data), **row})
    return rows


def _commit(
    folder: Path, job: Job, number: int, staging: Path, staged: list[Future[list[dict[str, Any]]]]
) -> int:
    """Make a staged shard durable, move it to its place, and only then say so in the manifest."""
    rows = [row for unit in staged for row in unit.result()]
    names = [row["file"] for row in rows]
    with ThreadPoolExecutor(_FSYNC_THREADS) as pool:
        deque(pool.map(lambda name: _sync(staging / name), names), maxlen=0)
    for name in names:
        os.replace(staging / name, folder / IMAGES / name)
    sync_folder(folder / IMAGES)
    write_part(part_path(folder, number), rows, job.columns)
    os.rmdir(staging)
    return len(rows)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
