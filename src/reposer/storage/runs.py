"""Run folders: configuration, environment, metrics line by line, samples and checkpoints of one training.

    config.json       the resolved configuration; its presence makes the folder a run
    environment.json  versions, processor, threads, git revision; no user names, no paths
    metrics.jsonl     one JSON object a line with "step"
    samples/*.png     sample grids
    checkpoints/      see reposer.storage.checkpoint

One process writes in a run folder at a time: a lock of the kernel, gone with the process however it ends.
Imports no torch.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import subprocess
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import reposer
from reposer.config import Config, differences, read_json, save_config
from reposer.errors import UserError
from reposer.storage.bounded import parse_json
from reposer.storage.files import disk_faults, sync_folder, write_atomic
from reposer.storage.lock import try_lock
from reposer.storage.paths import CHECKPOINTS, RefusedFileError, made_folder, read_regular, unlinked

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CONFIG, _ENVIRONMENT, _METRICS, _LOCK = "config.json", "environment.json", "metrics.jsonl", ".lock"
_MAX_METRICS_BYTES = 2**30
_PACKAGES = ("torch", "torchvision", "numpy", "accelerate", "safetensors", "pillow")


class RunFolder:
    """A run folder held for writing; use it as a context manager, or call :meth:`close`."""

    folder: Path

    def __init__(self, folder: Path) -> None:
        """Lock ``folder`` and open its metrics; use :meth:`create` or :meth:`open`."""
        self.folder = folder
        for name in (_METRICS, _LOCK, "samples", CHECKPOINTS, "tensorboard"):
            unlinked(folder, name)
        self._metrics = -1
        self._lock = _acquire(folder)
        try:
            with disk_faults(folder / _METRICS):
                self._metrics = os.open(
                    folder / _METRICS, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666
                )
                self._cut_torn_line()
        except BaseException:
            self.close()
            raise
        _held.add(self)

    @classmethod
    def create(
        cls, folder: str | os.PathLike[str], config: Config, extra: Mapping[str, Any] | None = None
    ) -> Self:
        """Start a run in a new or empty folder; ``extra`` (``Runtime.describe``) goes into environment.json.

        Raises:
            UserError: the folder holds a run already or foreign files, or another process is writing there.
        """
        folder = Path(folder)
        if RunFolder.exists(folder):
            raise UserError(f"{folder}: holds a run already", "resume it or choose another folder")
        # a start that was killed leaves these
        known = {
            _ENVIRONMENT,
            _METRICS,
            _LOCK,
            "samples",
            CHECKPOINTS,
        }
        foreign = (
            sorted(entry.name for entry in folder.iterdir() if entry.name not in known)
            if folder.is_dir()
            else []
        )
        if [name for name in foreign if ".tmp-" not in name]:
            raise UserError(f"{folder}: is not empty (holds {foreign[0]})", "choose a new folder for the run")
        with disk_faults(folder):
            for name in ("samples", CHECKPOINTS):
                made_folder(folder, name)
        run = cls(folder)
        if RunFolder.exists(folder):  # another process was quicker
            run.close()
            return cls.create(folder, config, extra)
        details = json.dumps(environment(extra or {}), indent=2)
        write_atomic(folder / _ENVIRONMENT, (details + "\n").encode())
        save_config(config, folder / _CONFIG)  # last: it makes the folder a run
        sync_folder(folder.parent)
        return run

    @classmethod
    def open(cls, folder: str | os.PathLike[str], config: Config) -> Self:
        """Go on with the run in ``folder``, which must have been started with the same configuration.

        Raises:
            UserError: no run there, another configuration (names the differing keys), or a process writing
                there.
        """
        folder = Path(folder)
        if not RunFolder.exists(folder):
            raise UserError(f"{folder}: holds no run (no {_CONFIG})", "check the path or start a new run")
        changed = differences(read_json(folder / _CONFIG), config)
        if changed:
            raise UserError(
                f"{folder}: holds a run of another configuration: {'; '.join(changed)}",
                "choose another folder or go back to the run's configuration",
            )
        return cls(folder)

    @staticmethod
    def exists(folder: str | os.PathLike[str]) -> bool:
        """Whether ``folder`` holds a run."""
        return (Path(folder) / _CONFIG).is_file()

    @property
    def checkpoints(self) -> Path:
        """Root for :mod:`reposer.storage.checkpoint`."""
        return self.folder / CHECKPOINTS

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl, at once in the hands of the kernel.

        ``values`` are numbers (also 0-dim tensors), texts, None or lists of these; NaN, infinity become null.
        """
        line = json.dumps({"step": int(step), **{key: _plain(value) for key, value in values.items()}}) + "\n"
        data = line.encode()
        with disk_faults(self.folder / _METRICS, len(data)):
            size = os.fstat(self._metrics).st_size
            try:
                while data:
                    data = data[os.write(self._metrics, data) :]
            except OSError:
                os.ftruncate(self._metrics, size)  # a full disk takes part of a line
                raise

    def rewind(self, step: int) -> None:
        """Drop the lines after ``step``: a resumed training writes them again."""
        kept = [line for line in read_metrics(self.folder) if line["step"] <= step]
        write_atomic(self.folder / _METRICS, "".join(json.dumps(line) + "\n" for line in kept).encode())
        os.close(self._metrics)
        self._metrics = os.open(self.folder / _METRICS, os.O_RDWR | os.O_APPEND)

    def save_sample(self, name: str, image: NDArray[np.uint8]) -> Path:
        """Write ``samples/<name>.png``; image (H, W, 3) uint8 RGB."""
        from reposer.images import encode_png  # here, because images imports torch

        path = self.folder / "samples" / f"{name}.png"
        write_atomic(path, encode_png(image))
        return path

    def close(self) -> None:
        """Let others write in the folder; a second call does nothing."""
        for descriptor in (self._metrics, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._metrics = self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _cut_torn_line(self) -> None:
        data = read_regular(self.folder / _METRICS, max_bytes=_MAX_METRICS_BYTES)
        if data and not data.endswith(b"\n"):
            os.ftruncate(self._metrics, data.rfind(b"\n") + 1)


def read_metrics(folder: str | os.PathLike[str], root: Path | None = None) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl in order; a last line that a kill tore is left out. Needs no lock.

    Raises:
        UserError: a line before the last is no JSON object with an integer "step"; names the row.
    """
    path = Path(folder) / _METRICS
    try:
        lines = read_regular(path, max_bytes=_MAX_METRICS_BYTES, root=root or path.parent).split(b"\n")
    except RefusedFileError as error:
        cause = error.__cause__
        reason = (cause.strerror if isinstance(cause, OSError) else None) or error.reason
        raise UserError(f"{path}: cannot be read: {reason}", "check the run folder") from error
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last line end is torn, or empty
        try:
            row = parse_json(line)
            if not isinstance(row["step"], int):
                raise TypeError
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}, row {number}: is no JSON object with a step", "delete this row"
            ) from error
        rows.append(row)
    return rows


def environment(extra: Mapping[str, Any]) -> dict[str, Any]:
    """What a result depends on besides the configuration: versions, processor, revision, and ``extra``."""
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "reposer": reposer.__version__,
        "git": _git_revision(),
        "python": platform.python_version(),
        "packages": versions,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        **extra,
    }


def _git_revision() -> str | None:
    """Commit of the source tree that runs, "+changes" added when it differs; None outside a checkout."""
    here = Path(__file__).parents[1]
    answers = []
    # The first call fails for a package installed inside somebody else's repository.
    for arguments in (
        ["ls-files", "--error-unmatch", "storage/runs.py"],
        ["rev-parse", "HEAD"],
        ["status", "--porcelain", "."],
    ):
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=here, capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        answers.append(done.stdout.strip())
    return answers[1] + ("+changes" if answers[2] else "")


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):  # tensor or numpy number
        value = value.item()
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _acquire(folder: Path) -> int:
    """Take the folder's lock, or say that it is taken; flock ends with its process, also by a kill."""
    with disk_faults(folder / _LOCK):
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        if try_lock(lock):
            return lock
        refusal = UserError(f"{folder}: another process is writing in this run", "wait for it or stop it")
    except OSError as error:
        problem = f"{folder}: cannot be locked: {error.strerror}"
        refusal = UserError(problem, "choose a folder on a local disk")
    os.close(lock)
    raise refusal


_held: weakref.WeakSet[RunFolder] = weakref.WeakSet()


def _forget_in_child() -> None:
    # A forked data worker that outlives a killed trainer would keep the lock by its copy of the descriptor.
    for run in list(_held):
        run.close()


os.register_at_fork(after_in_child=_forget_in_child)
