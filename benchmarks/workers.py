"""What sharing a job among workers costs: the plan of a large set, and a simulation with workers that die.

``plan``: ``augment --step plan`` of many pictures of drawn people, in a process of its own: seconds and peak
memory; and what one worker pays before its first picture. ``simulate``: files of a few bytes by workers on
this machine, of which a share is killed at random moments and never comes back, against the same files by one
process: the finished trees are compared by the sha256 of every name and content. What is measured there is
the claims, manifests and fsyncs, with no network at all. With ``--computed`` the one process writes its
manifest alone and the contents of its files are only hashed, for sets of which two do not fit the time.

``ray``: the same files by two workers of Ray and by two processes of this machine; what counts is the time
from a tenth of the shards to the last.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from reposer.data.preparing.prepare import prepare_market1501
from reposer.generation.augmentation import AugmentOptions, augment
from reposer.generation.batch import PictureJob, WriteReport, write_pictures
from reposer.generation.pose_transfer import PoseTransfer
from reposer.images import encode_jpeg, encode_png
from reposer.jobs.executors import in_this_process
from reposer.jobs.shards import Encode, Folder, Put, Rows, ShardFiles
from reposer.jobs.workers import RayCluster, Step, with_ray
from reposer.runtime import setup
from reposer.structures import PairBatch
from reposer.trained.networks import GeneratorConfig

SIZE = (32, 16)
SHARD, IMAGES_EACH, COPIES = 512, 16, 100


def main() -> None:
    """Print the figures, then one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("plan", "simulate", "ray"))
    parser.add_argument("--pictures", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--killed", type=float, default=0.1, help="share of the workers")
    parser.add_argument("--computed", action="store_true", help="of simulate: no second set is written")
    parser.add_argument("--times", type=int, default=2, help="of ray: turns of each; the fastest counts")
    parser.add_argument("--folder", type=Path, help="where to; default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if options.part == "plan":
            figures = plan(Path(folder), options.pictures)
        elif options.part == "ray":
            figures = by_ray(Path(folder), options.pictures, options.times)
        else:
            how = (options.pictures, options.workers, options.killed, options.computed)
            figures = simulate(Path(folder), *how)
    print(json.dumps(figures))


# ---- the plan of a large set


class Stub(nn.Module):
    """The source image."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, batch: PairBatch) -> Tensor:
        return batch.source_image.float() / 127.5 - 1


def plan(folder: Path, pictures: int) -> dict[str, float]:
    """Seconds and megabytes of the plan of a set of so many pictures."""
    images = -(-pictures // COPIES)
    draw(folder / "raw", images)
    in_child(lambda: prepare_market1501(folder / "raw", folder / "prepared", size=SIZE))
    figures: dict[str, float] = {"pictures": images * COPIES}
    for name in ("plan", "work"):
        out = folder / f"{name}.json"
        in_child(partial(stepped, folder, name, out))
        found = json.loads(out.read_text())
        figures |= {f"{name}_{key}": value for key, value in found.items()}
        print(f"{name}: {found['seconds']:.1f} s, peak {found['peak_mb']} MB, {found['own_mb']} MB its own")
    return figures


def stepped(folder: Path, name: str, out: Path) -> None:
    """The step "plan", or a worker that is stopped where it would begin."""
    options = AugmentOptions(factor=COPIES + 1, shard_items=SHARD)
    config = GeneratorConfig(generator="stub", size=SIZE)
    model = PoseTransfer(Stub(), config, setup("cpu", "float32", threads=1))
    started, before = time.perf_counter(), memory("VmRSS")

    def begins(done: int, total: int) -> None:
        raise StopIteration

    how = {"images": folder / "raw", "step": Step(name)}
    with suppress(StopIteration):
        augment(model, folder / "prepared", folder / "out", options, on_progress=begins, **how)
    peak = memory("VmHWM")  # PyTorch alone, before anything is done with it, is most of that
    seconds = round(time.perf_counter() - started, 1)
    out.write_text(json.dumps({"seconds": seconds, "peak_mb": peak, "own_mb": peak - before}))


def memory(kind: str) -> int:
    """Megabytes of this process."""
    return int(Path("/proc/self/status").read_text().split(f"{kind}:")[1].split()[0]) // 1024


def draw(root: Path, images: int) -> None:
    """Noise with a map, in Market-1501's layout; a hundred files behind all names."""
    rng = np.random.default_rng(0)
    for place in ("bounding_box_train", "parsing", "some"):
        (root / place).mkdir(parents=True)
    for number in range(100):
        labels = np.zeros(SIZE, np.uint8)
        labels[4:28, 4:12] = rng.integers(1, 20, (24, 8))
        pixels = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        (root / "some" / f"{number}.jpg").write_bytes(encode_jpeg(pixels, 90))
        (root / "some" / f"{number}.png").write_bytes(encode_png(labels))
    for number in range(images):
        stem = f"{number // IMAGES_EACH + 1:04d}_c{number % 6 + 1}s1_{number:06d}_00"
        for place, suffix in (("bounding_box_train", "jpg"), ("parsing", "png")):
            shutil.copy(root / "some" / f"{number % 100}.{suffix}", root / place / f"{stem}.{suffix}")


# ---- a simulation


class Few:
    """A Maker of files of a few bytes."""

    def read(self, items: range) -> Iterator[range]:
        for start in range(0, len(items), 64):
            yield items[start : start + 64]

    def make(self, batch: range) -> Encode:
        return partial(self._encode, batch)

    def _encode(self, batch: range, put: Put) -> Rows:
        names = [file_name(item) for item in batch]
        return [
            {"file": name, "sha256": put(f"images/{name}", content(item)), "number": item}
            for name, item in zip(names, batch, strict=True)
        ]


def file_name(item: int) -> str:
    """Of a file."""
    return f"{item:08d}.bin"


def content(item: int) -> bytes:
    """Of a file."""
    return hashlib.sha256(str(item).encode()).digest() * 4


def step(out: Path, pictures: int, how: Step) -> WriteReport:
    """One of the job."""
    folder = Folder(out, out, [("number", pa.int64())], synthetic=True)
    job = PictureJob(folder, {"stub": True}, {}, items=pictures, shard_items=SHARD)
    return write_pictures(job, in_this_process(Few), how)


def simulate(folder: Path, pictures: int, workers: int, share: float, computed: bool) -> dict[str, float]:
    """Workers, of whom a share is killed; then the same job by one process."""
    out, times, found = folder / "out", {}, {}
    dice, doomed = random.Random(0), round(share * workers)
    parts = {
        "plan": lambda: step(out, pictures, Step("plan")),
        "work": lambda: work(out, pictures, workers, doomed, dice),
        "finish": lambda: step(out, pictures, Step("finish")),
        "one_process": lambda: one_process(out, pictures, computed),
    }
    for name, do in parts.items():
        times[name] = timed(do)
        print(f"{name} {times[name]:.1f} s", flush=True)
        if name in ("finish", "one_process"):
            found[name] = tree_hash(out, pictures if computed and name == "one_process" else 0)
            shutil.rmtree(out)  # room for one tree is enough
    same = found["finish"] == found["one_process"]
    print(f"{pictures:,} files, {workers} workers, {doomed} killed: trees {'equal' if same else 'DIFFER'}")
    if not same:
        raise SystemExit("the trees differ")
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    figures = {f"{name}_s": round(seconds, 1) for name, seconds in times.items()}
    return {"pictures": pictures, "workers": workers, "killed": doomed, **figures, "peak_mb": peak // 1024}


def one_process(out: Path, pictures: int, computed: bool) -> None:
    """The whole job; computed: without its files."""
    written = ShardFiles.put
    if computed:
        ShardFiles.put = lambda self, place, data: hashlib.sha256(data).hexdigest()
    try:
        step(out, pictures, Step())
    finally:
        ShardFiles.put = written


def work(out: Path, pictures: int, workers: int, doomed: int, dice: random.Random) -> None:
    """All workers at once; those who are to die do at a random share of the work."""
    running = {fork(partial(step, out, pictures, Step("work", (i, workers)))): i for i in range(workers)}
    shards = -(-pictures // SHARD)
    moments = sorted(dice.uniform(0.05, 0.9) for _ in range(doomed))
    victims = dice.sample(sorted(running), doomed)
    for moment, victim in zip(moments, victims, strict=True):
        while len(list((out / "manifest").glob("_*"))) < moment * shards:
            time.sleep(0.05)
        os.kill(victim, signal.SIGKILL)
    for child in running:
        _, status = os.waitpid(child, 0)
        if (os.WIFSIGNALED(status) or status) and child not in victims:
            raise SystemExit("a worker failed")


def by_ray(folder: Path, pictures: int, times: int) -> dict[str, float]:
    """Two workers of Ray against two processes, in turns; of each the fastest."""
    start, work_s = {}, {}
    for turn in range(times):
        for name in ("processes", "ray"):
            out = folder / f"{name}-{turn}"
            step_of = partial(step, out, pictures)
            if name == "ray":
                do = partial(with_ray, step_of, Step(engine=RayCluster()), 2)
            else:
                do = partial(in_processes_of_ours, step_of, out, pictures)
            whole = timed(do)
            found = worked(out)
            start[name] = min(start.get(name, whole), whole - found)
            work_s[name] = min(work_s.get(name, found), found)
            print(f"{pictures:,} files by {name}: {whole:.1f} s, of which {found:.1f} s at work")
        if tree_hash(folder / f"ray-{turn}") != tree_hash(folder / f"processes-{turn}"):
            raise SystemExit("the trees differ")
    overhead = work_s["ray"] / work_s["processes"] - 1
    return {"pictures": pictures, "start_and_end_s": start["ray"], **work_s, "overhead": overhead}


def worked(out: Path) -> float:
    """Seconds from when a tenth of the shards was written until the last was: no start, and no finish."""
    moments = sorted(seal.stat().st_mtime for seal in (out / "manifest").glob("_*"))
    return moments[-1] - moments[len(moments) // 10]


def in_processes_of_ours(step_of: Callable[[Step], object], out: Path, pictures: int) -> None:
    """Plan, two workers, finish."""
    step_of(Step("plan"))
    work(out, pictures, 2, 0, random.Random(0))
    step_of(Step("finish"))


def fork(do: Callable[[], object]) -> int:
    """A child that does it; its process id."""
    child = os.fork()
    if not child:
        try:
            do()
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
    return child


def in_child(do: Callable[[], object]) -> None:
    """The peak memory of a process ought to be its own."""
    _, status = os.waitpid(fork(do), 0)
    if status:
        raise SystemExit("a step failed")


def timed(do: Callable[[], object]) -> float:
    """Seconds."""
    started = time.perf_counter()
    do()
    return time.perf_counter() - started


def tree_hash(folder: Path, computed: int = 0) -> str:
    """sha256 over the names and contents of everything below a folder; computed: files that it would hold."""
    digest = hashlib.sha256()
    for place, folders, names in os.walk(folder):
        folders.sort()
        inside = os.path.relpath(place, folder)
        if computed and inside == "images":
            for item in range(computed):
                digest.update(f"images/{file_name(item)}".encode())
                digest.update(hashlib.sha256(content(item)).digest())
        for name in sorted(names):
            path = os.path.join(place, name)
            digest.update(os.path.normpath(os.path.join(inside, name)).encode())
            with open(path, "rb") as file:
                digest.update(hashlib.sha256(file.read()).digest())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
