"""Peak memory of one whole training step: generator, critics, perceptual terms, updates.

The correspondence of RSA-GAN compares every place with every other, (hw)² numbers a picture: 7.9 million at
256x176. It is held in parts of 2^25 numbers, so from five pictures on (models.rsa_attention).
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from dataclasses import replace
from multiprocessing.connection import Connection

import torch

from reposer.images import to_float
from reposer.losses.perceptual import PerceptualNetwork
from reposer.runtime import setup
from reposer.training.gan.config import GanConfig
from reposer.training.gan.task import GanState
from reposer.workflows.gan_presets import find_preset

VGG19_SHAPES = {  # up to relu5_2: index in torchvision's list -> channels out, in
    **{0: (64, 3), 2: (64, 64), 5: (128, 64), 7: (128, 128), 10: (256, 128)},
    **dict.fromkeys((12, 14, 16), (256, 256)),
    **{19: (512, 256), **dict.fromkeys((21, 23, 25, 28, 30), (512, 512))},
}


def configuration(preset: str, batch_size: int) -> GanConfig:
    """The preset, at full width, in float32."""
    return find_preset(preset).changed(batch_size=batch_size, precision="float32")


def perceptual_network(config: GanConfig) -> PerceptualNetwork:
    """VGG-19 to the deepest layer of the preset, with random weights."""
    weights = {}
    for index, shape in VGG19_SHAPES.items():
        weights[f"{index}.weight"] = torch.randn(*shape, 3, 3) * (2 / (9 * shape[1])) ** 0.5
        weights[f"{index}.bias"] = torch.zeros(shape[0])
    names = list(dict.fromkeys(name for layers in config.feature_layers.values() for name in layers))
    return PerceptualNetwork("vgg19", names, weights).to(memory_format=torch.channels_last)


def measure(preset: str, batch_size: int, threads: int) -> tuple[float, float]:
    """Peak resident GiB and processor seconds of one step in a process of its own."""
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    context.Process(target=_work, args=(preset, batch_size, threads, theirs), daemon=True).start()
    theirs.close()
    result: tuple[float, float] = pipe.recv()
    return result


def _work(preset: str, batch_size: int, threads: int, pipe: Connection) -> None:
    from train_step import image_size, our_step, random_pairs  # what a step is

    config = configuration(preset, batch_size)
    runtime = setup("cpu", config.precision, threads, config.seed)
    phi = perceptual_network(config) if config.feature_layers else None
    step = our_step(config, runtime, GanState(config, runtime), False, phi)
    size = (256, 176) if preset == "rsa_deepfashion" else image_size(config)
    batch = random_pairs(config, size, 0)
    batch = replace(batch, target_image=to_float(batch.target_image))
    started = time.process_time()
    loss = step(batch)
    assert loss.isfinite()
    pipe.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, time.process_time() - started))


def report(preset: str, batch_sizes: list[int], threads: int) -> dict[str, float]:
    """Print the table; the figures for JSON."""
    print(f"{'batch':>5} {'peak GB':>8} {'CPU s':>7}")
    figures = {}
    for batch_size in batch_sizes:
        peak, seconds = measure(preset, batch_size, threads)
        print(f"{batch_size:5} {peak:8.2f} {seconds:7.1f}", flush=True)
        name = "rsa" if preset == "rsa_deepfashion" else preset
        figures[f"{name}_peak_gb_batch{batch_size}"] = peak
    return figures
