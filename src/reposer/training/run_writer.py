"""What every training writes (metrics, checkpoints, pictures, a summary), and how a run goes on."""

from __future__ import annotations

import functools
import logging
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, WandBTracker
from numpy.typing import NDArray

from reposer.config import config_hash, read_json
from reposer.errors import LARGEST, LARGEST_SEED, UserError, find
from reposer.runtime import Runtime
from reposer.storage import checkpoint
from reposer.storage.checkpoint import INPUTS, PREPARED, Checkpoint
from reposer.storage.files import sha256_bytes
from reposer.storage.outputs import MARK, SEAL, write_seal
from reposer.storage.paths import CHECKPOINTS, printable
from reposer.storage.runs import RunFolder
from reposer.training.config import TrainingConfig
from reposer.training.state import FOREIGN, TrainingState

_EVER_PINNED = ("generated", "teacher")  # also by runs from before the data were pinned
_READ_AT_START = ("start_from", "initial")  # not needed to go on from a checkpoint
_log = logging.getLogger(__name__)


class Written(Protocol):
    """What a run folder keeps of a training."""

    @property
    def config(self) -> TrainingConfig:
        """Everything that the result depends on."""

    @property
    def state(self) -> TrainingState:
        """Everything that changes."""

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole schedule."""

    @property
    def counted(self) -> str:
        """What a speed counts: images or pairs."""

    @property
    def wrote(self) -> str:
        """What lies in the folder afterwards, for the summary."""

    @property
    def notes(self) -> Mapping[str, Any]:
        """What a reader of the run should know, for environment.json."""

    def inputs(self, new: bool) -> dict[str, str]:
        """sha256 of everything that the configuration names only by its place; ``PREPARED`` is always there.

        A run goes on with these inputs only.

        Args:
            new: the run begins; else it goes on from a checkpoint.
        """

    def facts(self) -> dict[str, Any]:
        """JSON values that a user of the network must know without the data at hand; go into checkpoints."""

    def begin(self) -> None:
        """Called before the first step of a new run."""


@dataclass(frozen=True, slots=True)
class TrainingSummary:
    """What a call of a training came to."""

    folder: Path  # the run folder
    step: int  # optimizer steps done in all
    total_steps: int
    minutes: float  # of this call
    last: dict[str, float]  # the last figures of each name
    wrote: str  # what lies in the folder

    @property
    def finished(self) -> bool:
        """Whether the whole schedule is done."""
        return self.step >= self.total_steps

    def __str__(self) -> str:
        state = "finished" if self.finished else "stopped; the same command goes on from here"
        figures = ", ".join(f"{name} {value:.4g}" for name, value in self.last.items())
        lines = [f"step {self.step} of {self.total_steps}, {self.minutes:.1f} minutes, {state}", figures]
        return "\n".join(line for line in [*lines, f"{self.folder}: {self.wrote}"] if line)


class RunWriter:
    """The run folder of a training, and everything that is written there.

    All processes make the same calls; the first one writes.

    Args:
        task: its configuration must be that of the run, if there is one in ``folder``; its state is put back
            to the newest good checkpoint of the folder.
        folder: new, empty, or a run to go on with.
        runtime: device and process group.
        trackers: keys of TRACKERS, which are sent every figure, and no picture.

    Raises:
        UserError: an unknown tracker, or one that is not installed; the folder's name is no UTF-8, or it
            holds a run of another configuration, foreign files, only damaged checkpoints or those of another
            run; or an input is not the one that the run was started with.
    """

    def __init__(self, task: Written, folder: Path, runtime: Runtime, trackers: Sequence[str] = ()) -> None:
        self.folder, self.last = folder, dict[str, float]()
        self._task, self._state, self._runtime = task, task.state, runtime
        self._hash, self._output = config_hash(task.config), task.config.output
        self._started = time.monotonic()
        self._run: RunFolder | None = None
        self._tracker: TensorBoardTracker | None = None
        self._others: list[GeneralTracker] = []
        for name in trackers:
            find("tracker", name, TRACKERS)
            if find_spec(name) is None:
                raise UserError(f"--tracker {name}: is not installed here", f"pip install {name}")
        if any("\ud800" <= letter <= "\udfff" for letter in str(folder)):
            problem = f"{printable(folder)}: TensorBoard writes into no folder whose name is no UTF-8"
            raise UserError(problem, "choose another --out")
        if runtime.is_main:
            self._run = self._opened()
        runtime.accelerator.wait_for_everyone()
        try:
            self._saved_step = self._resume()
            if self._run is not None:
                self._run.rewind(self._state.step)
                if self._saved_step >= 0:
                    self._seal()
                self._tracker = _tensorboard(folder, self._state.step + 1)
                for name in trackers:
                    other = TRACKERS[name](folder, self._hash)
                    other.start()
                    self._others.append(other)
        except BaseException:
            self.close()
            raise

    def _opened(self) -> RunFolder:
        """The run in the folder, or a new one."""
        config = self._task.config
        if RunFolder.exists(self.folder):
            return RunFolder.open(self.folder, config)
        known = {INPUTS: self._task.inputs(new=True), MARK: SEAL}
        return RunFolder.create(
            self.folder, config, {**self._runtime.describe(), **self._task.notes, **known}
        )

    def _resume(self) -> int:
        """Put the state back; returns the step of the newest good checkpoint, -1 where there is none."""
        found = checkpoint.of_run(self.folder)
        self._inputs = self._held(found)
        if found is None:
            self._task.begin()
            return -1
        with checkpoint.damage(found.path / checkpoint.META, FOREIGN):
            _check_entries(found.meta, self._state)
            differences = self._state.restore(found, self._runtime)
        if differences and self._runtime.is_main:
            _log.warning("resumed run will not be bit-identical: %s", "; ".join(differences))
        return found.step

    def _held(self, found: Checkpoint | None) -> dict[str, str]:
        """The inputs of the run, once they are those that it was started with.

        Raises:
            UserError: an input has changed.
        """
        now = self._task.inputs(new=found is None)
        if found is None:
            environment = self.folder / "environment.json"
            before = read_json(environment).get(INPUTS) if environment.is_file() else None
        else:
            before = found.meta.get(INPUTS)
        pins = before if isinstance(before, dict) else {}
        if PREPARED not in pins:  # from before all inputs were pinned
            self._refuse(pins, {name: digest for name, digest in now.items() if name in _EVER_PINNED})
            if self._runtime.is_main and PREPARED in now:
                _log.warning("%s: was started before runs pinned their data: not compared", self.folder)
            return now
        if found is not None:
            now |= {name: pins[name] for name in _READ_AT_START if name in pins}
        self._refuse(pins, now)
        return now

    def _refuse(self, before: Mapping[str, Any], now: Mapping[str, str]) -> None:
        changed = sorted(k for k in {**before, **now} if before.get(k) != now.get(k))
        if changed:
            raise UserError(
                f"{self.folder}: {' and '.join(changed)} changed since the run was started",
                "put back what it was started with, or choose another folder for a new run",
            )

    def log(self, rate: float, per_second: float) -> None:
        """Write the means since the last time."""
        means = self._state.means.means()
        self._state.means.clear()
        if self._runtime.world_size > 1:
            means = self._runtime.accelerator.reduce(means, "mean")
        figures = {name: float(value) for name, value in means.items()}
        self.write(figures | {"lr": rate, f"{self._task.counted}_per_second": per_second})

    def save(self) -> None:
        """Write a checkpoint of this step unless there is one, then remove the oldest."""
        if self._saved_step == self._state.step:
            return
        groups, meta = self._state.pack(self._runtime.accelerator)
        if self._run is not None:
            meta |= {"config_hash": self._hash, **self._task.facts(), INPUTS: self._inputs}
            checkpoint.save(self._run.checkpoints, self._state.step, groups, meta)
            self._seal()  # before older ones go: what it lists must be there whenever a kill comes
            checkpoint.prune(self._run.checkpoints, self._output.keep_last)
        self._saved_step = self._state.step
        self._runtime.accelerator.wait_for_everyone()

    def _seal(self) -> None:
        """Seal the run as it is at a checkpoint; metrics may grow; TensorBoard's files are not covered."""
        kept = [path for _, path in checkpoint.steps(self.folder / CHECKPOINTS)][: self._output.keep_last]
        names = [f"{CHECKPOINTS}/{path.name}/meta.sha256" for path in kept]
        names += [f"samples/{path.name}" for path in (self.folder / "samples").glob("*.png")]
        write_seal(self.folder, ["config.json", "environment.json", *names], grows=["metrics.jsonl"])

    def close(self) -> None:
        """Let others write in the folder."""
        for other in self._others:
            other.finish()
        self._others = []
        if self._tracker is not None:
            self._tracker.finish()
        if self._run is not None:
            self._run.close()

    def summary(self) -> TrainingSummary:
        """What this call came to."""
        minutes = (time.monotonic() - self._started) / 60
        wrote = self._task.wrote if self._tracker is None else f"{self._task.wrote}, tensorboard/"
        step, total = self._state.step, self._task.total_steps
        return TrainingSummary(self.folder, step, total, minutes, dict(self.last), wrote)

    def write(self, values: dict[str, float]) -> None:
        """Into metrics.jsonl and, where it is installed, TensorBoard, at the present step."""
        if not values:
            return
        self.last |= values
        if self._run is not None:
            self._run.log(self._state.step, values)
        if self._tracker is not None:
            self._tracker.log(values, self._state.step)
        for other in self._others:
            other.log(values, step=self._state.step)

    def show(self, grid: NDArray[np.uint8]) -> None:
        """Write a picture (H, W, 3) of the present step, in the first process."""
        if self._run is not None:
            self._run.save_sample(f"step_{self._state.step:08d}", grid)
        if self._tracker is not None:
            self._tracker.log_images({"samples": grid[None]}, self._state.step, dataformats="NHWC")


def _wandb(folder: Path, settings: str) -> GeneralTracker:
    """A run of the same folder and settings is gone on with."""
    identity = sha256_bytes(f"{os.path.realpath(folder)} {settings}".encode())[:16]
    return WandBTracker(
        "reposer", name=folder.name, id=identity, resume="allow", config={"settings": settings}
    )


def _mlflow(folder: Path, settings: str) -> GeneralTracker:
    """Each start is a run of its own."""
    return MLflowTracker("reposer", run_name=folder.name, tags={"settings": settings})


# Where figures can be sent, besides TensorBoard's files: name of the package -> for a run's folder and hash.
TRACKERS: dict[str, Callable[[Path, str], GeneralTracker]] = {"wandb": _wandb, "mlflow": _mlflow}


def _tensorboard(folder: Path, step: int) -> TensorBoardTracker | None:
    """Writes charts from ``step`` on; None, and a line that says so, where it is not installed."""
    if find_spec("tensorboard") is None:
        _say_that_it_is_missing()
        return None
    tracker = TensorBoardTracker("tensorboard", folder, purge_step=step)
    tracker.start()
    return tracker


@functools.cache  # once a process: a study trains many networks
def _say_that_it_is_missing() -> None:
    _log.warning(
        "no charts in tensorboard/: pip install reposer[tensorboard]; all figures are in metrics.jsonl"
    )


# ---- What a checkpoint's meta.json says of optimizers and random generators, which somebody else may have
# written. Each check raises ValueError, which names the entry.


def _check_entries(meta: Mapping[str, Any], state: TrainingState) -> None:
    for name, optimizer in state.optimizers.items():
        _check_optimizer(name, meta.get(name), optimizer)
    rng: Any = meta.get("rng")
    for name, check in (("numpy", _check_numpy), ("python", _check_python)):
        try:
            check(rng[name])
        except (TypeError, ValueError, LookupError, OverflowError, RecursionError) as error:
            raise ValueError(f"rng.{name}: is no state of a random generator") from error
    for name in ("world_size", "threads", "ema_updates"):
        least = 0 if name == "ema_updates" else 1
        if name in meta and not (type(meta[name]) is int and least <= meta[name] <= LARGEST):
            raise ValueError(f"{name}: is no number of at least {least}")
    if not isinstance(meta["torch"], str):
        raise ValueError("torch: is no version")


def _check_optimizer(name: str, rest: Any, optimizer: torch.optim.Optimizer) -> None:
    if not isinstance(rest, dict) or not isinstance(rest.get("state"), dict):
        raise ValueError(f"{name}.state: is missing, or no mapping")
    groups, now = rest.get("param_groups"), optimizer.state_dict()["param_groups"]
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        raise ValueError(f"{name}.param_groups: is missing, or no list of mappings")
    indices = {str(index) for group in now for index in group["params"]}
    for index, values in rest["state"].items():
        known = index in indices and isinstance(values, dict)
        if not known or not all(value is None or _is_number(value) for value in values.values()):
            raise ValueError(f"{name}.state.{printable(index)[:80]}: is no state of a parameter")
    for number, (group, current) in enumerate(zip(groups, now, strict=False)):  # their number: see restore
        for key, value in group.items():
            if key in current and not _is_like(value, current[key]):
                raise ValueError(f"{name}.param_groups[{number}].{key}: is of another kind")
        if not isinstance(group.get("params"), list):
            raise ValueError(f"{name}.param_groups[{number}].params: is missing")
        if len(group["params"]) == len(current["params"]) and group["params"] != current["params"]:
            raise ValueError(f"{name}.param_groups[{number}].params: are others")


def _is_like(value: Any, now: Any) -> bool:
    """Whether a JSON value may stand in the place of an optimizer's own setting."""
    if isinstance(now, list | tuple):
        same = isinstance(value, list) and (isinstance(now, list) or len(value) == len(now))
        return same and all(map(_is_number, value))
    if now is None or isinstance(now, bool):
        return value is None or isinstance(value, bool)
    return _is_number(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST_SEED


def _check_numpy(state: Any) -> None:
    """numpy itself would read beyond its 624 numbers."""
    name, position, has_gauss, gauss = state
    if name != "MT19937" or type(position) is not int or not 0 <= position <= 624:
        raise ValueError
    if has_gauss not in (0, 1) or not _is_number(gauss):
        raise ValueError


def _check_python(state: Any) -> None:
    version, numbers, gauss = state
    random.Random().setstate((version, tuple(numbers), gauss))
    if gauss is not None and not _is_number(gauss):
        raise ValueError
