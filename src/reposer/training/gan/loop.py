"""Training of an image GAN: fetch, discriminator step, generator step, average; now and then log, show, save.

SAN's training (arXiv 2008.07884, section 3.3): first the discriminator, then the generator against the
renewed discriminator. The images are generated once a step and serve both. What changes lives in
:class:`GanState`, what is told in :class:`GanConfig`. A run that is stopped and started again gives the same
bits as one that was not (on a CPU; one torch version, thread count and number of processes). With accumulated
parts, the generator's parts but the last are judged by the discriminator before its update.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn

from reposer.images import to_float
from reposer.losses.perceptual import PerceptualNetwork
from reposer.progress import progress
from reposer.runtime import Runtime, StopSignal, setup
from reposer.structures import PairBatch
from reposer.training.gan.config import GanConfig
from reposer.training.gan.data import GanData, Part
from reposer.training.gan.losses import GanNetworks, discriminator_loss, generate, generator_loss
from reposer.training.gan.state import GanState, GanWriter
from reposer.training.optimizers import check_finite, gradient_norm, learning_rate, set_learning_rate
from reposer.training.record import TrainingSummary


def train(
    config: GanConfig, run_dir: str | Path, *, device: str = "auto", max_minutes: float | None = None
) -> TrainingSummary:
    """Train from the start, or go on with the run in ``run_dir``, until the schedule is done.

    Args:
        config: everything that the result depends on.
        run_dir: new, empty, or a run of the same configuration.
        device: "auto", "cpu", "cuda" or "mps".
        max_minutes: save and return after so many minutes; a later call goes on. The clock decides where
            it stops; the bits of the finished run do not depend on it.

    Raises:
        UserError: data, weights, configuration or run folder are not in order; names what.
        NonFiniteStepError: a loss or gradient is NaN or infinite; nothing was updated.
        SystemExit: 143 after SIGTERM or SIGUSR1, 130 after Ctrl-C, once the step is finished and saved.
    """
    runtime = setup(device, config.precision, config.threads, config.seed)
    accelerator, total = runtime.accelerator, config.total_steps
    data = GanData(config, runtime.rank, runtime.world_size)
    state = GanState(config, runtime)
    nets = _networks(config, runtime, state)
    deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
    record = GanWriter(config, Path(run_dir), runtime, state, data, _notes(config))
    try:
        with StopSignal() as stop, progress(total, state.step, "pairs", per_step=config.batch_size) as meter:
            while state.step < total:
                lr = _set_learning_rates(config, state)
                for part in data.parts(state.step):
                    batch = _prepared(part, state.generator, runtime)
                    with accelerator.accumulate(nets.generator, nets.discriminator):
                        with runtime.autocast():
                            generated, auxiliary = generate(nets, batch, config.weights)

                        with runtime.autocast():
                            loss, parts = discriminator_loss(
                                nets, batch, generated, config.gan, state.pool, state.pool_rng
                            )
                        accelerator.backward(loss)
                        _update(accelerator, state, "discriminator", parts, part)

                        with runtime.autocast(), _frozen(state.discriminator) as critic:
                            against = replace(nets, discriminator=critic)
                            loss, parts = generator_loss(
                                *(against, batch, generated, config.gan, config.weights, auxiliary)
                            )
                            accelerator.backward(loss)
                        _update(accelerator, state, "generator", parts, part)
                state.ema.update_parameters(state.generator)
                if record.end_step(meter, stop, deadline, lr):
                    break
    finally:
        record.close()
        accelerator.free_memory()
    return record.summary()


def _networks(config: GanConfig, runtime: Runtime, state: GanState) -> GanNetworks:
    """The networks as the loop calls them: compiled, and wrapped for several processes, where asked for."""
    accelerator = runtime.accelerator
    accelerator.gradient_accumulation_steps = config.accumulate
    # DDP would copy BatchNorm buffers between processes before both forward passes of the discriminator, and
    # autograd refuses that. SyncBatchNorm keeps them equal on GPUs; on CPUs the first process's are saved.
    accelerator.ddp_handler = DistributedDataParallelKwargs(broadcast_buffers=False)
    if config.compile:
        state.generator.compile()
        state.discriminator.compile()
    generator, discriminator = accelerator.prepare(state.generator, state.discriminator)
    perceptual, layers = None, config.feature_layers
    if layers:
        network, names = config.perceptual, list(dict.fromkeys(chain.from_iterable(layers.values())))
        perceptual = PerceptualNetwork(network.network, names, network.path).to(runtime.device)
        if config.channels_last:
            perceptual = perceptual.to(memory_format=torch.channels_last)
    return GanNetworks(generator, discriminator, perceptual, config.perceptual.norm, layers)


def _notes(config: GanConfig) -> dict[str, str]:
    """What a reader of the run must know, for environment.json."""
    network, layers = config.perceptual, config.feature_layers
    if not layers:
        return {"perceptual": "none: trained without the perceptual term"}
    origin = f"weights {network.path.name}" if network.path else "torchvision's weights"
    told = "; ".join(f"{term}: {', '.join(names)}" for term, names in layers.items())
    return {"perceptual": f"{network.network} {told}, {network.norm}, {origin}"}


def _set_learning_rates(config: GanConfig, state: GanState) -> float:
    schedule = config.schedule
    const, decay = config.steps_of(schedule.epochs_const), config.steps_of(schedule.epochs_decay)
    lr = learning_rate(state.step, config.optimizer.lr, const, decay)
    set_learning_rate(state.generator_optimizer, lr)
    set_learning_rate(state.discriminator_optimizer, lr)
    return lr


def _prepared(part: Part, generator: nn.Module, runtime: Runtime) -> PairBatch:
    """The batch on the device, its target as model float: what the losses compare with."""
    batch = part.batch.to(runtime.device, non_blocking=True)
    own_target = getattr(
        generator, "training_target", None
    )  # of generators that shall make another image than I_t
    return replace(batch, target_image=own_target(batch) if own_target else to_float(batch.target_image))


@contextmanager
def _frozen(module: nn.Module) -> Iterator[nn.Module]:
    """The bare module without gradients for its weights: saves computing and all-reducing them."""
    module.requires_grad_(False)
    try:
        yield module
    finally:
        module.requires_grad_(True)


def _update(
    accelerator: Accelerator, state: GanState, name: str, parts: Mapping[str, Tensor], part: Part
) -> None:
    """Count the figures; after the last accumulated part, guard and update the network of that name."""
    state.means.add(parts)
    if not accelerator.sync_gradients:
        return
    network: nn.Module = getattr(state, name)
    optimizer: torch.optim.Optimizer = getattr(state, f"{name}_optimizer")
    check_finite({**parts, f"{name}/gradient": gradient_norm(network)}, state.step, part.names)
    optimizer.step()
    optimizer.zero_grad()
