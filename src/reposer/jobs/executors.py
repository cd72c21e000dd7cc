"""Where the shards of a job are made: in this process, in several of this machine, or in torchrun's.

Each makes whole shards, so that the files do not depend on it. All hold the folder's lock in common, and
spawned processes end with their parent, however that ends, so that nobody writes behind a new start's back.
Another way to share shards out is another function that returns an Executor. Imports no torch.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from reposer.errors import UserError
from reposer.jobs.shards import ENCODERS, Executor, Folder, Maker, Shard, write_shards
from reposer.storage.lock import locked

if TYPE_CHECKING:
    from reposer.runtime import Runtime

Task = TypeVar("Task")
Result = TypeVar("Result")
Computed = Callable[[int], None]


def in_this_process(make_maker: Callable[[], Maker], encoders: int = ENCODERS) -> Executor:
    """The Maker is made when there is something to do."""

    def execute(folder: Folder, todo: Iterable[Shard], computed: Computed) -> Generator[int, None, None]:
        if todo:
            yield from write_shards(folder, make_maker(), todo, computed, encoders)

    return execute


def in_processes(make_maker: Callable[[], Maker], processes: int, encoders: int = ENCODERS) -> Executor:
    """Spawned processes, each of which takes the next shard.

    Args:
        make_maker: makes the Maker in a new process; pickled.
        processes: how many.
    """

    def execute(folder: Folder, todo: Iterable[Shard], computed: Computed) -> Generator[int, None, None]:
        for items in run_in_processes(partial(_begin, folder, make_maker, encoders), list(todo), processes):
            computed(items)
            yield items

    return execute


_LOCK = ExitStack()  # of a spawned process, for as long as it lives


def _begin(folder: Folder, make_maker: Callable[[], Maker], encoders: int) -> Callable[[Shard], int]:
    """In a new process: hold the folder; returns what makes one shard and tells the number of its items."""
    _LOCK.enter_context(locked(folder.book, shared=True))
    maker = make_maker()
    return lambda shard: sum(write_shards(folder, maker, [shard], encoders=encoders))


# ---- torchrun


def with_ranks(runtime: Runtime, maker: Maker, encoders: int = ENCODERS) -> Executor:
    """For rank 0: tell all ranks what is to do and do a share; the others call :func:`help_ranks`."""

    def execute(folder: Folder, shards: Iterable[Shard], computed: Computed) -> Generator[int, None, None]:
        todo = list(shards)
        _broadcast(runtime, [shard.number for shard in todo])

        def all_computed(items: int) -> None:
            computed(items * runtime.world_size)  # the others are about as far as this process

        yield from write_shards(folder, maker, todo[:: runtime.world_size], all_computed, encoders)
        runtime.accelerator.wait_for_everyone()
        yield sum(len(shard.items) for i, shard in enumerate(todo) if i % runtime.world_size)

    return execute


def help_ranks(
    runtime: Runtime, folder: Folder, shards: Sequence[Shard], maker: Maker, encoders: int = ENCODERS
) -> int:
    """The other ranks' part: wait until rank 0 has opened the folder, then do a share; returns its items.

    Raises:
        UserError, DiskError: as ``run_job``.
    """
    numbers = _broadcast(runtime, [])
    mine = [shards[number] for number in numbers[runtime.rank :: runtime.world_size]]
    with locked(folder.book, shared=True):
        items = sum(write_shards(folder, maker, mine, encoders=encoders))
    runtime.accelerator.wait_for_everyone()
    return items


def _broadcast(runtime: Runtime, numbers: list[int]) -> list[int]:
    """Rank 0's numbers on every rank."""
    import torch

    count = torch.tensor([len(numbers)], dtype=torch.int64, device=runtime.device)
    torch.distributed.broadcast(count, 0)
    data = torch.zeros(int(count.item()), dtype=torch.int64, device=runtime.device)
    if runtime.is_main:
        data.copy_(torch.tensor(numbers, dtype=torch.int64))
    torch.distributed.broadcast(data, 0)
    return [int(number) for number in data.tolist()]


# ---- tasks in processes


def run_in_processes(
    begin: Callable[[], Callable[[Task], Result]], tasks: Sequence[Task], processes: int
) -> Iterator[Result]:
    """The results of the tasks, in the order in which they are done; each process takes the next task.

    Processes are spawned (forked children hang in OpenMP), leave Ctrl-C to their parent, and are ended when
    the caller stops early, by an error of its own or of a task.

    Args:
        begin: called once in every process, makes what does the tasks there; pickled.
        tasks: pickled, as are the results.
        processes: how many; no more are started than there are tasks.

    Raises:
        UserError: a task's, with its text (a subclass need not be picklable).
        BrokenProcessPool: a process was killed.
        Exception: any other that a task raised.
    """
    context = multiprocessing.get_context("spawn")
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        min(processes, max(1, len(tasks))), context, initializer=_initialize, initargs=(begin,)
    )
    try:
        with spawning():
            futures = [pool.submit(_work, task) for task in tasks]
        for future in as_completed(futures):
            result, refusal = future.result()
            if refusal is not None:
                raise UserError(*refusal)
            yield result
        pool.shutdown()
    finally:
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        pool.shutdown(cancel_futures=True)


@contextmanager
def spawning(**environment: str) -> Iterator[None]:
    """Processes that are spawned here have these variables, too, which libraries read when they are loaded.

    And they import no json.py of the folder that the user stands in.
    """
    environment["PYTHONSAFEPATH"] = "1"
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class _Worker:
    """What a spawned process keeps between its tasks."""

    work: Callable[[Any], Any] | None = None
    refusal: tuple[str, str] | None = None


def _initialize(begin: Callable[[], Callable[[Any], Any]]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent(lambda: os._exit(1))
    try:
        _Worker.work = begin()
    except UserError as error:  # an error here would only be reported as "a process died"
        _Worker.refusal = (error.problem, error.advice)


def end_with_parent(end: Callable[[], object]) -> None:
    """Call ``end`` in this spawned process as soon as its parent is gone, however that ended.

    At once where it is gone already: nothing may be begun for it, as taking a folder that is the next job's.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    if not parent.is_alive():
        end()
        return

    def wait() -> None:
        parent.join()
        end()

    threading.Thread(target=wait, daemon=True).start()


def _work(task: Any) -> tuple[Any, tuple[str, str] | None]:
    if _Worker.refusal is not None:
        return None, _Worker.refusal
    assert _Worker.work is not None, "the initializer ran before"
    try:
        return _Worker.work(task), None
    except UserError as error:
        return None, (error.problem, error.advice)
