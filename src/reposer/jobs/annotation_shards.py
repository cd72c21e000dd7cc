"""Makes shards: one thread reads ahead, this one computes, some encode, one commits. The order never matters.

What is made of an image is the business of a Maker (annotation/makers.py).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from reposer.errors import UserError
from reposer.jobs.journal import STAGING, Given, Rows, Shard, ShardFiles, Task, open_journal, unfinished
from reposer.jobs.workers import run_in_processes
from reposer.storage.files import DiskError, disk_faults, remove_tree
from reposer.storage.lock import locked, share
from reposer.storage.paths import RefusedFileError, made_folder, unlinked

_ENCODERS = 2  # threads
_READ_AHEAD = 2  # batches

Item = TypeVar("Item")
Put = Callable[[str, bytes], str]  # (place relative to the root, content) -> sha256
Encode = Callable[[Put], Rows]  # puts the files of some images and returns their rows
Progress = Callable[[int, int], None] | None  # (images done, images in all)


class Maker(Protocol):
    """Makes files and rows of images."""

    def read(self, images: Sequence[str]) -> Iterator[Any]:
        """Batches of these images, each image in one; called in another thread than ``make``."""
        ...

    def make(self, batch: Any) -> Encode:
        """Compute; what is returned is called in a third thread."""
        ...


@dataclass(slots=True)
class Work:
    """What a call of :func:`make_all` did."""

    images: int  # of the whole job
    kept: int = 0  # were done before
    made: int = 0  # by this call
    seconds: float = 0.0  # for these
    notes: list[str] = field(default_factory=list)


def make_all(
    task: Task,
    images: Sequence[str],
    make_maker: Callable[[], Maker],
    *,
    foreign: Sequence[Path] = (),
    maker: Maker | None = None,
    processes: int = 1,
    given: Given = lambda image: "",
    on_progress: Progress = None,
    after: Callable[[Work], None] | None = None,
) -> Work:
    """Do the job, or what is left of it.

    Args:
        task: the job.
        images: all images that are there now, relative to ``task.images``.
        make_maker: makes the Maker in another process; pickled.
        foreign: see :func:`journal.open_journal`.
        maker: the Maker of this process, where there is one already.
        processes: how many make shards; with one it is this one. The annotations do not depend on it.
        given: see :func:`journal.unfinished`.
        on_progress: called in this thread.
        after: called at the end, still under the lock.

    Raises:
        UserError: the folder belongs to another job or another process, or a process was killed.
        DiskError: the disk is full or faulty. Finished shards stay in any case.
    """
    work = Work(0)
    with disk_faults(task.book):
        made_folder(task.root, task.book.relative_to(task.root).as_posix())
        with locked(task.book) as lock:
            shards, work.notes = open_journal(task, images, foreign)
            todo = unfinished(task, shards, work.notes, given)
            share(task.book, lock)
            work.images = sum(len(shard) for _, shard in shards)
            work.kept = work.images - sum(len(shard) for _, shard in todo)
            if on_progress is not None:
                on_progress(work.kept, work.images)
            started = time.monotonic()
            try:
                for count in _written(task, todo, make_maker, maker, processes, work):
                    work.made += count
                    if on_progress is not None:
                        on_progress(work.kept + work.made, work.images)
            except DiskError as error:
                advice = "make room or mend the disk, then run it again: it goes on from there"
                done = f"stopped after {work.kept + work.made:,} of {work.images:,} images"
                raise DiskError(f"{done}: {error.problem}", advice) from error
            finally:
                with suppress(OSError, RefusedFileError):
                    remove_tree(unlinked(task.book, STAGING))  # the room may be wanted
            work.seconds = time.monotonic() - started
            if after is not None:
                after(work)
    return work


def write_shards(task: Task, maker: Maker, todo: Sequence[Shard]) -> Iterator[int]:
    """Make shards in this process; yields the number of images of each batch that was computed."""
    with ExitStack() as stack:
        reader, committer = (stack.enter_context(ThreadPoolExecutor(1)) for _ in range(2))
        encoders = stack.enter_context(ThreadPoolExecutor(_ENCODERS))
        commits: deque[Future[None]] = deque()
        encoded: deque[Future[Rows]] = deque()
        files: ShardFiles | None = None
        for number, images, batch in _ahead(reader, _batches(maker, todo)):
            if files is None:
                files, encoded = ShardFiles(task, number), deque()
            if batch is not None:
                encoded.append(encoders.submit(maker.make(batch), files.put))
                if len(encoded) > 2 * _ENCODERS:  # do not run ahead of the encoders; stop at their error
                    encoded[-2 * _ENCODERS - 1].result()
                continue
            commits.append(committer.submit(_commit, files, images, encoded))
            files = None
            if len(commits) > 1:
                commits.popleft().result()
            yield len(images)
        while commits:
            commits.popleft().result()


def _written(
    task: Task,
    todo: Sequence[Shard],
    make_maker: Callable[[], Maker],
    maker: Maker | None,
    processes: int,
    work: Work,
) -> Iterator[int]:
    """The shards' images as they are done, in this process or in others."""
    if not todo:
        return
    if processes == 1:
        with disk_faults(task.root):
            yield from write_shards(task, maker or make_maker(), todo)
        return
    try:
        yield from run_in_processes(partial(_begin, task, make_maker), todo, processes)
    except BrokenProcessPool as error:
        raise UserError(
            f"a process ended early after {work.kept + work.made:,} of {work.images:,} images",
            "run it again, it goes on from there; fewer processes need less memory",
        ) from error


_LOCK = ExitStack()  # of a spawned process, for as long as it lives


def _begin(task: Task, make_maker: Callable[[], Maker]) -> Callable[[Shard], int]:
    _LOCK.enter_context(locked(task.book, shared=True))
    maker = make_maker()

    def write(shard: Shard) -> int:
        with disk_faults(task.root):
            return sum(write_shards(task, maker, [shard]))

    return write


def _batches(maker: Maker, todo: Sequence[Shard]) -> Iterator[tuple[int, list[str], Any]]:
    """Every batch of every shard, and None at the end of a shard."""
    for number, images in todo:
        for batch in maker.read(images):
            yield number, images, batch
        yield number, images, None


def _ahead(reader: ThreadPoolExecutor, iterator: Iterator[Item]) -> Iterator[Item]:
    """The same items; the reader's thread runs the iterator a little ahead."""
    end: Any = object()
    waiting = deque(reader.submit(next, iterator, end) for _ in range(_READ_AHEAD))
    while (item := waiting.popleft().result()) is not end:
        waiting.append(reader.submit(next, iterator, end))
        yield item


def _commit(files: ShardFiles, images: Sequence[str], encoded: Sequence[Future[Rows]]) -> None:
    place = {image: n for n, image in enumerate(images)}
    rows = [row for rows in encoded for row in rows.result()]
    files.commit(sorted(rows, key=lambda row: place[row["file"]]))
