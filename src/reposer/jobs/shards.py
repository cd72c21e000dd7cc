"""Long work that writes many files, so that a kill -9 at any moment loses, doubles and changes nothing.

A job is a fixed list of items in fixed shards. A shard's files are written in ``.staging``, fsynced and
renamed to their places; then its rows appear in ``manifest/``, and their seal, by renames. A shard is done
when its seal is there and the job finds no fault in what it names; every other shard is made again, so a
Maker must make the same bytes for the same item. The journal of a job:

    job.json                      what is made, from what, by what; another job is refused in this folder
    manifest/part-00000.parquet   the rows of a shard; ``pyarrow.parquet.read_table`` reads them all
    manifest/_part-00000.sha256   the seal: the sha256 of the part, readable by ``sha256sum --check``

A kind of job brings a :class:`Job` (its format, and what is checked when a finished shard is read again) and
a :class:`Maker` (what is made of an item); ``executors.py`` says in which processes. Imports no torch.
"""

from __future__ import annotations

import json
import os
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

from reposer.config import differences, read_json
from reposer.errors import UserError
from reposer.storage.files import (
    DiskError,
    remove_temporaries,
    remove_tree,
    sha256_bytes,
    sync_files,
    sync_folder,
    write_atomic,
)
from reposer.storage.lock import locked, share
from reposer.storage.manifest import JOB, MANIFEST, Columns, is_sealed, note_stale, part_path, write_part
from reposer.storage.outputs import MARK, SEAL
from reposer.storage.paths import RefusedFileError, made_folder, printable, unlinked

STAGING, _ENVIRONMENT = ".staging", "environment"
CLAIMS = ".claims"  # which worker makes which shard (``workers.py``)
ENCODERS = 2  # threads; the bytes do not depend on them
_READ_AHEAD = 2  # batches

Rows = list[dict[str, Any]]
Put = Callable[[str, bytes], str]  # (place relative to the root, content) -> sha256
Encode = Callable[[Put], Rows]  # puts the files of a batch and returns their rows
Progress = Callable[[int, int], None] | None  # (items done, items in all)
Waiting = TypeVar("Waiting")


class ClaimLostError(Exception):
    """Another worker has taken this shard over: what was made of it here is dropped."""


class Claimed(Protocol):
    """The right of one of several workers to make a shard (``workers.py``)."""

    token: str  # of no other claim

    def begin_commit(self) -> None:
        """Raises ClaimLostError."""

    def seal(self, path: Path, data: bytes) -> None:
        """Put the seal of the shard's part there, or raise ClaimLostError."""


class Shard(NamedTuple):
    """Items that become durable at once."""

    number: int
    items: Sequence[Any]  # a range, or the names of images
    claim: Claimed | None = None  # where other workers may be at the same job


class Maker(Protocol):
    """Makes files and rows of items."""

    def read(self, items: Any) -> Iterator[Any]:
        """Batches of a shard's items, each item in one; ``len`` of a batch counts them. In a thread apart."""

    def make(self, batch: Any) -> Encode:
        """Compute; what is returned is called in another thread. Its rows begin with file and sha256."""


@dataclass(frozen=True, slots=True)
class Folder:
    """Where files and rows go; pickled for other processes."""

    root: Path  # files are made in it
    book: Path  # the journal, in the root or the root itself
    columns: Columns  # of the manifest, after FILE_COLUMNS
    synthetic: bool  # whether a generator made the files
    outputs: Sequence[tuple[str, str]] = ()  # columns of a file, and its hash, that goes with its row


@dataclass(frozen=True)
class Job(ABC):
    """What is made, and in which format."""

    unit: ClassVar[str]  # what is counted, for people
    drift: ClassVar[str]  # what another environment may change
    another: ClassVar[tuple[str, str]]  # the problem with a folder of another job, and the advice

    folder: Folder
    settings: Mapping[str, Any]  # everything the bytes depend on; JSON
    environment: Mapping[str, Any]  # may change low bits, so a change is reported, not refused

    def document(self) -> dict[str, Any]:
        """What job.json says of it, besides the environment."""
        return {"settings": dict(self.settings)}

    def changed(self, earlier: dict[str, Any]) -> list[str]:
        """What makes the job of an ``earlier`` document another one; empty when it is this one."""
        return differences(earlier, self.document())

    @abstractmethod
    def refuse_foreign(self) -> None:
        """Called before the first start.

        Raises:
            UserError: something lies there that the job would write over or mix with.
        """

    @abstractmethod
    def shards(self, notes: list[str]) -> list[Shard]:
        """All shards, planned and recorded; called under the lock, may add notes for the user."""

    @abstractmethod
    def planned(self) -> list[Shard]:
        """The shards as they were recorded; changes nothing."""

    @abstractmethod
    def fault(self, part: Path, shard: Shard) -> str:
        """Why a sealed shard is not what is wanted now; empty when it is."""

    @abstractmethod
    def again(self, shard: Shard, fault: str) -> str:
        """The note for a shard that has to be made again."""


@dataclass(slots=True)
class Work:
    """What a call of :func:`run_job`, or a step of it, did."""

    items: int = 0  # of the whole job
    kept: int = 0  # were done before
    written: int = 0  # by this call
    seconds: float = 0.0  # for these
    notes: list[str] = field(default_factory=list)  # shards made again, another environment
    said: str = ""  # of a step that ends with the job unfinished: what it did

    def speed(self) -> str:
        """In brackets after a number of items; empty where nothing was made."""
        return f" ({self.written / self.seconds:,.1f} a second)" if self.written and self.seconds else ""


# (where to, the shards to make, called with each number of computed items) -> items of each durable shard
Executor = Callable[[Folder, Iterable[Shard], Callable[[int], None]], Generator[int, None, None]]


def run_job(
    job: Job,
    executor: Executor,
    work: Work,
    *,
    on_progress: Progress = None,
    before: Callable[[], None] | None = None,
    after: Callable[[], None] | None = None,
) -> None:
    """Do the job, or what is left of it.

    Args:
        job: in a folder that is new, empty, or one where the same job was started.
        executor: who makes the shards; see ``executors.py``. The bytes do not depend on it.
        work: filled in.
        on_progress: called in this thread.
        before: called when the folder is open and locked, before any shard is looked at.
        after: called when every shard is done, still under the lock.

    Raises:
        UserError: the folder holds something else, another process is writing there, or one was killed.
        DiskError: the disk is full or faulty. Finished shards stay in any case, and a later call goes on.
    """
    folder = job.folder
    with opened(job, work) as lock:
        remove_tree(unlinked(folder.book, CLAIMS))  # who was to work with others does all of it now
        if before is not None:
            before()
        shards = job.shards(work.notes)
        todo = unfinished(job, shards, work.notes)
        share(folder.book, lock)
        work.items = sum(len(shard.items) for shard in shards)
        work.kept = work.items - sum(len(shard.items) for shard in todo)
        show = counting(work, on_progress)
        started = time.monotonic()
        try:
            with closing(executor(folder, todo, show)) as durable:
                for items in durable:
                    work.written += items
            clear_staging(folder)
        except BaseException:
            with suppress(OSError, RefusedFileError):
                clear_staging(folder)  # the room may be wanted
            raise
        work.seconds = time.monotonic() - started
        if after is not None:
            after()


@contextmanager
def opened(job: Job, work: Work) -> Iterator[int]:
    """The job's folder, made where it is new, locked for this process alone, and found to be of this job.

    Yields:
        The lock's descriptor; faults of the disk in the block say how far the job came.

    Raises:
        UserError, DiskError: as :func:`run_job`.
    """
    folder = job.folder
    with named_disk_faults(job, work):
        inside = folder.book.relative_to(folder.root).as_posix()
        made_folder(folder.root, "" if inside == "." else inside)
        with locked(folder.book, notes=work.notes) as lock:
            open_job(job, work.notes)
            yield lock


def counting(work: Work, on_progress: Progress) -> Callable[[int], None]:
    """What to call with each number of computed items: tells of them, and at once of those that were kept."""
    computed = work.kept

    def show(items: int) -> None:
        nonlocal computed
        computed = min(computed + items, work.items)
        if on_progress is not None:
            on_progress(computed, work.items)

    show(0)
    return show


def write_shards(
    folder: Folder,
    maker: Maker,
    todo: Iterable[Shard],
    computed: Callable[[int], None] = lambda items: None,
    encoders: int = ENCODERS,
) -> Iterator[int]:
    """Make shards in this process, which holds the folder's lock; yields the items of each durable one.

    One thread reads ahead, this one computes, ``encoders`` encode, one commits.
    """
    with ExitStack() as stack:
        reader, committer = (stack.enter_context(ThreadPoolExecutor(1)) for _ in range(2))
        pool = stack.enter_context(ThreadPoolExecutor(encoders))
        commits: deque[Future[int]] = deque()
        encoded: list[Future[Rows]] = []
        files: ShardFiles | None = None
        for shard, batch in _ahead(reader, _batches(maker, todo)):
            if files is None:
                files, encoded = ShardFiles(folder, shard.number, shard.claim), []
            if batch is not None:
                encoded.append(pool.submit(maker.make(batch), files.put))
                if len(encoded) > 2 * encoders:  # do not run ahead of the encoders; stop at their error
                    encoded[-2 * encoders - 1].result()
                computed(len(batch))
                continue
            commits.append(committer.submit(_commit, files, shard.items, encoded))
            files = None
            if len(commits) > 1:
                yield commits.popleft().result()
        while commits:
            yield commits.popleft().result()


class ShardFiles:
    """The files of one shard on their way: staged by ``put``, then moved to their places by ``commit``."""

    def __init__(self, folder: Folder, number: int, claim: Claimed | None = None) -> None:
        self._folder, self._number, self._claim = folder, number, claim
        own = f"{number}-{claim.token}" if claim else f"{number}"  # two may be at it, of whom one commits
        self._staging = made_folder(folder.book, f"{STAGING}/{own}")
        self._places: dict[str, Path] = {}

    def put(self, place: str, data: bytes) -> str:
        """Stage a file for ``place``, relative to the root; returns its sha256. Callable in any thread.

        Raises:
            RefusedFileError: the place lies outside the root, through a link.
        """
        staged = self._staging / sha256_bytes(place.encode())  # a flat name, one for each place
        with open(staged, "xb") as file:
            file.write(data)
        self._places[place] = staged
        return sha256_bytes(data)

    def commit(self, rows: Rows) -> None:
        """Make all of it durable, move it to its place, and only then say so in the manifest.

        Raises:
            ClaimLostError: another worker commits this shard, or has.
        """
        root, claim = self._folder.root, self._claim
        sync_files([*self._places.values()])
        if claim is not None:
            claim.begin_commit()
        folders: dict[str, Path] = {}  # by their relative paths
        for place, staged in self._places.items():
            unlinked(root, place)
            inside, _, name = place.rpartition("/")
            if inside not in folders:
                folders[inside] = made_folder(root, inside)
            os.replace(staged, folders[inside] / name)  # a link of this name is replaced, not followed
        above = {parent for folder in folders.values() for parent in (folder, *folder.parents)}
        for folder in sorted((one for one in above if one.is_relative_to(root)), reverse=True):
            sync_folder(folder)
        part = part_path(self._folder.book, self._number)
        note_stale(part, self._folder.outputs, self._places)
        seal = write_atomic if claim is None else claim.seal
        write_part(part, rows, self._folder.columns, synthetic=self._folder.synthetic, seal=seal)
        os.rmdir(self._staging)

    def drop(self) -> None:
        """Delete what is staged."""
        remove_tree(self._staging)


# ---- the folder of a job: is it the same job, which of its shards are done


def open_job(job: Job, notes: list[str]) -> None:
    """Start the job or recognize it, and clear away what a killed writer left; under the lock."""
    book = job.folder.book
    path = book / JOB
    if not path.exists():
        job.refuse_foreign()
        document = {**job.document(), MARK: SEAL, _ENVIRONMENT: dict(job.environment)}
        write_atomic(path, f"{json.dumps(document, indent=2, sort_keys=True)}\n".encode())
    refuse_another(job, notes)
    remove_temporaries(book)
    made_folder(book, MANIFEST)
    remove_temporaries(book / MANIFEST)
    clear_staging(job.folder)


def refuse_another(job: Job, notes: list[str]) -> None:
    """Recognize the job in its folder; another environment is noted.

    Raises:
        UserError: the folder is that of another job.
    """
    book = job.folder.book
    earlier = read_json(book / JOB)
    environment = earlier.pop(_ENVIRONMENT, {})
    earlier.pop(MARK, None)
    if changed := job.changed(earlier):
        problem, advice = job.another
        raise UserError(f"{printable(book)}: {problem}, these differ: {'; '.join(changed)}", advice)
    if other := differences(environment, job.environment):
        notes.append(f"started in another environment, {job.drift}: {'; '.join(other)}")


def unfinished(job: Job, shards: Sequence[Shard], notes: list[str]) -> list[Shard]:
    """The shards that are not done; adds a note for each that has to be made again."""
    todo = []
    for shard in shards:
        part = part_path(job.folder.book, shard.number)
        if is_sealed(part):
            fault = job.fault(part, shard)
            if not fault:
                continue
            notes.append(job.again(shard, fault))
        todo.append(shard)
    return todo


def clear_staging(folder: Folder) -> None:
    remove_tree(unlinked(folder.book, STAGING))


@contextmanager
def named_disk_faults(job: Job, work: Work) -> Iterator[None]:
    """Say how far the job came when the disk, or a process, gave up."""
    try:
        yield
    except BrokenProcessPool as error:
        raise UserError(
            f"{job.folder.book}: a process ended early after {_done(job, work)} (killed, or out of memory)",
            "run it again, it goes on from there; fewer processes need less memory",
        ) from error
    except (OSError, DiskError) as error:
        cause = error.__cause__ if isinstance(error, DiskError) else error
        reason = (cause.strerror if isinstance(cause, OSError) else None) or str(error)
        raise DiskError(
            f"{job.folder.book}: stopped after {_done(job, work)}: {reason}",
            "make room or mend the disk, then run it again: it goes on from there",
        ) from error


def _done(job: Job, work: Work) -> str:
    return f"{work.kept + work.written:,} of {work.items:,} {job.unit}"


# ---- the steps of a shard


def _batches(maker: Maker, todo: Iterable[Shard]) -> Iterator[tuple[Shard, Any]]:
    """Every batch of every shard, and None at the end of a shard."""
    for shard in todo:
        for batch in maker.read(shard.items):
            yield shard, batch
        yield shard, None


def _ahead(reader: ThreadPoolExecutor, iterator: Iterator[Waiting]) -> Iterator[Waiting]:
    """The same items; the reader's thread runs the iterator a little ahead."""
    end: Any = object()
    waiting = deque(reader.submit(next, iterator, end) for _ in range(_READ_AHEAD))
    while (item := waiting.popleft().result()) is not end:
        waiting.append(reader.submit(next, iterator, end))
        yield item


def _commit(files: ShardFiles, items: Sequence[Any], encoded: Sequence[Future[Rows]]) -> int:
    """Rows of the items themselves come in the items' order, those of new files in that of the batches.

    Returns the number of items; 0 where another worker has taken the shard over.
    """
    place = {item: n for n, item in enumerate(items)}
    rows = [row for rows in encoded for row in rows.result()]
    try:
        files.commit(sorted(rows, key=lambda row: place.get(row["file"], 0)))
    except ClaimLostError:
        files.drop()
        return 0
    return len(items)
