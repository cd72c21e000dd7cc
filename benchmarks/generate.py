"""How much of the model's speed a whole job keeps: read, generate, stitch, encode, write, manifest.

Two arms in turn, in one process and with the same threads: the bare forward pass over batches in memory, and
``generation.batch.generate`` into a new folder, durable and hashed. SAN small, random weights, 128x64. The
fraction of processor time says the same on a machine that is busy with other things.

Then texture transport beside the forward pass of the small generator that mends what it brings, without it:
``transport_fraction`` is the ratio of processor time, by one thread.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from reposer.data.packed import PackedPeople
from reposer.data.parsing import write_parsing
from reposer.data.preparing.packing import pack
from reposer.generation.batch import GenerateOptions, generate
from reposer.generation.pair_sources import PackedPairs
from reposer.generation.pose_transfer import PoseTransfer
from reposer.images import encode_png
from reposer.models.generators import build_generator
from reposer.models.san import san_size
from reposer.models.texture_transport import with_carried
from reposer.models.transport_unet import transport_unet_size
from reposer.runtime import setup
from reposer.structures import PairBatch, PersonRecord
from reposer.trained.networks import GeneratorConfig

SIZE, PEOPLE, BATCH = (128, 64), 64, 32
POSE = (  # of a standing person, x and y
    *((32, 20), (32, 31), (24, 32), (22, 46), (22, 60), (40, 32), (42, 46), (42, 60), (27, 66), (26, 88)),
    *((26, 110), (37, 66), (38, 88), (38, 110), (30, 18), (34, 18), (28, 19), (36, 19)),
)
ARMS = (("generated", "png"), ("donor", "png"), ("generated", "jpg"))


def main() -> None:
    """Print the table, then one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer pictures and repeats")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    count, repeats = (128, 3) if options.quick else (512, 5)
    generator = build_generator("san", **san_size("small"))
    config = GeneratorConfig(generator="san", generator_args=san_size("small"), size=SIZE)
    pose_transfer = PoseTransfer(generator, config, setup(threads=options.threads))
    with tempfile.TemporaryDirectory() as folder:
        people = packed_people(Path(folder))
        rng = np.random.default_rng(0)
        numbers = rng.choice(PEOPLE**2, count, replace=False)
        pairs = PackedPairs(people, np.stack(np.divmod(numbers, PEOPLE), axis=1))
        batches = [pairs.read(range(i, i + BATCH)) for i in range(0, count, BATCH)]
        bare_pass(pose_transfer, batches[:1])  # warm up
        print(
            f"{count} pictures, batch {BATCH}, {options.threads} threads, {pose_transfer.runtime.precision}"
        )
        print("background  format    forward img/s  whole img/s  fraction  of CPU")
        figures = {}
        for background, file_format in ARMS:
            job = GenerateOptions(background, file_format, BATCH)
            forward, whole = [], []
            for _ in range(repeats):
                forward.append(bare_pass(pose_transfer, batches))
                whole.append(end_to_end(pose_transfer, pairs, Path(folder) / "out", job))
            ratios = np.median(np.array(forward) / np.array(whole), axis=0)
            speeds = count / np.median([forward, whole], axis=1)[:, 0]
            print(
                f"{background:<12}{file_format:<8}{speeds[0]:>15.1f}{speeds[1]:>13.1f}"
                f"{ratios[0]:>10.3f}{ratios[1]:>8.3f}"
            )
            figures[f"{background}_{file_format}"] = {
                "fraction_of_forward": round(ratios[0], 3),
                "fraction_of_cpu_time": round(ratios[1], 3),
                "images_per_second": round(speeds[1], 1),
            }
        fraction = transport_fraction(batches[:4], repeats)
    print(f"transport: {fraction:.3f} of the small mending generator's forward pass")
    headline = figures["_".join(ARMS[0])] | {"transport_fraction": round(fraction, 3)}
    print(json.dumps({**headline, "arms": figures, **pose_transfer.runtime.describe()}))


def transport_fraction(batches: list[PairBatch], repeats: int) -> float:
    """Median ratio of processor time: transport to the generator's forward pass on what was carried."""
    network = build_generator("transport_unet", **transport_unet_size("small"))
    network = network.eval().to(memory_format=torch.channels_last)
    threads, ratios = torch.get_num_threads(), []
    torch.set_num_threads(1)
    with torch.inference_mode():
        network(batches[0])  # warm up
        for _ in range(repeats):
            started = now()
            carried = [with_carried(batch) for batch in batches]
            transported, started = since(started)[1], now()
            for batch in carried:
                network(batch)
            ratios.append(transported / since(started)[1])
    torch.set_num_threads(threads)
    return float(np.median(ratios))


def bare_pass(pose_transfer: PoseTransfer, batches: list[PairBatch]) -> tuple[float, float]:
    """Seconds, and seconds of processor time, for the network alone."""
    device, started = pose_transfer.runtime.device, now()
    with torch.inference_mode(), pose_transfer.runtime.autocast():
        for batch in batches:
            generated = pose_transfer.generator(batch.to(device))
    generated.cpu()  # waits for a GPU
    return since(started)


def end_to_end(
    pose_transfer: PoseTransfer, pairs: PackedPairs, out: Path, options: GenerateOptions
) -> tuple[float, float]:
    """The same for the whole job into a new folder."""
    started = now()
    generate(pose_transfer, pairs, out, options)
    seconds = since(started)
    shutil.rmtree(out)
    return seconds


def now() -> tuple[float, float]:
    """Two clocks: wall and processor."""
    return time.perf_counter(), time.process_time()


def since(started: tuple[float, float]) -> tuple[float, float]:
    """What both clocks counted."""
    wall, processor = now()
    return wall - started[0], processor - started[1]


def packed_people(folder: Path) -> PackedPeople:
    """Figures of a few colored blocks before a noisy gradient, packed."""
    rng = np.random.default_rng(0)
    (folder / "parsing").mkdir()
    records = []
    for number in range(PEOPLE):
        name = f"{number:04d}_c1s1_000000_00.png"
        image = np.linspace(rng.integers(60, 200, 3), rng.integers(60, 200, 3), SIZE[0])[:, None]
        image = (image + rng.normal(0, 8, (*SIZE, 3))).clip(0, 255).astype(np.uint8)
        labels = np.zeros(SIZE, np.uint8)
        for label, top, bottom in ((2, 8, 18), (13, 18, 30), (5, 30, 70), (9, 70, 112), (18, 112, 120)):
            labels[top:bottom, 20:44] = label
            image[top:bottom, 20:44] = rng.integers(0, 256, 3)
        (folder / name).write_bytes(encode_png(image))
        write_parsing(folder / "parsing" / name, labels)
        record = PersonRecord(
            name, name, number, 1, "train", SIZE[1], SIZE[0], f"{number:064x}", f"parsing/{name}"
        )
        pose = np.array(POSE, np.float32) + rng.normal(0, 1, (len(POSE), 2))
        records.append(replace(record, keypoints=pose.astype(np.float32)))
    pack(records, folder, folder / "packed", SIZE)
    return PackedPeople.open(folder / "packed")


if __name__ == "__main__":
    main()
