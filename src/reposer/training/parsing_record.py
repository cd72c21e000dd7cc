"""What a training of maps writes (metrics, validation, checkpoints), and how it goes on."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from accelerate.tracking import TensorBoardTracker

from reposer import checkpoint
from reposer.config import config_hash
from reposer.runs import Run
from reposer.runtime import Runtime
from reposer.training.map_task import MapTask
from reposer.training.parsing_state import ParsingState
from reposer.training.reid_record import ReidSummary

_log = logging.getLogger(__name__)


class ParsingRecord:
    """The run folder of a training, and everything that is done once in a while.

    All processes make the same calls; the first one writes.

    Args:
        task: its configuration must be that of the run, if there is one in ``folder``.
        folder: new, empty, or a run to go on with.
        runtime: device and process group.
        state: is put back to the newest good checkpoint of the folder.

    Raises:
        UserError: the folder holds a run of another configuration, foreign files, or only damaged
            checkpoints.
    """

    def __init__(self, task: MapTask, folder: Path, runtime: Runtime, state: ParsingState) -> None:
        self.folder, self.last = folder, dict[str, float]()
        self._task, self._runtime, self._state = task, runtime, state
        self._started = time.monotonic()
        self._run: Run | None = None
        self._tracker: TensorBoardTracker | None = None
        if runtime.is_main:
            opened = Run.open(folder, task.config) if Run.exists(folder) else None
            self._run = opened or Run.create(folder, task.config, runtime.describe() | state.notes)
        runtime.accelerator.wait_for_everyone()
        try:
            self._saved_step = self._resume()
            if self._run is not None:
                self._run.rewind(state.step)
                self._tracker = TensorBoardTracker("tensorboard", folder, purge_step=state.step + 1)
                self._tracker.start()
        except BaseException:
            self.close()
            raise

    def _resume(self) -> int:
        """Put the state back; returns the step of the newest good checkpoint, -1 where there is none."""
        found = checkpoint.latest(self.folder / "checkpoints")
        if found is None:
            return -1
        differences = self._state.restore(found, self._runtime)
        if differences and self._runtime.is_main:
            _log.warning("resumed run will not be bit-identical: %s", "; ".join(differences))
        return found.step

    def log(self, rate: float, images_per_second: float) -> None:
        """Write the means since the last time."""
        means = self._state.means.means()
        self._state.means.clear()
        if self._runtime.world_size > 1:
            means = self._runtime.accelerator.reduce(means, "mean")
        figures = {name: float(value) for name, value in means.items()}
        self._write(figures | {"lr": rate, "images_per_second": images_per_second})

    def validate(self) -> None:
        """Write the task's figures on people who are only watched."""
        if self._run is None:
            return
        figures = self._task.validate(self._state.network.eval(), self._runtime)
        self._state.network.train()
        if figures:
            self._write(figures)

    def save(self) -> None:
        """Write a checkpoint of this step unless there is one, then remove the oldest."""
        if self._saved_step == self._state.step:
            return
        groups, meta = self._state.pack(self._runtime.accelerator)
        if self._run is not None:
            meta |= {"config_hash": config_hash(self._task.config), **self._task.facts()}
            checkpoint.save(self._run.checkpoints, self._state.step, groups, meta)
            checkpoint.prune(self._run.checkpoints, self._task.config.output.keep_last)
        self._saved_step = self._state.step
        self._runtime.accelerator.wait_for_everyone()

    def close(self) -> None:
        """Give the folder free."""
        if self._tracker is not None:
            self._tracker.finish()
        if self._run is not None:
            self._run.close()

    def summary(self) -> ReidSummary:
        """What this call came to."""
        minutes = (time.monotonic() - self._started) / 60
        return ReidSummary(self.folder, self._state.step, self._task.total_steps, minutes, self.last)

    def _write(self, values: dict[str, float]) -> None:
        self.last |= values
        if self._run is not None and self._tracker is not None:
            self._run.log(self._state.step, values)
            self._tracker.log(values, self._state.step)
