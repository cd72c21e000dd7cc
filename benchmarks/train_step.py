"""Seconds of a whole training step: ours against the same mathematics in plain float32, eager, NCHW.

A step is generator, discriminator, perceptual network, both Adams and the average, at 128x64 with 16 pairs:
of SAN "lean", then of RSA-GAN (reconstruction from the abstract) as ``rsa_market_small`` trains it. Both arms
start from the same weights, see the same random pairs, and generate once a step. They differ in precision
(bfloat16 where the hardware has it), memory layout, fused updates, memory handling and, for RSA-GAN, the
attention kernel (the plain arm computes softmax(Q K^T / sqrt(d)) V step by step) and the forms of
``parts/plain_rsa.py``. Of any other generator it is its small preset, or with ``--preset`` another; of one
that is trained in stages the last, and without a discriminator where none plays. Each arm lives in a process
of its own and they take turns. The perceptual network has random weights: timing does not depend on them.
With ``--memory`` it is the peak memory of a step of a preset instead, without ``--preset`` of
``rsa_deepfashion`` at 256x176 (``parts/train_memory.py``).

Usage: python benchmarks/train_step.py [--model san|rsa|both|NAME] [--preset NAME] [--quick] [--threads N]
       [--repeats N] [--compile] [--memory BATCH ...]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from parts import plain_rsa, train_memory
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from reposer.images import to_float
from reposer.losses.image_gan import GanNetworks, ImagePool, discriminator_loss, generate, generator_loss
from reposer.losses.perceptual import PerceptualNetwork
from reposer.models.discriminators import build_discriminator
from reposer.models.generators import build_generator
from reposer.models.san import san_size
from reposer.runtime import Runtime, cpu_has_fast_bf16, setup
from reposer.structures import NUM_JOINTS, NUM_LABELS, PairBatch
from reposer.training.gan.config import DataConfig, GanConfig
from reposer.training.gan.task import GanState
from reposer.training.state import check_finite, gradient_norm
from reposer.workflows.gan_presets import find_preset

SEED = 0
TITLES = {"san": "SAN", "rsa": "RSA-GAN (reconstruction from the abstract)"}
VGG_SHAPES = {"0.weight": (64, 3, 3, 3), "0.bias": (64,), "2.weight": (64, 64, 3, 3), "2.bias": (64,)}


def configuration(model: str, preset: str, quick: bool, ours: bool) -> GanConfig:
    """SAN "lean" with the paper's objective, or a generator's preset; quick: smaller ones, fewer pairs."""
    if model not in TITLES or preset:
        config = find_preset(preset or f"{model}_market_small")
        batch_size = min(4, config.batch_size) if quick else config.batch_size
        precision = "auto" if ours else "float32"
        return config.changed(batch_size=batch_size, precision=precision, channels_last=ours)
    if model == "rsa":
        config = find_preset("rsa_market_small")
        args = {**config.generator_args, "width": 32 if quick else config.generator_args["width"]}
        return config.changed(
            generator_args=args,
            batch_size=4 if quick else 16,
            precision="auto" if ours else "float32",
            channels_last=ours,
        )
    return GanConfig(
        data=DataConfig(folder=Path("unused")),
        generator_args=san_size("small" if quick else "lean"),
        batch_size=4 if quick else 16,
        precision="auto" if ours else "float32",
        channels_last=ours,
    )


def image_size(config: GanConfig) -> tuple[int, int]:
    """(H, W) of the preset's data set."""
    return (256, 256) if "deepfashion" in config.data.folder.name else (128, 64)


def random_pairs(config: GanConfig, size: tuple[int, int], step: int) -> PairBatch:
    """Pairs in the layout in which the loader gives them: images (B, 3, H, W) over (B, H, W, 3) memory."""
    rng = torch.Generator().manual_seed(SEED + step)
    shape = (config.batch_size, *size)
    images = [torch.randint(0, 256, (*shape, 3), generator=rng, dtype=torch.uint8) for _ in range(2)]
    labels = [torch.randint(0, NUM_LABELS, shape, generator=rng, dtype=torch.uint8) for _ in range(2)]
    joints = [torch.rand(config.batch_size, NUM_JOINTS, 2, generator=rng) * size[1] for _ in range(2)]
    source, target = (image.permute(0, 3, 1, 2) for image in images)
    pids = torch.zeros(config.batch_size, dtype=torch.int64)
    return PairBatch(source, target, *labels, labels[0] > 0, labels[1] > 0, *joints, pids)


def our_step(
    config: GanConfig,
    runtime: Runtime,
    state: GanState,
    compiled: bool,
    perceptual: PerceptualNetwork | None = None,
) -> Callable[[PairBatch], Tensor]:
    """What ``reposer.training.loop.train`` does in a step, guards included."""
    perceptual = perceptual or perceptual_network(config, channels_last=True)
    nets = networks(config, state.generator, state.discriminator, perceptual)
    last = config.total_steps - 1
    weights, game, stage = config.weights_at(last), config.gan, config.stage(last)
    if stage is not None:
        state.enter(stage.name)
    if compiled:
        state.generator.compile()
        state.discriminator.compile()

    def step(batch: PairBatch) -> Tensor:
        with runtime.autocast():
            generated, auxiliary = generate(nets, batch)
        if game.discriminator:
            with runtime.autocast():
                loss, parts = discriminator_loss(
                    *(nets, batch, generated, state.pool, state.pool_rng),
                    *(game.mode, game.real_label, game.loss_scale),
                )
            loss.backward()
            check_finite({**parts, "gradient": gradient_norm(state.discriminator)}, 0, ())
            state.optimizers["discriminator_optimizer"].step()
            state.optimizers["discriminator_optimizer"].zero_grad()
        state.discriminator.requires_grad_(False)
        with runtime.autocast():
            loss, parts = generator_loss(nets, batch, generated, weights, game.mode, auxiliary)
        loss.backward()
        state.discriminator.requires_grad_(True)
        check_finite({**parts, "gradient": gradient_norm(state.generator)}, 0, ())
        state.optimizers["generator_optimizer"].step()
        state.optimizers["generator_optimizer"].zero_grad()
        state.ema.update_parameters(state.generator)
        return loss.detach()

    return step


def plain_step(config: GanConfig) -> Callable[[PairBatch], Tensor]:
    """The same update as it is commonly written: torch's default Adam, the average as a loop."""
    plain_rsa.install()
    # in GanState's order: same weights
    generator = build_generator(config.generator, **config.generator_args)
    played = config.gan.discriminator
    discriminator = build_discriminator(**config.discriminator_args) if played else nn.Identity()
    for module in (*generator.modules(), *discriminator.modules()):
        if isinstance(
            module, nn.Conv2d | nn.ConvTranspose2d
        ):  # our models lay their inputs out channels last
            module.register_forward_pre_hook(lambda _, inputs: contiguous(inputs))
    nets = networks(config, generator, discriminator, perceptual_network(config, channels_last=False))
    weights, game = config.weights_at(config.total_steps - 1), config.gan
    if (stage := config.stage(config.total_steps - 1)) is not None:
        learning = tuple(f"{name}." for name in generator.stages[stage.name])  # type: ignore[index]
        for name, parameter in generator.named_parameters():
            parameter.requires_grad_(name.startswith(learning))
    pool, rng = ImagePool(config.gan.pool), torch.Generator().manual_seed(config.seed)
    rates = (config.optimizer.lr, (config.optimizer.beta1, config.optimizer.beta2))
    adam_g = torch.optim.Adam(generator.parameters(), *rates)
    adam_d = torch.optim.Adam(discriminator.parameters(), *rates) if played else None
    average = {name: value.clone() for name, value in generator.state_dict().items()}

    def step(batch: PairBatch) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            generated, auxiliary = generate(nets, batch)
        if adam_d is not None:
            adam_d.zero_grad()
            options = (game.mode, game.real_label, game.loss_scale)
            discriminator_loss(nets, batch, generated, pool, rng, *options)[0].backward()
            adam_d.step()
        discriminator.requires_grad_(False)
        adam_g.zero_grad()
        loss = generator_loss(nets, batch, generated, weights, game.mode, auxiliary)[0]
        loss.backward()
        discriminator.requires_grad_(True)
        adam_g.step()
        with torch.no_grad():
            for name, value in generator.state_dict().items():
                if value.is_floating_point():
                    average[name].mul_(config.ema_decay).add_(value, alpha=1 - config.ema_decay)
        return loss.detach()

    return step


def contiguous(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Tensors in NCHW memory, anything else as it is."""
    return tuple(x.contiguous() if isinstance(x, Tensor) else x for x in inputs)


def networks(
    config: GanConfig, generator: nn.Module, discriminator: nn.Module, perceptual: PerceptualNetwork | None
) -> GanNetworks:
    """All that play in a step of the configuration."""
    return GanNetworks(
        generator,
        discriminator,
        perceptual,
        config.perceptual.norm,
        config.feature_layers,
        bool(config.extra_terms),
        together=config.gan.together,
        source_fake=config.gan.source_fake,
        nearest_window=config.perceptual.nearest_window,
    )


def perceptual_network(config: GanConfig, channels_last: bool) -> PerceptualNetwork | None:
    """VGG-19 to the deepest layer that the configuration asks for, with random weights; None for no layer."""
    if not config.feature_layers:
        return None
    if config.generator not in ("san", "rsa_gan"):
        with torch.random.fork_rng():
            torch.manual_seed(SEED)
            network = train_memory.perceptual_network(config)
        return network if channels_last else network.to(memory_format=torch.contiguous_format)
    rng = torch.Generator().manual_seed(SEED)
    weights = {name: torch.randn(shape, generator=rng) * 0.05 for name, shape in VGG_SHAPES.items()}
    network = PerceptualNetwork("vgg19", ("relu1_2",), weights)
    return network.to(memory_format=torch.channels_last) if channels_last else network


def work(arm: str, model: str, options: argparse.Namespace, pipe: Connection) -> None:
    """One arm in its process: a step for each number received; sends loss, wall and processor seconds."""
    ours = arm == "ours"
    config = configuration(model, options.preset, options.quick, ours)
    size = (64, 32) if options.quick else image_size(config)
    torch.manual_seed(SEED)
    torch.set_num_threads(options.threads)
    if ours:
        runtime = setup("cpu", config.precision, options.threads, SEED)
        step = our_step(config, runtime, GanState(config, runtime), options.compile)
    else:
        step = plain_step(config)
    while (number := pipe.recv()) is not None:
        batch = random_pairs(config, size, number)
        batch = replace(batch, target_image=to_float(batch.target_image))
        torch.manual_seed(SEED + number)  # the same noise for both arms
        wall, processor = time.perf_counter(), time.process_time()
        loss = step(batch)
        pipe.send((float(loss), time.perf_counter() - wall, time.process_time() - processor))
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--model", default="both", help="san, rsa, both (default), or NAME of NAME_market_small"
    )
    parser.add_argument("--preset", default="", help="of that model, in place of the small one")
    parser.add_argument("--quick", action="store_true", help="smaller networks, 64x32, 4 pairs")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each arm (default 2)")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each arm (default 5)")
    parser.add_argument("--compile", action="store_true", help="torch.compile both networks of our arm")
    parser.add_argument(
        "--memory",
        type=int,
        nargs="+",
        metavar="BATCH",
        help="peak memory of the preset; default rsa_deepfashion",
    )
    options = parser.parse_args()
    if options.memory:
        peaks = train_memory.report(options.preset or "rsa_deepfashion", options.memory, options.threads)
        print(json.dumps(peaks | {"threads": options.threads}))
        return
    figures: dict[str, Any] = {}
    for model in ("san", "rsa") if options.model == "both" else (options.model,):
        print(f"\n{TITLES.get(model, options.preset or model)}")
        measured = measure(model, options)
        figures |= {name if model == "san" else f"{model}_{name}": value for name, value in measured.items()}
    figures |= {
        "precision": "bfloat16" if cpu_has_fast_bf16() else "float32",
        "has_avx512_bf16": cpu_has_fast_bf16(),
        "compiled": options.compile,
        "threads": options.threads,
        "repeats": options.repeats,
        "quick": options.quick,
    }
    print(json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in figures.items()}))


def measure(model: str, options: argparse.Namespace) -> dict[str, Any]:
    """Both arms of a model, step by step in turn."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for arm in ("ours", "plain"):
        pipes[arm], theirs = context.Pipe()
        context.Process(target=work, args=(arm, model, options, theirs), daemon=True).start()
        theirs.close()  # so that a dead arm is an error here, and not a wait for ever

    losses: dict[str, list[float]] = {arm: [] for arm in pipes}
    walls: dict[str, list[float]] = {arm: [] for arm in pipes}
    processor: dict[str, list[float]] = {arm: [] for arm in pipes}
    for number in range(1 + options.repeats):  # the first step warms up and is not timed
        for arm in list(pipes) if number % 2 else list(pipes)[::-1]:
            pipes[arm].send(number)
            loss, wall, cpu = pipes[arm].recv()
            losses[arm].append(loss)
            if number:
                walls[arm].append(wall)
                processor[arm].append(cpu)
    peaks = {}
    for arm, pipe in pipes.items():
        pipe.send(None)
        peaks[arm] = pipe.recv()
    config = configuration(model, options.preset, options.quick, ours=True)
    return report(config, losses, walls, processor, peaks)


def report(
    config: GanConfig,
    losses: dict[str, list[float]],
    walls: dict[str, list[float]],
    processor: dict[str, list[float]],
    peaks: dict[str, float],
) -> dict[str, Any]:
    """Print the table; the figures for JSON."""
    print(
        f"{'arm':6} {'s/step':>8} {'pairs/s':>8} {'CPU s/step':>11} {'peak MB':>8}  losses of the first steps"
    )
    for arm in walls:
        wall, cpu = statistics.median(walls[arm]), statistics.median(processor[arm])
        first = ", ".join(f"{loss:.4f}" for loss in losses[arm][:4])
        print(f"{arm:6} {wall:8.3f} {config.batch_size / wall:8.2f} {cpu:11.3f} {peaks[arm]:8.0f}  {first}")
    differences = [abs(a - b) / abs(b) for a, b in zip(losses["ours"], losses["plain"], strict=True)]
    return {
        "speedup": statistics.median(p / o for o, p in zip(walls["ours"], walls["plain"], strict=True)),
        "speedup_cpu_time": statistics.median(processor["plain"]) / statistics.median(processor["ours"]),
        "loss_difference": differences[0],
        "loss_difference_last": differences[-1],
        "seconds_ours": statistics.median(walls["ours"]),
        "seconds_plain": statistics.median(walls["plain"]),
        "pairs_per_second": config.batch_size / statistics.median(walls["ours"]),
        "peak_mb_ours": peaks["ours"],
        "peak_mb_plain": peaks["plain"],
        "batch_size": config.batch_size,
    }


if __name__ == "__main__":
    main()
