"""How much of the model's speed a whole generation job keeps: read, generate, stitch, encode, write, manifest.

Two arms in turn, in one process and with the same threads: the bare forward pass over batches that are in memory,
and ``generation.batch.generate`` into a new folder, durable and hashed. SAN small with random weights, 128x64.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from reposer.data.packed import PackedPeople
from reposer.data.packing import pack
from reposer.data.parsing import write_parsing
from reposer.generation.batch import Options, generate
from reposer.generation.export import GeneratorConfig
from reposer.generation.pair_sources import PackedPairs
from reposer.generation.pose_transfer import PoseTransfer
from reposer.images import encode_png
from reposer.models.generators import build_generator
from reposer.models.san import san_size
from reposer.runtime import setup
from reposer.structures import PersonRecord

SIZE, PEOPLE, BATCH = (128, 64), 64, 32
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
        print(f"{'background':<12}{'format':<8}{'forward img/s':>15}{'end to end img/s':>18}{'fraction':>10}")
        results = {}
        for background, file_format in ARMS:
            forward, whole = [], []
            for _ in range(repeats):
                forward.append(count / bare_pass(pose_transfer, batches))
                whole.append(count / end_to_end(pose_transfer, pairs, Path(folder), background, file_format))
            fraction = statistics.median(w / f for w, f in zip(whole, forward, strict=True))
            speeds = statistics.median(forward), statistics.median(whole)
            print(f"{background:<12}{file_format:<8}{speeds[0]:>15.1f}{speeds[1]:>18.1f}{fraction:>10.3f}")
            results[f"{background}_{file_format}"] = round(fraction, 3)
            if (background, file_format) == ARMS[0]:
                headline = {
                    "fraction_of_forward": round(fraction, 3),
                    "images_per_second": round(speeds[1], 1),
                }
    print(json.dumps({**headline, "fractions": results, **pose_transfer.runtime.describe()}))


def bare_pass(pose_transfer: PoseTransfer, batches: list) -> float:
    """Seconds for the network alone."""
    device = pose_transfer.runtime.device
    started = time.perf_counter()
    with torch.inference_mode(), pose_transfer.runtime.autocast():
        for batch in batches:
            generated = pose_transfer.generator(batch.to(device))
    generated.cpu()  # waits for a GPU
    return time.perf_counter() - started


def end_to_end(
    pose_transfer: PoseTransfer, pairs: PackedPairs, folder: Path, background: str, file_format: str
) -> float:
    """Seconds for the whole job into a new folder."""
    out = folder / "out"
    started = time.perf_counter()
    generate(pose_transfer, pairs, out, Options(background, file_format, BATCH))
    seconds = time.perf_counter() - started
    shutil.rmtree(out)
    return seconds


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
        records.append(
            PersonRecord(
                name, name, number, 1, "train", SIZE[1], SIZE[0], f"{number:064x}", f"parsing/{name}"
            )
        )
    pack(records, folder, folder / "packed", SIZE)
    return PackedPeople.open(folder / "packed")


if __name__ == "__main__":
    main()
