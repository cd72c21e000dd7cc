"""A job by many workers, on one machine or on many: planned once, worked at by whoever comes, finished once.

    plan     the job's record and shards, and ``.claims/plan.json``; under the folder's lock
    work     any number of processes, at any time: each claims shard after shard (``claims.py``), first its
             own, then what others have left or lost; the folder's lock is held in common
    finish   looks at every shard, names those that are missing, and ends the job; under the lock

The steps together write what one process writes, byte for byte. Imports no torch.
"""

from __future__ import annotations

import os
import secrets
import shlex
import socket
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from reposer import __version__
from reposer.errors import UserError, known
from reposer.jobs.claims import PLAN, Claims, Plan, is_planned
from reposer.jobs.shards import (
    CLAIMS,
    Executor,
    Job,
    Progress,
    Shard,
    Work,
    clear_staging,
    counting,
    named_disk_faults,
    opened,
    refuse_another,
    run_job,
    unfinished,
)
from reposer.storage.files import remove_tree, write_atomic
from reposer.storage.lock import locked
from reposer.storage.manifest import MANIFEST, is_sealed, part_path, seal_path
from reposer.storage.paths import delete, made_folder, printable, unlinked

STEPS = ("all", "plan", "work", "finish")
LEASE = 120.0  # seconds; longer than a network disk may show an old size
_SHOWN = 12  # shards or ranges in a message

Finished = TypeVar("Finished")


@dataclass(frozen=True, slots=True)
class RayCluster:
    """Workers as tasks of Ray."""

    address: str | None = None  # of a cluster, or "auto"; None: one of this machine's own, for this job
    cpus: float = 1.0  # of each worker
    gpus: float = 0.0  # of each worker; a fraction shares one


@dataclass(frozen=True, slots=True)
class Step:
    """Which part of a job this process does."""

    name: str = "all"  # one of STEPS
    shard: tuple[int, int] | None = None  # i of n: which shards to begin with; None: as the scheduler says
    lease: float = LEASE  # seconds; of "plan"
    engine: RayCluster | None = None  # that starts the workers of all steps; None: the user does

    def __post_init__(self) -> None:
        known("step", self.name, STEPS)
        if self.shard is not None and not 0 <= self.shard[0] < self.shard[1]:
            i, n = self.shard
            raise UserError(f"--shard {i}/{n}: is out of range", f"of {n} workers the last is {n - 1}/{n}")
        if not 1 <= self.lease <= 86_400:
            raise UserError(f"--lease {self.lease:g}: is out of range", "give 1 to 86400 seconds")


def parse_shard(text: str) -> tuple[int, int]:
    """ "3/7" -> (3, 7).

    Raises:
        UserError: anything else.
    """
    i, slash, n = text.partition("/")
    if not slash or not all(part.isascii() and part.isdigit() and len(part) < 10 for part in (i, n)):
        raise UserError(
            f"--shard {text[:40]!r}: is no shard", "write I/N, as 0/7 for the first of seven workers"
        )
    return int(i), int(n)


def scheduled_shard(environment: Mapping[str, str]) -> tuple[int, int] | None:
    """Which worker of how many this is, as SLURM, torchrun or Kubernetes says; None: none of them.

    It only says where to begin, so numbers that leave gaps, or a count that is not known, cost nothing.
    """

    def number(name: str) -> int | None:
        text = environment.get(name, "")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None

    def pair(index: str, count: str) -> tuple[int, int] | None:
        here, of = number(index), number(count)
        return (here % of, of) if here is not None and of else None

    array = pair("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT")
    tasks = pair("SLURM_PROCID", "SLURM_NTASKS")
    if array is not None:
        i, n = tasks or (0, 1)
        return array[0] * n + i, array[1] * n
    if (index := number("JOB_COMPLETION_INDEX")) is not None:
        return index, index + 1  # of how many is not told
    return pair("RANK", "WORLD_SIZE") or tasks


def refuse_groups(step: Step | None, processes: int, ranks: int = 1) -> None:
    """Refuse a step in several processes that were started together: workers are started one by one.

    Raises:
        UserError: a step is wanted, and so are several processes.
    """
    if step is not None and step.name != "all" and max(processes, ranks) > 1:
        many = f"--processes {processes}" if processes > 1 else f"a group of {ranks} processes"
        raise UserError(f"--step {step.name} with {many}", "start one process for each worker instead")


def take_step(
    step: Step,
    job: Job,
    executor: Executor,
    work: Work,
    *,
    on_progress: Progress = None,
    before: Callable[[], None] | None = None,
    after: Callable[[], None] | None = None,
) -> None:
    """Do a part of a job, or all of it: :func:`~reposer.jobs.shards.run_job`, whose arguments these are.

    Args:
        before: called by the step "plan".
        after: called by the step "finish".
    """
    if step.name == "all":
        run_job(job, executor, work, on_progress=on_progress, before=before, after=after)
    elif step.name == "plan":
        _plan(job, work, step, before)
    elif step.name == "work":
        _work(job, executor, work, step, on_progress)
    else:
        _finish(job, work, on_progress, after)


def _plan(job: Job, work: Work, step: Step, before: Callable[[], None] | None) -> None:
    book = job.folder.book
    with opened(job, work):
        if before is not None:
            before()
        shards = job.shards(work.notes)
        todo = unfinished(job, shards, work.notes)
        for shard in todo:  # a seal says that there is nothing to do
            _unseal(book, shard.number)
        work.items = sum(len(shard.items) for shard in shards)
        work.kept = work.items - sum(len(shard.items) for shard in todo)
        earlier = Plan.of(book) if is_planned(book) else None
        if earlier is None or earlier.version != __version__ or earlier.lease != step.lease:
            remove_tree(unlinked(book, CLAIMS))
            plan = Plan(secrets.token_hex(8), __version__, step.lease)
            made_folder(book, f"{CLAIMS}/{plan.id}")
            write_atomic(book / CLAIMS / PLAN, plan.data())
        again = "was planned before" if earlier else "is planned"
        work.said = f"{again}: {len(todo):,} of {len(shards):,} shards are to be made"
        if todo:
            work.notes.append("next: the same command with --step work, by any number of workers")
        work.notes.append(f"{'then' if todo else 'next'}: the same command with --step finish")


def _work(job: Job, executor: Executor, work: Work, step: Step, on_progress: Progress) -> None:
    book = job.folder.book
    plan = Plan.of(book)
    if plan.version != __version__:
        problem = (
            f"{printable(book)}: was planned by reposer {printable(plan.version)}, and this is {__version__}"
        )
        raise UserError(problem, "install one version for all workers, or plan again with this one")
    with named_disk_faults(job, work), locked(book, shared=True, notes=work.notes):
        refuse_another(job, work.notes)
        shards = job.planned()
        numbers = {shard.number: shard for shard in shards}
        order = _in_turn(shards, step.shard or scheduled_shard(os.environ) or (0, 1))
        work.items = sum(len(shard.items) for shard in shards)
        work.kept = sum(len(s.items) for s in shards if is_sealed(part_path(book, s.number)))
        show = counting(work, on_progress)
        started = time.monotonic()
        with Claims(book, plan) as claims:
            wanted: Collection[int] = order
            while wanted:
                claimed = claims.taken(numbers, wanted)
                first = next(claimed, None)
                if first is not None:
                    with closing(executor(job.folder, chain([first], claimed), show)) as durable:
                        for items in durable:
                            work.written += items
                wanted = claims.given_up(order)
            left = claims.left(order)
        work.seconds = time.monotonic() - started
        work.said = f"{work.written:,} {job.unit} made here{work.speed()}"
        if left:
            work.notes.append(f"{_ranges(left)}: being made by others; finish when they are done")
        else:
            work.notes.append("every shard is made; next: the same command with --step finish")


def _finish(job: Job, work: Work, on_progress: Progress, after: Callable[[], None] | None) -> None:
    book = job.folder.book
    Plan.of(book)
    with named_disk_faults(job, work), locked(book, notes=work.notes):
        refuse_another(job, work.notes)
        shards = job.planned()
        work.items = sum(len(shard.items) for shard in shards)
        missing, reasons = [], []
        for shard in shards:
            part = part_path(book, shard.number)
            fault = job.fault(part, shard) if is_sealed(part) else "-"
            if fault:
                missing.append(shard.number)
                _unseal(book, shard.number)  # workers make it again
                reasons += [f"{shard.number}: {fault}"] if fault != "-" else []
            else:
                work.kept += len(shard.items)
                if on_progress is not None:
                    on_progress(work.kept, work.items)
        if missing:
            why = f" ({'; '.join(reasons[:3])})" if reasons else ""
            count = f"{len(missing):,} of {len(shards):,} shards are missing"
            raise UserError(
                f"{printable(book)}: {count}: {_ranges(missing)}{why}",
                "let workers make them (--step work), then finish",
            )
        clear_staging(job.folder)
        if after is not None:
            after()
        remove_tree(unlinked(book, CLAIMS))


def _unseal(book: Path, number: int) -> None:
    delete(book, f"{MANIFEST}/{seal_path(part_path(book, number)).name}")


def _in_turn(shards: Sequence[Shard], mine: tuple[int, int]) -> list[int]:
    """The numbers of all shards: those of worker i of n first, then those of the workers after it."""
    i, n = mine
    return [shard.number for k in range(n) for shard in shards[(i + k) % n :: n]]


def _ranges(numbers: Sequence[int]) -> str:
    """[3, 7, 8, 9] -> "3, 7-9"; a long list is cut."""
    texts: list[list[int]] = []
    for number in sorted(numbers):
        if texts and texts[-1][-1] == number - 1:
            texts[-1][1:] = [number]
        else:
            texts.append([number])
    shown = ", ".join("-".join(map(str, ends)) for ends in texts[:_SHOWN])
    return shown + (", ..." if len(texts) > _SHOWN else "")


# ---- SLURM


def slurm_script(command: Sequence[str], verb: str, tasks: int, options: Sequence[str] = ()) -> str:
    """A shell script that submits a command as an array of workers, between a plan and a finish that wait.

    A task that is lost is started again by SLURM, and the others take over what it leaves. A study shares its
    stages by itself: its array is all there is.

    Args:
        command: what runs reposer, and its words.
        verb: of the command, for the jobs' names.
        tasks: of the array; more than there are shards do no harm.
        options: further ones of sbatch, for every job.

    Raises:
        UserError: no task is wanted.
    """
    if tasks < 1:
        raise UserError(f"--array {tasks}: no task", "give 1 or more")
    array = [f"--array=0-{tasks - 1}", "--requeue"]

    def submit(name: str, further: Sequence[str], waits: str, line: Sequence[str]) -> str:
        words = ["sbatch", "--parsable", f"--job-name=reposer-{verb}-{name}", *further, *options]
        waiting = f' --dependency="{waits}" --kill-on-invalid-dep=yes' if waits else ""
        return f"{name}=$({shlex.join(words)}{waiting} --wrap={shlex.quote(shlex.join(line))})"

    if verb == "study":
        lines = [submit("work", array, "", command), 'echo "array $work: the same study in every task"']
    else:
        lines = [
            submit("plan", (), "", [*command, "--step", "plan"]),
            submit("work", array, "afterok:${plan%%;*}", [*command, "--step", "work"]),
            "# whatever became of the tasks: it names the shards that are missing, and this script goes on",
            submit("finish", (), "afterany:${work%%;*}", [*command, "--step", "finish"]),
            'echo "plan $plan, array $work, finish $finish"',
        ]
    return "\n".join(["#!/bin/sh", "set -eu", *lines, ""])


# ---- Ray


_MOST_LOST = 10  # workers for each that was wanted: then something kills them all


def with_ray(do: Callable[[Step], Finished], step: Step, workers: int) -> Finished:
    """All steps of a job, the work by tasks of Ray, on any node that sees the job's folder.

    Args:
        do: does a step of the job in the process that calls it; pickled. What it returns holds, itself or as
            its ``work``, a :class:`~reposer.jobs.shards.Work`.
        step: names the cluster, and the lease.
        workers: how many at once; each takes shard after shard, and loads what it needs once.

    Returns:
        What the last step returned.

    Raises:
        UserError: Ray is not installed, no cluster answers, workers are lost again and again, or as ``do``.
    """
    cluster = step.engine or RayCluster()
    with _connected(cluster) as ray:
        while True:
            print(do(replace(step, name="plan", engine=None)), file=sys.stderr)
            _spread(ray, partial(_work_at, do), cluster, workers)
            done = do(replace(step, name="finish", engine=None))
            work: Any = getattr(done, "work", done)
            if not work.said:  # else the people are cut out of photos, and to be annotated yet
                return done


def spread_copies(do: Callable[[], object], cluster: RayCluster, workers: int) -> None:
    """The same call in so many tasks of Ray, of work that shares itself out, as the stages of a study do.

    Raises as :func:`with_ray`.
    """
    with _connected(cluster) as ray:
        _spread(ray, partial(_unnumbered, do), cluster, workers)


def _unnumbered(do: Callable[[], object], i: int, n: int) -> None:
    do()


def _work_at(do: Callable[[Step], object], i: int, n: int) -> None:
    do(Step("work", (i, n)))


def _spread(ray: Any, work: Callable[[int, int], None], cluster: RayCluster, workers: int) -> None:
    """Call ``work(i, workers)`` for each i in a task; one that is lost with its node is called again."""
    remote = ray.remote(num_cpus=cluster.cpus, num_gpus=cluster.gpus, max_retries=0)(_on_node)
    here = (os.getcwd(), {name: os.environ[name] for name in _PASSED if name in os.environ})
    running = {remote.remote(work, i, workers, *here): i for i in range(workers)}
    lost = 0
    while running:
        ready, _ = ray.wait(list(running), num_returns=1)
        i = running.pop(ready[0])
        try:
            refusal = ray.get(ready[0])
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except ray.exceptions.RayError as error:
            lost += 1
            reason = str(error).strip().splitlines()[0]
            print(f"ray: worker {i} was lost, and starts again: {reason}", file=sys.stderr)
            if lost > _MOST_LOST * workers:
                problem = f"ray: {lost} workers were lost, the last one so: {reason}"
                raise UserError(problem, "give each less to do at once, or more memory") from error
            running[remote.remote(work, i, workers, *here)] = i
            continue
        if refusal is not None:
            raise UserError(*refusal)


_PASSED = ("REPOSER_WEIGHTS", "HF_HUB_OFFLINE")  # of the environment, to the workers


def _on_node(
    work: Callable[[int, int], None], i: int, n: int, folder: str, environment: Mapping[str, str]
) -> tuple[str, str] | None:
    """In a process of Ray: relative paths mean what they meant where the job was started."""
    os.environ.update(environment)
    try:
        os.chdir(folder)
        work(i, n)
    except UserError as error:
        return error.problem, error.advice
    except FileNotFoundError as error:
        return (
            f"{socket.gethostname()}: {error.filename}: no such file",
            "every node must see the same folders",
        )
    return None


@contextmanager
def _connected(cluster: RayCluster) -> Iterator[Any]:
    """The module ``ray``, connected to a cluster until the block ends."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    os.environ.setdefault("RAY_worker_niceness", "0")  # of a cluster started here: as processes of our own
    try:
        import ray
    except ImportError as error:
        raise UserError("--engine ray: Ray is not installed", "pip install 'reposer[ray]'") from error
    if cluster.address not in (None, "auto", "local"):
        host, _, port = str(cluster.address).removeprefix("ray://").rpartition(":")
        try:  # Ray itself would try for a minute, and end this process
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, ValueError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            problem = f"--address {cluster.address}: no cluster of Ray answers there ({reason})"
            raise UserError(problem, "see `ray status`, and give HOST:PORT of its head") from error
    try:
        alone = {"include_dashboard": False} if cluster.address in (None, "local") else {}
        ray.init(cluster.address or "local", logging_level="ERROR", log_to_driver=True, **alone)
    except Exception as error:  # its own when a part of it does not start in time
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if cluster.address in (None, "local"):
            problem = f"--engine ray: Ray does not start on this machine ({reason})"
            raise UserError(problem, "try again, or give the --address of a cluster") from error
        problem = f"--address {cluster.address}: no cluster of Ray answers ({reason})"
        raise UserError(problem, "start one with `ray start --head`, or leave --address out") from error
    try:
        yield ray
    finally:
        ray.shutdown()
