"""What an augmented set costs besides the generator, and how fast and small its verification is.

``overhead``: the shipped SAN over batches in memory against ``augment`` into a new folder (donors, reading,
JPEG, hashes, fsync, manifest, links to the real images, summary), in turn, in one process, on the same
threads; the share by which the whole is slower. ``overhead_cpu`` says the same in processor time, which tells
more on a machine that is busy with other things. ``verify_*``: a set of many rows with tiny files, written in
a child and verified in another, whose peak memory is taken; ``verify_over_hashing`` is its time for a file
over that of reading and hashing one.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from reposer.data.layouts.market1501 import generated_name
from reposer.data.packed import PackedPeople
from reposer.data.preparing.prepare import PACKED, prepare_market1501
from reposer.generation.augmentation import AugmentOptions, augment
from reposer.generation.augmented_rows import KIND, REAL_COLUMNS, REAL_ROWS, columns_of, write_summary
from reposer.generation.pictures import mark
from reposer.generation.pose_transfer import PoseTransfer
from reposer.rendered.dataset import write_rendered_dataset
from reposer.runtime import setup
from reposer.storage.files import sha256_bytes
from reposer.storage.manifest import IMAGES, JOB, MANIFEST, part_path, write_part
from reposer.structures import PairBatch

BATCH, SHARD, COPIES = 32, 512, 100
CONTENTS = 1000  # different files behind the names of the set that is verified: 1,000 links to each
BYTES = 3000  # a JPEG of 128x64


def main() -> None:
    """Print the tables, then one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer pictures, rows and repeats")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, help="of the set that is verified")
    parser.add_argument("--only", choices=("overhead", "verify"), help="one of the two parts")
    options = parser.parse_args()
    people, repeats, rows = (8, 3, 50_000) if options.quick else (16, 5, 1_000_000)
    with tempfile.TemporaryDirectory() as folder:
        figures: dict[str, float] = {}
        if options.only != "verify":
            figures |= overhead(Path(folder), people, repeats, options.threads)
        if options.only != "overhead":
            figures |= verification(Path(folder) / "many", options.rows or rows)
    print(json.dumps(figures))


def overhead(folder: Path, people: int, repeats: int, threads: int) -> dict[str, float]:
    """The bare forward pass and the whole command in turn."""
    write_rendered_dataset(folder / "raw", identities=people, images_per_identity=16, test_identities=0)
    prepare_market1501(folder / "raw", folder / "prepared")
    pose_transfer = PoseTransfer.from_pretrained("shipped", setup(threads=threads))
    packed = PackedPeople.open(folder / "prepared" / PACKED)
    options = AugmentOptions(factor=3, batch_size=BATCH, shard_items=SHARD)
    rng = np.random.default_rng(0)
    count = 2 * len(packed)
    batches = [packed.pair_batch(*rng.integers(0, len(packed), (2, BATCH))) for _ in range(count // BATCH)]
    bare(pose_transfer, batches[:2])  # warm up
    forward, whole = [], []
    for _ in range(repeats):
        forward.append(bare(pose_transfer, batches))
        started = now()
        augment(pose_transfer, folder / "prepared", folder / "out", options, images=folder / "raw")
        whole.append(since(started))
        shutil.rmtree(folder / "out")
    ratio = np.median(np.array(whole) / np.array(forward), axis=0) - 1
    speed = count / np.median([forward, whole], axis=1)[:, 0]
    print(f"{count} pictures, batch {BATCH}, {threads} threads, {repeats} repeats")
    print("forward img/s   augment img/s   overhead   of processor time")
    print(f"{speed[0]:>13.1f}{speed[1]:>16.1f}{ratio[0]:>11.1%}{ratio[1]:>20.1%}")
    return {
        "overhead": round(float(ratio[0]), 4),
        "overhead_cpu": round(float(ratio[1]), 4),
        "images_per_s": round(float(speed[1]), 1),
    }


def bare(pose_transfer: PoseTransfer, batches: list[PairBatch]) -> tuple[float, float]:
    """Seconds, and seconds of processor time, for the network alone."""
    device, started = pose_transfer.runtime.device, now()
    with torch.inference_mode(), pose_transfer.runtime.autocast():
        for batch in batches:
            generated = pose_transfer.generator(batch.to(device))
    generated.cpu()  # waits for a GPU
    return since(started)


def now() -> tuple[float, float]:
    """Two clocks: wall and processor."""
    return time.perf_counter(), time.process_time()


def since(started: tuple[float, float]) -> tuple[float, float]:
    """What both clocks counted."""
    wall, processor = now()
    return wall - started[0], processor - started[1]


# ---- verification

# What `reposer verify` does, then the program's own peak (Linux; ru_maxrss begins with that of its parent).
_VERIFY = """
import sys, time
from pathlib import Path
from reposer.workflows.verify import verify_folder
started, before = time.perf_counter(), time.process_time()
faults = len(verify_folder(Path(sys.argv[1]))[1])
seconds, processor = time.perf_counter() - started, time.process_time() - before
peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
print(faults, seconds, processor, peak)
"""


def verification(folder: Path, rows: int) -> dict[str, float]:
    """Rows a second and peak memory of a process that verifies a set and does nothing else."""
    write_set(folder, rows)
    done = subprocess.run([sys.executable, "-c", _VERIFY, folder], capture_output=True, text=True, check=True)
    faults, seconds, processor, peak = (float(value) for value in done.stdout.split())
    if faults:
        raise SystemExit(f"the set is sound, and yet: {faults:.0f} faults")
    plain = hashing_seconds(folder, min(rows, 20_000)) / min(rows, 20_000)
    print(f"hashing alone: {1 / plain:,.0f} files a second")
    print(f"verify: {rows:,} rows and files, {rows / seconds:,.0f} a second, peak {peak:.0f} MB")
    print(f"and {rows / processor:,.0f} a second of processor time")
    return {
        "verify_rows": rows,
        "verify_over_hashing": round(seconds / rows / plain, 2),
        "verify_rows_per_s": round(rows / seconds),
        "verify_rows_per_cpu_s": round(rows / processor),
        "verify_peak_mb": round(peak, 1),
    }


def hashing_seconds(folder: Path, count: int) -> float:
    """What verification cannot do without: read and hash each of ``count`` files, one after another."""
    paths = sorted((folder / IMAGES).rglob("*.jpg"))[:count]
    started = time.perf_counter()
    for path in paths:
        sha256_bytes(path.read_bytes())
    return (time.perf_counter() - started) * count / len(paths)


def write_set(folder: Path, rows: int) -> None:
    """A sound set of COPIES pictures of each real image; the files hold a mark and noise, not fsynced."""
    (folder / MANIFEST).mkdir(parents=True)
    (folder / IMAGES).mkdir()
    (folder / "contents").mkdir()
    rng = np.random.default_rng(0)
    digests = []
    for number in range(CONTENTS):
        data = mark(b"\xff\xd8" + rng.bytes(BYTES))  # as a JPEG begins
        (folder / "contents" / str(number)).write_bytes(data)
        digests.append(sha256_bytes(data))
    sources = [real_row(n) for n in range(-(-rows // COPIES))]
    settings = {
        **{"kind": KIND, "factor": COPIES + 1, "policy": "any", "background": "generated", "seed": 0},
        **{"checkpoint": "0" * 64, "trained_on": "1" * 64, "real": "none", "format": "jpg 95"},
    }
    job = {"schema_version": 1, "items": rows, "shard_items": SHARD, "settings": settings}
    (folder / JOB).write_text(json.dumps(job))
    write_part(folder / REAL_ROWS, sources, REAL_COLUMNS, synthetic=False)
    for shard, start in enumerate(range(0, rows, SHARD)):
        part = []
        for item in range(start, min(start + SHARD, rows)):
            source, donor = sources[item // COPIES], sources[item % len(sources)]
            row = generated_row(item, source, donor, digests[item % CONTENTS]) | {
                key: settings[key] for key in ("policy", "background", "seed", "checkpoint", "trained_on")
            }
            (folder / IMAGES / row["file"]).hardlink_to(folder / "contents" / str(item % CONTENTS))
            part.append(row)
        write_part(part_path(folder, shard), part, columns_of(settings))
    shutil.rmtree(folder / "contents")
    write_summary(folder)


def real_row(number: int) -> dict[str, object]:
    """A row of real.parquet."""
    pid, camid = number // 16 + 1, number % 6 + 1
    name = f"{pid:04d}_c{camid}s1_{number:06d}_00.jpg"
    return {"file": name, "sha256": sha256_bytes(name.encode()), "pid": pid, "camid": camid}


def generated_row(
    item: int, source: dict[str, object], donor: dict[str, object], digest: str
) -> dict[str, object]:
    """A row of the manifest, the columns that are the same in all rows aside."""
    copy = item % COPIES + 1
    sides = {
        f"{side}{suffix}": image[column]
        for side, image in (("source", source), ("donor", donor))
        for suffix, column in (("", "file"), ("_sha256", "sha256"), ("_pid", "pid"), ("_camid", "camid"))
    }
    return {
        "file": generated_name(str(source["file"]), copy, "jpg"),
        "sha256": digest,
        **sides,
        **{"pid": source["pid"], "camid": source["camid"], "copy": copy},
        **{"synthetic": True, "kept": True},
    }


if __name__ == "__main__":
    main()
