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

import fcntl
import json
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from reposer.config import differences, read_json
from reposer.data.generated_files import (
    IMAGES,
    JOB,
    MANIFEST,
    SCHEMA_VERSION,
    Columns,
    file_faults,
    is_sealed,
    part_path,
    read_part,
    write_part,
)
from reposer.errors import UserError
from reposer.files import DiskError, remove_temporaries, sha256_bytes, sync_folder, write_atomic

STAGING = ".staging"
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


def write_job(
    folder: str | Path, job: Job, *, threads: int = 2, on_progress: Callable[[int, int], None] | None = None
) -> WriteReport:
    """Do the job, or what is left of it.

    Args:
        folder: new, empty, or one where the same job was started.
        threads: encoding threads; the bytes do not depend on them.
        on_progress: called in this thread with (items done, items in all).

    Raises:
        UserError: the folder holds something else, or another process is writing there.
        DiskError: the disk is full or faulty; finished shards stay, and a later call goes on.
    """
    folder = Path(folder)
    started, report = time.monotonic(), WriteReport(folder, job.items)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            report.notes += _open_job(folder, job)
            todo = _unfinished(folder, job, report.notes)
            report.kept = job.items - sum(len(shard) for _, shard in todo)
            if on_progress is not None:
                on_progress(report.kept, job.items)
            (folder / STAGING).mkdir()
            try:
                _write_shards(folder, job, todo, threads, report, on_progress)
                (folder / STAGING).rmdir()
            except BaseException:
                shutil.rmtree(folder / STAGING, ignore_errors=True)  # the room may be wanted
                raise
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


# ---- the steps of a job


def _open_job(folder: Path, job: Job) -> list[str]:
    """Start the job or recognize it; returns notes."""
    document = {
        "schema_version": SCHEMA_VERSION,
        "items": job.items,
        "shard_items": job.shard_items,
        "settings": dict(job.settings),
    }
    path = folder / JOB
    if not path.exists():
        names = (entry.name for entry in folder.iterdir())
        foreign = sorted(name for name in names if not name.startswith(f".{JOB}.tmp-"))  # a killed start
        if foreign:
            raise UserError(f"{folder}: is not empty (holds {foreign[0]})", "choose a new folder")
        whole = json.dumps({**document, "environment": dict(job.environment)}, indent=2, sort_keys=True)
        write_atomic(path, (whole + "\n").encode())
    earlier = read_json(path)
    environment = earlier.pop("environment", {})
    changed = differences(earlier, document)
    if changed:
        raise UserError(
            f"{folder}: holds another job, these differ: {'; '.join(changed)}",
            "choose another folder, or the settings the job was started with",
        )
    remove_temporaries(folder)
    for name in (IMAGES, MANIFEST):
        (folder / name).mkdir(exist_ok=True)
    remove_temporaries(folder / MANIFEST)
    if (folder / STAGING).exists():
        shutil.rmtree(folder / STAGING)  # of a killed writer
    other = differences(environment, job.environment)
    return [f"started in another environment, pictures may differ by 1/255: {'; '.join(other)}"] * bool(other)


def _unfinished(folder: Path, job: Job, notes: list[str]) -> list[tuple[int, range]]:
    """Number and range of the shards that are not done."""
    todo = []
    for number, shard in enumerate(job.shards()):
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


def _write_shards(
    folder: Path,
    job: Job,
    todo: list[tuple[int, range]],
    threads: int,
    report: WriteReport,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    """Encode in ``threads`` threads and commit in one more, while this thread produces the next units."""
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


# ---- disk and lock


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder alone; the kernel lets it go with its process, however that ends."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            problem = f"{folder}: another process is writing there"
            raise UserError(problem, "wait for it or stop it") from error
        yield
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
