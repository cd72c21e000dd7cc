"""Several processes write one job: each whole shards, so that the tree does not depend on their number.

Two ways to have them: spawned by this process (``write_in_processes``), or started by torchrun
(``write_with_ranks`` on rank 0, ``help_ranks`` on the others). All hold the folder's lock in common, and
spawned ones end with their parent, however that ends, so that nobody writes behind a new start's back.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from pathlib import Path

import torch

from reposer.errors import UserError
from reposer.generation.job_folder import locked
from reposer.generation.shards import Job, Progress, WriteReport, write_shards
from reposer.runtime import Runtime

_Todo = list[tuple[int, range]]


def write_in_processes(
    make_job: Callable[[], Job],
    processes: int,
    folder: Path,
    job: Job,
    todo: _Todo,
    threads: int,
    report: WriteReport,
    on_progress: Progress,
) -> None:
    """A ShardWriter after its first two arguments: spawn processes, each takes the next shard.

    Args:
        make_job: makes the job in a new process; pickled.
        processes: how many.

    Raises:
        UserError: a process was killed; finished shards stay.
    """
    context = multiprocessing.get_context("spawn")  # forked children hang in OpenMP
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        min(processes, max(1, len(todo))), context, initializer=_begin, initargs=(make_job, folder)
    )
    try:
        pending = [pool.submit(_write_one, folder, number, shard, threads) for number, shard in todo]
        for future in as_completed(pending):
            report.written += future.result()
            if on_progress is not None:
                on_progress(report.kept + report.written, job.items)
        pool.shutdown()
    except BrokenProcessPool as error:
        done = f"{report.kept + report.written:,} of {job.items:,} pictures"
        raise UserError(
            f"{folder}: a process ended early after {done} (killed, or out of memory)",
            "run it again, it goes on from there; fewer processes need less memory",
        ) from error
    finally:
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()  # after an error or Ctrl-C: what they have not finished is made again
        pool.shutdown(cancel_futures=True)


class _Worker:
    """What a spawned process keeps between its shards."""

    job: Job | None = None
    stack = ExitStack()  # holds the lock


def _begin(make_job: Callable[[], Job], folder: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _Worker.stack.enter_context(locked(folder, shared=True))
    _Worker.job = make_job()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _write_one(folder: Path, number: int, shard: range, threads: int) -> int:
    """Make one shard; returns the number of its files."""
    assert _Worker.job is not None, "the initializer ran before"
    report = WriteReport(folder, len(shard))
    write_shards(folder, _Worker.job, [(number, shard)], threads, report, None)
    return report.written


# ---- torchrun


def write_with_ranks(
    runtime: Runtime,
    folder: Path,
    job: Job,
    todo: _Todo,
    threads: int,
    report: WriteReport,
    on_progress: Progress,
) -> None:
    """A ShardWriter after its first argument, for rank 0: tell all ranks what is to do and do a share."""
    _broadcast(runtime, [number for number, _ in todo])
    others = sum(len(shard) for i, (_, shard) in enumerate(todo) if i % runtime.world_size)

    def shown(done: int, total: int) -> None:
        """The others are about as far as this process."""
        if on_progress is not None:
            on_progress(min(report.kept + (done - report.kept) * runtime.world_size, total), total)

    write_shards(folder, job, todo[:: runtime.world_size], threads, report, shown)
    runtime.accelerator.wait_for_everyone()
    report.written += others


def help_ranks(folder: Path, job: Job, runtime: Runtime, threads: int) -> WriteReport:
    """The other ranks' part: wait until rank 0 has opened the folder, then do a share.

    Raises:
        UserError, DiskError: as ``write_job``.
    """
    numbers = _broadcast(runtime, [])
    shards = job.shards()
    mine = [(number, shards[number]) for number in numbers[runtime.rank :: runtime.world_size]]
    report = WriteReport(folder, sum(len(shard) for _, shard in mine))
    with locked(folder, shared=True):
        write_shards(folder, job, mine, threads, report, None)
    runtime.accelerator.wait_for_everyone()
    return report


def _broadcast(runtime: Runtime, numbers: list[int]) -> list[int]:
    """Rank 0's numbers on every rank."""
    count = torch.tensor([len(numbers)], dtype=torch.int64, device=runtime.device)
    torch.distributed.broadcast(count, 0)
    data = torch.zeros(int(count.item()), dtype=torch.int64, device=runtime.device)
    if runtime.is_main:
        data.copy_(torch.tensor(numbers, dtype=torch.int64))
    torch.distributed.broadcast(data, 0)
    return [int(number) for number in data.tolist()]
