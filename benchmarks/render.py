"""How fast rendered people are made, beside what a processor does anyway: ``python benchmarks/render.py``.

Every variant renders the same people, poses and cameras. What it is compared with takes turns with it, one
thread each: writing the same pictures as PNG, and the small SAN's forward pass over as many people. Medians
of the ratios within a turn are reported, since images a second say more of the processor than of the code.
``times_png`` and ``times_san`` are those of the data sets' default (128x64, 2x2 samples a pixel): how often
the PNG encoding, or the forward pass, of a picture fits into rendering it; smaller is better. The workers'
start (about half a second, once a data set) is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from reposer.images import encode_png
from reposer.models.generators import build_generator
from reposer.models.san import san_size
from reposer.rendered.renderer import RenderWorkers, plan_shot, render_shots
from reposer.structures import NUM_JOINTS, PairBatch

PEOPLE, BATCH = 8, 16
VARIANTS = {  # name: size, samples a pixel along each axis
    "128x64": ((128, 64), 2),
    "128x64_one_sample": ((128, 64), 1),
    "256x128": ((256, 128), 2),
    "256x256": ((256, 256), 2),
}


def _processor_ms(work: Callable[[], object]) -> float:
    """Milliseconds of this process's processor time for each image of a batch."""
    before = time.process_time()
    work()
    return (time.process_time() - before) / BATCH * 1e3


def _alternatives(images: list[NDArray[np.uint8]]) -> dict[str, Callable[[], object]]:
    """The same pictures as PNG, and the small SAN over as many people of 128x64."""
    network = build_generator("san", **san_size("small")).eval()
    shape = (BATCH, 128, 64)
    image = torch.zeros(BATCH, 3, *shape[1:], dtype=torch.uint8)
    labels, joints = torch.zeros(shape, dtype=torch.uint8), torch.zeros(BATCH, NUM_JOINTS, 2)
    pids, mask = torch.zeros(BATCH, dtype=torch.int64), torch.ones(shape, dtype=torch.bool)
    batch = PairBatch(image, image, labels, labels, mask, mask, joints, joints, pids)

    def forward() -> None:
        with torch.inference_mode():
            network(batch)

    return {"png": lambda: [encode_png(picture) for picture in images], "san": forward}


def measure(repeats: int, batches: int, workers: int) -> dict[str, float]:
    """By variant: milliseconds of processor time, their ratios, images a second with all workers."""
    torch.set_num_threads(1)
    keys = [[(0, 1 + (i + k) % PEOPLE, i) for i in range(BATCH)] for k in range(batches)]
    shots = [plan_shot(*key) for key in keys[0]]
    seen: dict[str, list[float]] = {}
    with RenderWorkers(workers) as pool:
        for size, samples in VARIANTS.values():  # start processes, paint the panoramas, dress the people
            list(pool.render(keys, size, samples))
        pictures = {
            name: list(render_shots(shots, size, samples=samples)[0])
            for name, (size, samples) in VARIANTS.items()
        }
        for _ in range(repeats):
            for name, (size, samples) in VARIANTS.items():
                render = partial(render_shots, shots, size, samples=samples)
                arms = {"render": render, **_alternatives(pictures[name])}
                spent = {arm: _processor_ms(work) for arm, work in arms.items()}
                start = time.perf_counter()
                count = sum(len(images) for images, _, _ in pool.render(keys, size, samples))
                rate = count / (time.perf_counter() - start)
                figures = {f"{arm}_ms": value for arm, value in spent.items()} | {"per_second": rate}
                figures |= {f"times_{arm}": spent["render"] / spent[arm] for arm in ("png", "san")}
                for key, value in figures.items():
                    seen.setdefault(f"{name}_{key}", []).append(value)
    return {name: statistics.median(values) for name, values in seen.items()}


def main() -> None:
    """Print the table and, as the last line, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    repeats, batches = (2, 4) if arguments.quick else (7, 8)
    load = os.getloadavg()[0]
    result = measure(repeats, batches, arguments.workers)
    titles = f"{'render ms':>10}{'PNG ms':>8}{'SAN ms':>8}{'x PNG':>8}{'x SAN':>8}"
    print(f"{'variant':20}{titles}{f'{arguments.workers} workers':>16}")
    columns = {"render_ms": 10, "png_ms": 8, "san_ms": 8, "times_png": 8, "times_san": 8, "per_second": 14}
    for name in VARIANTS:
        print(f"{name:20}" + "".join(f"{result[f'{name}_{c}']:{w}.2f}" for c, w in columns.items()) + "/s")
    print(f"load average before and after: {load:.1f}, {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    figures = {key: result[f"128x64_{key}"] for key in ("times_png", "times_san")} | result
    print(
        json.dumps({key: round(value, 3) for key, value in figures.items()} | {"workers": arguments.workers})
    )


if __name__ == "__main__":
    main()
