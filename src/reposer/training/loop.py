"""The one loop of every training: fetch, step; now and then log, validate, show, save.

What is trained for is a task (GAN, Re-ID network, parser, predictor of label maps), picked by the class of
the configuration; what changes lives in the task's state. A run that is stopped and started again gives the
same bits as one that was not (on a CPU; one torch version, thread count and number of processes).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from reposer.progress import progress
from reposer.runtime import Runtime, StopSignal, setup
from reposer.training.config import TrainingConfig
from reposer.training.gan.config import GanConfig
from reposer.training.gan.task import GanTask
from reposer.training.parsing.config import ParsingConfig, PredictorConfig
from reposer.training.parsing.task import ParserTask, PredictorTask
from reposer.training.reid.config import ReidConfig
from reposer.training.reid.task import ReidTask
from reposer.training.run_writer import RunWriter, TrainingSummary, Written
from reposer.training.state import set_learning_rate

_log = logging.getLogger(__name__)


class Task(Written, Protocol):
    """What is trained for: data, networks and objective of a training, and what its run folder keeps."""

    def fetch(self, step: int) -> Any:
        """The batch of this process in the step after ``step`` completed ones: what ``step`` takes."""

    def step(self, batch: Any) -> None:
        """Let the networks learn from a batch, and count the figures of its losses in the state's means.

        Raises:
            NonFiniteStepError: a loss or a gradient is NaN or infinite; nothing was updated.
        """

    def validate(self) -> dict[str, float]:
        """Figures on people who are only watched; empty where there are none. In the first process only."""

    def show(self, last: bool) -> NDArray[np.uint8] | None:
        """A picture (H, W, 3) where it is time, or the training ends. In the first process only."""


TASKS: dict[type[TrainingConfig], Callable[[Any, Runtime], Task]] = {
    GanConfig: GanTask,
    ReidConfig: ReidTask,
    ParsingConfig: ParserTask,
    PredictorConfig: PredictorTask,
}


def train(
    config: TrainingConfig,
    run_dir: str | Path,
    *,
    device: str = "auto",
    max_minutes: float | None = None,
    trackers: Sequence[str] = (),
) -> TrainingSummary:
    """Train from the start, or go on with the run in ``run_dir``, until the schedule is done.

    Args:
        config: everything that the result depends on; its class is a key of TASKS.
        run_dir: new, empty, or a run of the same configuration.
        device: "auto", "cpu", "cuda" or "mps".
        max_minutes: save and return after so many minutes; a later call goes on. The clock decides where
            it stops; the bits of the finished run do not depend on it.
        trackers: that figures are sent to, keys of ``run_writer.TRACKERS``.

    Raises:
        UserError: data, weights, configuration or run folder are not in order; names what.
        NonFiniteStepError: a loss or gradient is NaN or infinite; nothing was updated.
        SystemExit: 143 after SIGTERM or SIGUSR1, 130 after Ctrl-C, once the step is finished and saved.
    """
    runtime = setup(device, config.precision, config.threads, config.seed)
    task = TASKS[type(config)](config, runtime)
    state, total, every = task.state, task.total_steps, config.output
    deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
    writer = RunWriter(task, Path(run_dir), runtime, trackers)
    try:
        bar = progress(total, state.step, task.counted, per_step=config.batch_size)
        with StopSignal() as stop, bar as meter:
            while state.step < total:
                rate = config.rate(state.step, total)
                for optimizer in state.optimizers.values():
                    set_learning_rate(optimizer, rate)
                task.step(task.fetch(state.step))
                state.step += 1
                meter.update(state.step)

                stopped, late = stop.requested(runtime), runtime.is_past(deadline)
                done = state.step == total
                if done or state.step % every.log_every == 0:
                    writer.log(rate, meter.rate)
                if runtime.is_main and (done or state.step % every.validate_every == 0):
                    writer.write(task.validate())
                if runtime.is_main and (grid := task.show(done)) is not None:
                    writer.show(grid)
                if done or stopped or late or state.step % every.checkpoint_every == 0:
                    writer.save()
                if stopped:
                    _log.warning(
                        "asked to stop: saved step %d, the same command goes on from here", state.step
                    )
                    raise SystemExit(stop.exit_code)
                if late:
                    break
    finally:
        writer.close()
        runtime.accelerator.free_memory()
    return writer.summary()
