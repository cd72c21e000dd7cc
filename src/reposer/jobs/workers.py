"""Tasks in several processes of one machine, which end with their parent. Imports no torch."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any, TypeVar

from reposer.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")


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
        with blind_to_the_present_folder():
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
def blind_to_the_present_folder() -> Iterator[None]:
    """Processes that are spawned here import no json.py of the folder that the user stands in."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


class _Worker:
    """What a spawned process keeps between its tasks."""

    work: Callable[[Any], Any] | None = None
    refusal: tuple[str, str] | None = None


def _initialize(begin: Callable[[], Callable[[Any], Any]]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _Worker.work = begin()
    except UserError as error:  # an error here would only be reported as "a process died"
        _Worker.refusal = (error.problem, error.advice)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(task: Any) -> tuple[Any, tuple[str, str] | None]:
    if _Worker.refusal is not None:
        return None, _Worker.refusal
    assert _Worker.work is not None, "the initializer ran before"
    try:
        return _Worker.work(task), None
    except UserError as error:
        return None, (error.problem, error.advice)
