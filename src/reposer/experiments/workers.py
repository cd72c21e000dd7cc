"""Several processes at the stages of one folder, each with its own log; a line now and then says how far."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType
from typing import Any

from reposer.errors import UserError
from reposer.experiments.stages import Stage, StageCache, seconds_left, work
from reposer.paths import made_folder
from reposer.worker_processes import blind_to_the_present_folder

Plan = Callable[[Path], Sequence[Stage]]  # the stages of a study's folder; a function of a module
LOGS = "workers"
_LINE_EVERY, _LOOK = 30.0, 0.2  # seconds between two lines, and between two looks at the workers
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def make_all(root: Path, plan: Plan, *, workers: int = 1, threads: int | None = None) -> None:
    """Make every stage of ``plan(root)``.

    With one worker in this process; else in ``workers`` processes that write to ``root``/workers/N.log. The
    same call may run several times at once on one folder: nothing is done twice.

    Args:
        threads: CPU threads of each worker.

    Raises:
        UserError: what a stage raised; with several workers, the last line of the log of the one that failed.
    """
    if workers < 1:
        raise UserError(f"--workers {workers}: one or more are needed")
    cache = StageCache(root)
    if workers == 1:
        stages = plan(root)
        _use_threads(threads)

        def tell(stage: Stage) -> None:
            print(f"study: {progress_line(cache, stages, 1)}; now {stage.title}", file=sys.stderr)

        work(cache, stages, on_start=tell)
        print(f"study: {progress_line(cache, stages, 1)}", file=sys.stderr)
        return
    made_folder(root, LOGS)
    context = multiprocessing.get_context("spawn")
    with _environment(threads), blind_to_the_present_folder():
        running = [
            context.Process(target=_worker, args=(root, plan, n, threads), name=f"worker {n}")
            for n in range(workers)
        ]
        for process in running:
            process.start()
    with _ends_on_sigterm():
        try:
            _watch(root, cache, plan(root), running)
        finally:
            for process in running:
                process.terminate()  # it saves and ends; one that has ended does not mind
            for process in running:
                process.join()


def progress_line(cache: StageCache, stages: Sequence[Stage], workers: int) -> str:
    """For example ``12 of 96 stages, about 1:05:00 left``."""
    done = sum(cache.is_done(stage) for stage in stages)
    seconds = seconds_left(cache, stages, workers)
    text = f"{done} of {len(stages)} stages"
    if seconds is None or done == len(stages):
        return text
    minutes, rest = divmod(round(seconds), 60)
    return f"{text}, about {minutes // 60}:{minutes % 60:02d}:{rest:02d} left"


def _watch(root: Path, cache: StageCache, stages: Sequence[Stage], running: list[SpawnProcess]) -> None:
    """Wait for the workers, tell how far they are, and stop all when one fails."""
    told, shown = "", -_LINE_EVERY
    while any(process.is_alive() for process in running):
        _refuse_failed(root, running)
        line = progress_line(cache, stages, len(running))
        if line != told and time.monotonic() - shown >= _LINE_EVERY:
            print(f"study: {line}", file=sys.stderr)
            told, shown = line, time.monotonic()
        time.sleep(_LOOK)
    _refuse_failed(root, running)
    print(f"study: {progress_line(cache, stages, len(running))}", file=sys.stderr)


def _refuse_failed(root: Path, running: list[SpawnProcess]) -> None:
    for number, process in enumerate(running):
        if process.exitcode:
            log = root / LOGS / f"{number}.log"
            lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
            reason = lines[-1] if lines else f"code {process.exitcode}"
            advice = "mend it and run the study again: finished stages are kept"
            raise UserError(f"{log}: worker {number} stopped: {reason}", advice)


def _worker(root: Path, plan: Plan, number: int, threads: int | None) -> None:
    """A process of its own: everything it says goes to its log."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    log = os.open(root / LOGS / f"{number}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(log, 1)
    os.dup2(log, 2)
    _use_threads(threads)

    def tell(stage: Stage) -> None:
        print(f"{time.strftime('%H:%M:%S')} {stage.name}: {stage.title}", flush=True)

    try:
        work(StageCache(root), plan(root), on_start=tell)
    except UserError as error:
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr, flush=True)
        sys.exit(1)


def _end_with_parent() -> None:
    """However the parent ends, a training saves and stops; any other stage just stops."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _use_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


@contextmanager
def _environment(threads: int | None) -> Any:
    """Threads of libraries that read them only when they are loaded, for the processes started inside."""
    earlier = {name: os.environ.get(name) for name in _THREADS}
    if threads is not None:
        os.environ.update(dict.fromkeys(_THREADS, str(threads)))
    try:
        yield
    finally:
        for name, value in earlier.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _ends_on_sigterm() -> Any:
    """SIGTERM ends this process as an exception does, so that the workers are told too."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    earlier = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)
