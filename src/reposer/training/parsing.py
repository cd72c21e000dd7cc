"""Training of a network of maps: fetch, forward, loss, update; now and then log, validate, save.

A run that is stopped and started again gives the same bits as one that was not (on a CPU; one torch version,
thread count and number of processes). With several processes, the Dice loss and BatchNorm statistics on CPUs
are those of each process's own images.
"""

from __future__ import annotations

import time
from pathlib import Path

from accelerate.utils import DistributedDataParallelKwargs

from reposer.progress import progress
from reposer.runtime import StopSignal, setup
from reposer.training.map_task import MapTask
from reposer.training.optimizers import check_finite, gradient_norm, set_learning_rate
from reposer.training.parser_task import ParserTask
from reposer.training.parsing_config import ParsingConfig
from reposer.training.parsing_record import ParsingRecord
from reposer.training.parsing_state import ParsingState
from reposer.training.predictor_config import PredictorConfig
from reposer.training.predictor_task import PredictorTask
from reposer.training.record import TrainingSummary


def train_parser(
    config: ParsingConfig | PredictorConfig,
    run_dir: str | Path,
    *,
    device: str = "auto",
    max_minutes: float | None = None,
) -> TrainingSummary:
    """Train a parser, or a predictor of target maps, until the schedule is done; goes on with ``run_dir``.

    Args:
        config: everything that the result depends on.
        run_dir: new, empty, or a run of the same configuration.
        device: "auto", "cpu", "cuda" or "mps".
        max_minutes: save and return after so many minutes; a later call goes on.

    Raises:
        UserError: data, weights, configuration or run folder are not in order; names what.
        NonFiniteError: a loss or gradient is NaN or infinite; nothing was updated.
        SystemExit: 143 after SIGTERM or SIGUSR1, 130 after Ctrl-C, once the step is finished and saved.
    """
    runtime = setup(device, config.precision, config.threads, config.seed)
    accelerator = runtime.accelerator
    task: MapTask = (
        ParserTask(config, runtime) if isinstance(config, ParsingConfig) else PredictorTask(config, runtime)
    )
    total = task.total_steps
    state = ParsingState(task, runtime)
    # As in gan.py: SyncBatchNorm keeps the buffers equal on GPUs, on CPUs the first process's are saved.
    accelerator.ddp_handler = DistributedDataParallelKwargs(broadcast_buffers=False)
    network = accelerator.prepare(state.network)
    deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
    record = ParsingRecord(task, Path(run_dir), runtime, state)
    try:
        with StopSignal() as stop, progress(total, state.step, "images", per_step=config.batch_size) as meter:
            network.train()
            while state.step < total:
                rate = config.rate(state.step, total)
                set_learning_rate(state.optimizer, rate)
                loss, parts, names = task.loss(network, state.step, runtime)
                accelerator.backward(loss)
                state.means.add(parts)
                check_finite({**parts, "parsing/gradient": gradient_norm(state.network)}, state.step, names)
                state.optimizer.step()
                state.optimizer.zero_grad()
                if record.end_step(meter, stop, deadline, rate):
                    break
    finally:
        record.close()
        accelerator.free_memory()
    return record.summary()
