"""What every training writes (metrics, checkpoints, a summary), how it goes on, and how a step ends."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Protocol

from accelerate import Accelerator
from accelerate.tracking import TensorBoardTracker

from reposer.config import Config, config_hash, read_json
from reposer.errors import UserError
from reposer.progress import Meter
from reposer.runtime import Runtime, StopSignal
from reposer.storage import checkpoint
from reposer.storage.checkpoint import CHECKPOINTS, INPUTS, PREPARED, Checkpoint, TensorGroups
from reposer.storage.runs import RunFolder
from reposer.storage.seals import MARK, SEAL, write_seal
from reposer.training.optimizers import RunningMeans

_EVER_PINNED = ("generated", "teacher")  # also by the runs of before the data were pinned
_READ_AT_START = ("start_from", "initial")  # not needed to go on from a checkpoint
_log = logging.getLogger(__name__)


class TrainingState(Protocol):
    """What a record needs of a training's state."""

    step: int  # optimizer steps done
    means: RunningMeans

    def pack(self, accelerator: Accelerator) -> tuple[TensorGroups, dict[str, Any]]:
        """Tensors by group, and JSON values; a collective call."""

    def restore(self, checkpoint: Checkpoint, runtime: Runtime) -> list[str]:
        """Go back to a checkpoint; returns what differs in ways that change the bits."""


class OutputTimes(Protocol):
    """How often a training logs, validates and saves, in optimizer steps."""

    @property
    def log_every(self) -> int: ...
    @property
    def validate_every(self) -> int: ...
    @property
    def checkpoint_every(self) -> int: ...
    @property
    def keep_last(self) -> int: ...


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
    """The run folder of a training, and everything that is done once in a while.

    All processes make the same calls; the first one writes. Subclasses say what to validate and which facts
    a checkpoint carries.

    Args:
        config: of the training; must be that of the run, if there is one in ``folder``.
        output: how often what is written.
        total_steps: of the whole schedule.
        folder: new, empty, or a run to go on with.
        runtime: device and process group.
        state: is put back to the newest good checkpoint of the folder.
        notes: facts for environment.json.

    Raises:
        UserError: the folder holds a run of another configuration, foreign files, only damaged checkpoints or
            those of another run; or an input is not the one that the run was started with.
    """

    counted: ClassVar[str] = "images"  # what a speed counts
    wrote: ClassVar[str] = "checkpoints/, metrics.jsonl, config.json, environment.json"

    def __init__(
        self,
        config: Config,
        output: OutputTimes,
        total_steps: int,
        folder: Path,
        runtime: Runtime,
        state: TrainingState,
        notes: dict[str, Any],
    ) -> None:
        self.folder, self.last = folder, dict[str, float]()
        self._hash, self._output, self._total = config_hash(config), output, total_steps
        self._runtime, self._progress = runtime, state
        self._started = time.monotonic()
        self._run: RunFolder | None = None
        self._tracker: TensorBoardTracker | None = None
        if runtime.is_main:
            opened = RunFolder.open(folder, config) if RunFolder.exists(folder) else None
            start = runtime.describe() | notes | {INPUTS: self.inputs(), MARK: SEAL}
            self._run = opened or RunFolder.create(folder, config, start)
        runtime.accelerator.wait_for_everyone()
        try:
            self._saved_step = self._resume()
            if self._run is not None:
                self._run.rewind(state.step)
                if self._saved_step >= 0:
                    self._seal()
                self._tracker = _tensorboard(folder, state.step + 1)
        except BaseException:
            self.close()
            raise

    def _resume(self) -> int:
        """Put the state back; returns the step of the newest good checkpoint, -1 where there is none."""
        found = checkpoint.of_run(self.folder)
        self._inputs = self._held(found)
        if found is None:
            self.begin()
            return -1
        differences = self._progress.restore(found, self._runtime)
        if differences and self._runtime.is_main:
            _log.warning("resumed run will not be bit-identical: %s", "; ".join(differences))
        return found.step

    def begin(self) -> None:
        """Called before the first step of a new run."""

    def inputs(self) -> dict[str, str]:
        """sha256 of everything that the configuration names only by its place; ``PREPARED`` is always there.

        A run goes on with these inputs only.
        """
        return {}

    def _held(self, found: Checkpoint | None) -> dict[str, str]:
        """The inputs of the run, once they are those that it was started with.

        Raises:
            UserError: an input has changed.
        """
        now = self.inputs()
        if found is None:
            environment = self.folder / "environment.json"
            before = read_json(environment).get(INPUTS) if environment.is_file() else None
        else:
            before = found.meta.get(INPUTS)
        pins = before if isinstance(before, dict) else {}
        if PREPARED not in pins:  # of before all inputs were pinned
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

    def facts(self) -> dict[str, Any]:
        """JSON values that a user of the network must know without the data at hand."""
        return {}

    def validate(self) -> None:
        """Write figures on people who are only watched."""

    def show(self, last: bool) -> None:
        """Write pictures, where it is time or the training ends."""

    def end_step(self, meter: Meter, stop: StopSignal, deadline: float | None, rate: float) -> bool:
        """Count a finished step; log, validate, show and save where it is time.

        Args:
            meter: the progress line.
            stop: whether somebody wants the training to end.
            deadline: of ``time.monotonic()``; None: none.
            rate: learning rate of the step.

        Returns:
            Whether the deadline has passed.

        Raises:
            SystemExit: told to stop; the step is saved.
        """
        state, times = self._progress, self._output
        state.step += 1
        meter.update(state.step)
        told, late = stop.requested(self._runtime), self._runtime.is_past(deadline)
        done = state.step == self._total
        if state.step % times.log_every == 0 or done:
            self.log(rate, meter.rate)
        if state.step % times.validate_every == 0 or done:
            self.validate()
        self.show(done)
        if state.step % times.checkpoint_every == 0 or told or late or done:
            self.save()
        if told:
            _log.warning("told to stop: saved step %d, the same command goes on from here", state.step)
            raise SystemExit(stop.exit_code)
        return late

    def log(self, rate: float, per_second: float) -> None:
        """Write the means since the last time."""
        means = self._progress.means.means()
        self._progress.means.clear()
        if self._runtime.world_size > 1:
            means = self._runtime.accelerator.reduce(means, "mean")
        figures = {name: float(value) for name, value in means.items()}
        self.write(figures | {"lr": rate, f"{self.counted}_per_second": per_second})

    def save(self) -> None:
        """Write a checkpoint of this step unless there is one, then remove the oldest."""
        if self._saved_step == self._progress.step:
            return
        groups, meta = self._progress.pack(self._runtime.accelerator)
        if self._run is not None:
            meta |= {"config_hash": self._hash, **self.facts(), INPUTS: self._inputs}
            checkpoint.save(self._run.checkpoints, self._progress.step, groups, meta)
            self._seal()  # before older ones go: what it lists must be there whenever a kill comes
            checkpoint.prune(self._run.checkpoints, self._output.keep_last)
        self._saved_step = self._progress.step
        self._runtime.accelerator.wait_for_everyone()

    def _seal(self) -> None:
        """Seal the run as it is at a checkpoint; metrics may grow; TensorBoard's files are not covered."""
        kept = [path for _, path in checkpoint.steps(self.folder / CHECKPOINTS)][: self._output.keep_last]
        names = [f"{CHECKPOINTS}/{path.name}/meta.sha256" for path in kept]
        names += [f"samples/{path.name}" for path in (self.folder / "samples").glob("*.png")]
        write_seal(self.folder, ["config.json", "environment.json", *names], grows=["metrics.jsonl"])

    def close(self) -> None:
        """Give the folder free."""
        if self._tracker is not None:
            self._tracker.finish()
        if self._run is not None:
            self._run.close()

    def summary(self) -> TrainingSummary:
        """What this call came to."""
        minutes = (time.monotonic() - self._started) / 60
        wrote = self.wrote if self._tracker is None else f"{self.wrote}, tensorboard/"
        return TrainingSummary(self.folder, self._progress.step, self._total, minutes, dict(self.last), wrote)

    def write(self, values: dict[str, float]) -> None:
        """Into metrics.jsonl and, where it is installed, TensorBoard, at the present step."""
        self.last |= values
        if self._run is not None:
            self._run.log(self._progress.step, values)
        if self._tracker is not None:
            self._tracker.log(values, self._progress.step)


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
