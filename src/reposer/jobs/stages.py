"""Stages of a study: each is made once, kept under the hash of all it depends on, by any number of processes.

A stage's key is the sha256 of its kind, its inputs (settings and content hashes, never names) and the keys of
the stages it needs; so arms of a study, and studies in one folder, share what is the same. Its folder
``stages/<kind>-<key>/`` is complete once ``done.json`` is there, which holds the sha256 of the files that
others read. A stage that was killed is made again in the folder it left: makers go on from what they find.

Who makes a stage holds a lock of the kernel on its folder, which is gone with the process however that ends:
there are no stale locks to judge. Other processes take the next stage that is ready, or wait.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType
from typing import Any

from reposer.config import canonical_json, read_json
from reposer.errors import UserError
from reposer.jobs.executors import end_with_parent, spawning
from reposer.storage.files import sha256_bytes, sha256_file, write_atomic
from reposer.storage.lock import held
from reposer.storage.outputs import MARK, OUTPUTS, SEAL, seal_faults, write_seal
from reposer.storage.paths import (
    check_name,
    contained,
    made_folder,
    require_inside,
    require_regular,
    unlinked,
)

STAGES, DONE, _INPUTS, _LOCK = "stages", "done.json", "inputs.json", ".lock"
_WAIT = 0.5  # seconds between two looks for a stage that is ready


@dataclass(frozen=True)
class Stage:
    """A piece of work and everything that its result depends on."""

    kind: str  # first part of the folder's name
    title: str  # for people; no part of the key
    inputs: Mapping[str, Any]  # JSON
    make: Callable[[Path], Sequence[str]] = field(compare=False)  # works in a folder; names the files to seal
    needs: tuple[Stage, ...] = ()

    @cached_property
    def key(self) -> str:
        """Hexadecimal sha256."""
        needs = [stage.key for stage in self.needs]
        return sha256_bytes(canonical_json({"kind": self.kind, "inputs": self.inputs, "needs": needs}))

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.kind}-{self.key[:20]}"


def in_order(targets: Sequence[Stage]) -> list[Stage]:
    """Every stage that the targets rest on, each once, what is needed before what needs it."""
    found: dict[str, Stage] = {}

    def visit(stage: Stage) -> None:
        if stage.key not in found:
            for need in stage.needs:
                visit(need)
            found[stage.key] = stage

    for target in targets:
        visit(target)
    return list(found.values())


class StageCache:
    """The stages of a folder.

    Args:
        root: holds ``stages/``, which is made with the first one.
    """

    def __init__(self, root: Path) -> None:
        self.root = root / STAGES
        self._done: set[str] = set()

    def folder(self, stage: Stage) -> Path:
        """Where a stage lies, or will lie."""
        return self.root / stage.name

    def is_done(self, stage: Stage) -> bool:
        """Whether a stage is complete."""
        if stage.key not in self._done and (self.folder(stage) / DONE).is_file():
            self._done.add(stage.key)
        return stage.key in self._done

    def _own_folder(self, stage: Stage) -> Path:
        """As :meth:`folder`, refused where it is a link out of the study."""
        return contained(self.root.parent, f"{STAGES}/{stage.name}")

    def file(self, stage: Stage, name: str) -> Path:
        """A sealed file of a complete stage.

        Raises:
            UserError: the stage is not complete, or the file is not as it was written.
        """
        folder = self._own_folder(stage)
        done = read_json(folder / DONE)
        files = done.get("files")
        sealed = (
            files.get(name) if isinstance(files, dict) and done.get("stage", stage.key) == stage.key else None
        )
        path = contained(folder, name)
        if sealed is None or not path.is_file() or sha256_file(path) != sealed:
            raise UserError(f"{path}: differs from its sha256", f"delete {folder} and run the study again")
        return path

    def seconds(self, stage: Stage) -> float:
        """What the last attempt at a complete stage took."""
        return float(read_json(self._own_folder(stage) / DONE)["seconds"])

    def make(self, stage: Stage, on_start: Callable[[Stage], None] = lambda stage: None) -> bool:
        """Make a stage whose needs are complete; False where another process is at it or has done it."""
        folder = self.folder(stage)
        made_folder(self.root.parent, f"{STAGES}/{stage.name}")
        with held(folder / _LOCK) as mine:
            if not mine or (folder / DONE).is_file():
                return False
            inputs = {"kind": stage.kind, "title": stage.title, "inputs": dict(stage.inputs)}
            inputs["needs"] = [need.name for need in stage.needs]
            write_atomic(folder / _INPUTS, (json.dumps(inputs, indent=1) + "\n").encode())
            on_start(stage)
            started = time.monotonic()
            files = {name: sha256_file(contained(folder, name)) for name in stage.make(folder)}
            record = {"stage": stage.key, "seconds": round(time.monotonic() - started, 3), "files": files}
            record["sha256"] = sha256_bytes(canonical_json(record))
            write_atomic(folder / DONE, (json.dumps(record, indent=1) + "\n").encode())
        return True


def seal_study(root: Path) -> None:
    """Seal a finished study: its configuration, tables, pictures, and the record of every stage."""
    names = [name for name in ("study.json", "sections.json") if (root / name).is_file()]
    names += [path.name for kind in ("table.*", "mistakes.*") for path in root.glob(kind)]
    pictures = (path for path in (root / "pictures").rglob("*") if path.is_file() and path.name != OUTPUTS)
    names += [path.relative_to(root).as_posix() for path in pictures]
    for folder in (root / STAGES).iterdir():
        names += [f"{STAGES}/{folder.name}/{name}" for name in (DONE, _INPUTS)]
    write_seal(root, names)


def study_faults(root: Path) -> list[str]:
    """Everything in a study that is not as it was written, a line each; unfinished stages are left out.

    A stage's folder is named by the hash of its inputs and of those of the stages it needs, so that a stage
    in another's place is found; its record says whose it is.
    """
    faults: list[str] = []
    newer = False
    keys: dict[str, str] = {}
    for folder in sorted(contained(root, STAGES).iterdir()):
        try:
            require_inside(folder, root)
            if not (folder / DONE).is_file():
                continue
            done = read_json(folder / DONE)
            newer = newer or "stage" in done
            faults += _stage_faults(root, folder, done, keys)
        except UserError as error:
            faults.append(str(error))
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
            faults.append(f"{folder}: its {DONE} or {_INPUTS} is not what was written")
    finished = newer and (root / "table.md").is_file()
    return faults + seal_faults(root, {MARK: SEAL} if finished else None)


def _stage_faults(root: Path, folder: Path, done: dict[str, Any], keys: dict[str, str]) -> Iterator[str]:
    key = _key_of(root, folder.name, keys)
    if folder.name.rpartition("-")[2] != key[:20]:
        yield f"{folder / _INPUTS}: is of another stage"
    if "stage" in done:
        body = {name: value for name, value in done.items() if name != "sha256"}
        if done.get("sha256") != sha256_bytes(canonical_json(body)):
            yield f"{folder / DONE}: is not what was written"
        elif done["stage"] != key:
            yield f"{folder / DONE}: is of another stage"
    for name, digest in done["files"].items():
        path = contained(folder, name)
        if not path.is_file():
            yield f"{path}: is missing"
        elif sha256_file(path) != digest:
            yield f"{path}: differs from its sha256 in {DONE}"


def _key_of(root: Path, name: str, keys: dict[str, str]) -> str:
    """The key of a stage by what its folder says of its inputs, and those of the stages it needs.

    Args:
        keys: those found so far, by name: each record is read once, however often others need it.
    """
    if check_name(name) not in keys:
        keys[name] = ""  # begun: who needs it now needs itself
        said = read_json(contained(root, f"{STAGES}/{name}/{_INPUTS}"), root=root)
        needs = [_key_of(root, need, keys) for need in said["needs"]]
        whole = {"kind": said["kind"], "inputs": said["inputs"], "needs": needs}
        keys[name] = sha256_bytes(canonical_json(whole))
    if not keys[name]:
        raise ValueError("stages that need each other, or rest on a damaged one")
    return keys[name]


def work(
    cache: StageCache,
    stages: Sequence[Stage],
    *,
    on_start: Callable[[Stage], None] = lambda stage: None,
) -> None:
    """Make stages until all are complete, next to any other process that does the same in this folder.

    Args:
        stages: as :func:`in_order` gives them.
        on_start: called with each stage that this process begins.
    """
    while left := [stage for stage in stages if not cache.is_done(stage)]:
        ready = (stage for stage in left if all(cache.is_done(need) for need in stage.needs))
        if not any(cache.make(stage, on_start) for stage in ready):
            time.sleep(_WAIT)


def seconds_left(cache: StageCache, stages: Sequence[Stage], workers: int) -> float | None:
    """Estimate from the mean time of the complete stages of each kind; None before the first one is."""
    times: dict[str, list[float]] = {}
    for stage in stages:
        if cache.is_done(stage):
            times.setdefault(stage.kind, []).append(cache.seconds(stage))
    every = [value for values in times.values() for value in values]
    if not every:
        return None
    left = [stage for stage in stages if not cache.is_done(stage)]
    means = (times.get(stage.kind, every) for stage in left)
    return sum(sum(values) / len(values) for values in means) / max(1, workers)


# ---- Several processes at the stages of one folder, each with its own log; a line now and then says how far.

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
    for number in range(workers):
        log = _log_of(root, number)
        if os.path.lexists(log):
            require_regular(log)
    context = multiprocessing.get_context("spawn")
    with spawning(**({} if threads is None else dict.fromkeys(_THREADS, str(threads)))):
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
    """Wait for the workers, say how far they are, and stop all when one fails."""
    last, shown = "", -_LINE_EVERY
    while any(process.is_alive() for process in running):
        _refuse_failed(root, running)
        line = progress_line(cache, stages, len(running))
        if line != last and time.monotonic() - shown >= _LINE_EVERY:
            print(f"study: {line}", file=sys.stderr)
            last, shown = line, time.monotonic()
        time.sleep(_LOOK)
    _refuse_failed(root, running)
    print(f"study: {progress_line(cache, stages, len(running))}", file=sys.stderr)


def _log_of(root: Path, number: int) -> Path:
    """Where a worker writes what it says; never through a link."""
    return unlinked(root, f"{LOGS}/{number}.log")


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
    # however the parent ends, a training saves and stops; any other stage just stops
    end_with_parent(partial(os.kill, os.getpid(), signal.SIGTERM))
    log = os.open(_log_of(root, number), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
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


def _use_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


@contextmanager
def _ends_on_sigterm() -> Any:
    """SIGTERM ends this process as an exception does, so that the workers stop too."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    earlier = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)
