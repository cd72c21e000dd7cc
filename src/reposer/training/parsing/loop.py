"""Training of a network of maps: fetch, forward, loss, update; now and then log, validate, save.

A run that is stopped and started again gives the same bits as one that was not (on a CPU; one torch version,
one number of threads).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn

from reposer.progress import progress
from reposer.runtime import Runtime, StopSignal, setup
from reposer.training.optimizers import RunningMeans, check_finite, gradient_norm, set_learning_rate
from reposer.training.parsing.config import ParsingConfig, PredictorConfig
from reposer.training.parsing.tasks import MapTask, ParserTask, PredictorTask
from reposer.training.record import RunWriter, TrainingSummary
from reposer.training.state import NetworkState

# ---- Everything that changes during the training of a network of maps; a checkpoint holds exactly this.


class ParsingState(NetworkState):
    """Network, optimizer, unlogged means, random generators, and the step.

    The step is also the position of the schedule, the sampler and the augmentation.

    Args:
        task: makes the network, knows the learning rates.
        runtime: device and process group.

    Attributes:
        notes: facts about the first weights.
    """

    def __init__(self, task: MapTask, runtime: Runtime) -> None:
        network, self.notes = task.build()
        if runtime.world_size > 1 and runtime.device.type == "cuda":  # there is none for CPUs
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        self.network: nn.Module = network.to(runtime.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = _build_optimizer(self.network, task)
        self.means = RunningMeans()
        self.step = 0  # optimizer steps done


def _build_optimizer(network: nn.Module, task: MapTask) -> torch.optim.Optimizer:
    """AdamW; two groups for each learning rate, slowest first: biases and norms, without decay; the rest."""
    options = task.config.optimizer
    named = [(task.rate_factor(name), parameter) for name, parameter in network.named_parameters()]
    groups = []
    for factor in sorted({factor for factor, _ in named}):
        for small in (True, False):
            chosen = [p for rate, p in named if rate == factor and (p.dim() < 2) == small]
            decay = 0.0 if small else options.weight_decay
            groups.append({"params": chosen, "factor": factor, "weight_decay": decay})
    return torch.optim.AdamW(groups, lr=options.lr, fused=True)


# ---- What a training of maps writes besides its metrics: the task's figures on people who are only watched.


class ParsingWriter(RunWriter):
    """The run folder of a training of maps.

    Args:
        task: its configuration must be that of the run, if there is one in ``folder``.
        folder: new, empty, or a run to go on with.
        runtime: device and process group.
        state: is put back to the newest good checkpoint of the folder.

    Raises:
        UserError: as RunWriter's.
    """

    def __init__(self, task: MapTask, folder: Path, runtime: Runtime, state: ParsingState) -> None:
        self._task, self._state = task, state
        config = task.config
        super().__init__(config, config.output, task.total_steps, folder, runtime, state, state.notes)

    def validate(self) -> None:
        """Write the task's figures."""
        if self._run is None:
            return
        figures = self._task.validate(self._state.network.eval(), self._runtime)
        self._state.network.train()
        if figures:
            self.write(figures)

    def inputs(self) -> dict[str, str]:
        """What the task says."""
        return self._task.inputs()

    def facts(self) -> dict[str, Any]:
        """What the task says."""
        return self._task.facts()


# ---- Training of a network of maps: fetch, forward, loss, update; now and then log, validate, save.
#
# A run that is stopped and started again gives the same bits as one that was not (on a CPU; one torch
# version, thread count and number of processes). With several processes, the Dice loss and BatchNorm
# statistics on CPUs are those of each process's own images.


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
    # As in training/gan/loop.py: SyncBatchNorm keeps the buffers equal on GPUs, on CPUs the first process's
    # are saved.
    accelerator.ddp_handler = DistributedDataParallelKwargs(broadcast_buffers=False)
    network = accelerator.prepare(state.network)
    deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
    record = ParsingWriter(task, Path(run_dir), runtime, state)
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
