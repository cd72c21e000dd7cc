"""Training of a Re-ID embedding: fetch, forward, loss, update; now and then log, validate, save.

What changes lives in :class:`ReidState`, what is told in :class:`ReidConfig`; the recipes are presets in
workflows/presets.py. A run that is stopped and started again gives the same bits as one that was not
(on a CPU; one torch version, thread count and number of processes). With several processes, triplets and
BatchNorm statistics on CPUs are those of each process's own images.
"""

from __future__ import annotations

import time
from pathlib import Path

from accelerate.utils import DistributedDataParallelKwargs
from torch import nn

from reposer.models.embedding import load_pretrained
from reposer.progress import progress
from reposer.runtime import Runtime, StopSignal, setup
from reposer.storage.files import sha256_file
from reposer.training.optimizers import check_finite, gradient_norm, set_learning_rate
from reposer.training.record import TrainingSummary
from reposer.training.reid.config import ReidConfig
from reposer.training.reid.data import ReidData
from reposer.training.reid.losses import reid_loss
from reposer.training.reid.state import ReidState, ReidWriter, Teacher, scheduled_rate


def train_reid(
    config: ReidConfig, run_dir: str | Path, *, device: str = "auto", max_minutes: float | None = None
) -> TrainingSummary:
    """Train from the start, or go on with the run in ``run_dir``, until the schedule is done.

    Args:
        config: everything that the result depends on.
        run_dir: new, empty, or a run of the same configuration.
        device: "auto", "cpu", "cuda" or "mps".
        max_minutes: save and return after so many minutes; a later call goes on.

    Raises:
        UserError: data, weights, configuration or run folder are not in order; names what.
        NonFiniteStepError: a loss or gradient is NaN or infinite; nothing was updated.
        SystemExit: 143 after SIGTERM or SIGUSR1, 130 after Ctrl-C, once the step is finished and saved.
    """
    runtime = setup(device, config.precision, config.threads, config.seed)
    accelerator, total = runtime.accelerator, config.total_steps
    data = ReidData(config, runtime.rank, runtime.world_size)
    state = ReidState(config, runtime, len(data.pids))
    notes, initial = _initialize(config, state)
    taught_by = config.generated.teacher
    teacher = None if taught_by is None else Teacher(taught_by, data.pids, runtime)
    network = _prepared(config, state, runtime)
    deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
    inputs = data.inputs() | initial | ({} if teacher is None else {"teacher": teacher.content_hash})
    record = ReidWriter(config, Path(run_dir), runtime, state, data, notes | data.notes(), inputs)
    try:
        with StopSignal() as stop, progress(total, state.step, "images", per_step=config.batch_size) as meter:
            network.train()
            while state.step < total:
                rate = scheduled_rate(state.step, config)
                set_learning_rate(state.optimizer, rate)
                batch, names = data.batch(state.step)
                batch = batch.to(runtime.device, non_blocking=True)
                with runtime.autocast():
                    output = network(batch.image)
                    opinion = None if teacher is None else teacher.logits(batch)
                centers = state.network.centers
                loss, parts = reid_loss(output, batch, config.loss, centers, config.generated, opinion)
                accelerator.backward(loss)
                state.means.add(parts)
                guarded = {**parts, "reid/gradient": gradient_norm(state.network)}
                check_finite(guarded, state.step, names)
                state.optimizer.step()
                state.move_centers(output.pooled, batch, config.loss.center_rate, accelerator)
                state.optimizer.zero_grad()
                if record.end_step(meter, stop, deadline, rate):
                    break
    finally:
        record.close()
        accelerator.free_memory()
    return record.summary()


def _initialize(config: ReidConfig, state: ReidState) -> tuple[dict[str, object], dict[str, str]]:
    """ImageNet weights where asked for.

    Returns what a reader of the run must know, for environment.json, and the hash of the weights' file.
    """
    if config.initial == "random":
        return {"initial": "random weights"}, {}
    file = load_pretrained(state.network.embedding, config.initial_path)
    return {"initial": f"ImageNet weights {file.name}"}, {"initial": sha256_file(file)}


def _prepared(config: ReidConfig, state: ReidState, runtime: Runtime) -> nn.Module:
    """The network as the loop calls it: compiled, and wrapped for several processes, where asked for."""
    if config.compile:
        state.network.compile()
    # As in training/gan/loop.py: SyncBatchNorm keeps the buffers equal on GPUs, on CPUs the first process's
    # are saved.
    runtime.accelerator.ddp_handler = DistributedDataParallelKwargs(
        broadcast_buffers=False,
        find_unused_parameters=not config.loss.identity,  # the classifier's
    )
    network: nn.Module = runtime.accelerator.prepare(state.network)
    return network
