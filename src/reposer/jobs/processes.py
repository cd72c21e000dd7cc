"""Several processes write one job: each whole shards, so that the tree does not depend on their number.

Two ways to have them: spawned by this process (``write_in_processes``), or started by torchrun
(``write_with_ranks`` on rank 0, ``help_ranks`` on the others). All hold the folder's lock in common, and
spawned ones end with their parent, however that ends, so that nobody writes behind a new start's back.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch

from reposer.errors import UserError
from reposer.jobs.shards import Job, Progress, WriteReport, write_shards
from reposer.jobs.workers import run_in_processes
from reposer.runtime import Runtime
from reposer.storage.lock import locked

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
    try:
        for written in run_in_processes(partial(_begin, make_job, folder, threads), todo, processes):
            report.written += written
            if on_progress is not None:
                on_progress(report.kept + report.written, job.items)
    except BrokenProcessPool as error:
        done = f"{report.kept + report.written:,} of {job.items:,} pictures"
        raise UserError(
            f"{folder}: a process ended early after {done} (killed, or out of memory)",
            "run it again, it goes on from there; fewer processes need less memory",
        ) from error


_LOCK = ExitStack()  # of a spawned process, for as long as it lives


def _begin(make_job: Callable[[], Job], folder: Path, threads: int) -> Callable[[tuple[int, range]], int]:
    """In a new process: hold the folder; returns what makes one shard and tells the number of its files."""
    _LOCK.enter_context(locked(folder, shared=True))
    job = make_job()

    def write(task: tuple[int, range]) -> int:
        report = WriteReport(folder, len(task[1]))
        write_shards(folder, job, [task], threads, report, None)
        return report.written

    return write


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
