"""How fast rendered people are made: ``python benchmarks/render.py [--quick] [--workers 2]``.

Every variant renders the same people, poses and cameras; variants alternate, medians are reported. The
workers' start (about half a second, once a data set) is not counted. ``images_per_second`` is the data
sets' default: 128x64, 2x2 samples a pixel. The table also shows the processor time of this process for one
image, which a busy machine disturbs less.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

from reposer.data.rendered.shots import plan_shot, render_shots
from reposer.data.rendered.workers import RenderWorkers

PEOPLE, BATCH = 8, 16
VARIANTS = {  # name: size, samples a pixel along each axis
    "128x64": ((128, 64), 2),
    "128x64_one_sample": ((128, 64), 1),
    "256x128": ((256, 128), 2),
    "256x256": ((256, 256), 2),
}


def _median_rate(work: Callable[[], int], repeats: int) -> list[float]:
    rates = []
    for _ in range(repeats):
        start = time.perf_counter()
        count = work()
        rates.append(count / (time.perf_counter() - start))
    return rates


def measure(repeats: int, batches: int, workers: int) -> dict[str, float]:
    """Images a second by variant, with all workers and (suffix _1) in this process; milliseconds of CPU."""
    keys = [[(0, 1 + (i + k) % PEOPLE, i) for i in range(BATCH)] for k in range(batches)]
    shots = [plan_shot(*key) for key in keys[0]]
    rates: dict[str, list[float]] = {}
    processor: dict[str, list[float]] = {}
    with RenderWorkers(workers) as pool:
        for size, samples in VARIANTS.values():  # start processes, paint the panoramas, dress the people
            list(pool.render(keys, size, samples))
            render_shots(shots, size, samples=samples)
        for _ in range(repeats):
            for name, (size, samples) in VARIANTS.items():

                def together(size: tuple[int, int] = size, samples: int = samples) -> int:
                    return sum(len(images) for images, _, _ in pool.render(keys, size, samples))

                def alone(size: tuple[int, int] = size, samples: int = samples) -> int:
                    return len(render_shots(shots, size, samples=samples))

                rates.setdefault(name, []).extend(_median_rate(together, 1))
                before = time.process_time()
                rates.setdefault(f"{name}_1", []).extend(_median_rate(alone, 1))
                processor.setdefault(name, []).append((time.process_time() - before) / BATCH * 1e3)
    result = {name: statistics.median(values) for name, values in rates.items()}
    result |= {f"{name}_cpu_ms": statistics.median(values) for name, values in processor.items()}
    return result


def main() -> None:
    """Print the table and, as the last line, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    repeats, batches = (2, 4) if arguments.quick else (7, 8)
    load = os.getloadavg()[0]
    result = measure(repeats, batches, arguments.workers)
    print(
        f"{'variant':20} {'samples':>7} {arguments.workers:>4} workers {'1 process':>10} {'CPU ms/image':>13}"
    )
    for name, (_, samples) in VARIANTS.items():
        print(
            f"{name:20} {samples**2:7d} {result[name]:10.0f}/s {result[f'{name}_1']:8.0f}/s "
            f"{result[f'{name}_cpu_ms']:13.2f}"
        )
    print(f"load average before and after: {load:.1f}, {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    figures = {"images_per_second": result["128x64"]} | result
    print(
        json.dumps({key: round(value, 2) for key, value in figures.items()} | {"workers": arguments.workers})
    )


if __name__ == "__main__":
    main()
