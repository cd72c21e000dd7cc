"""Pairs per second: a training's own batches of packed people against opening six files per pair.

Both loaders give the same bytes (checked). The data set is drawn here, at Market-1501's image size, or read
from a folder in its layout (``--root``). Usage: python benchmarks/loader.py [--quick] [--root FOLDER]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from reposer.data.packed import PackedPeople
from reposer.data.pairs import ordered_pairs
from reposer.data.parsing import write_parsing
from reposer.data.preparing.packing import pack
from reposer.data.samplers import draw_pairs
from reposer.images import encode_jpeg, encode_png
from reposer.structures import PairBatch, PersonRecord
from reposer.training.gan.config import DataConfig
from reposer.training.gan.data import GanData

SIZE = (128, 64)  # H, W
BATCH = 32
SEED = 0


@dataclass(frozen=True)
class Pairs:
    """What a training's batches follow from (``training.gan.data.PairsConfig``)."""

    data: DataConfig
    batch_size: int = BATCH
    accumulate: int = 1
    seed: int = SEED


def training_step(folder: Path, *, flip: bool) -> Callable[[int], PairBatch]:
    """The batch of any step, as a training of a generator reads it."""
    data = GanData(Pairs(DataConfig(folder=folder, pairs="pairs.csv", validation_pairs="", flip=flip)))

    def load(step: int) -> PairBatch:
        (part,) = data.parts(step)
        return part.batch

    return load


class FilePerFile(Dataset[list[torch.Tensor]]):
    """The common way: every item opens and decodes the source's and the target's image, map and mask."""

    def __init__(self, records: list[PersonRecord], root: Path, pairs: NDArray[np.int64]) -> None:
        self.records, self.root, self.pairs = records, root, pairs

    def __getitem__(self, item: int) -> list[torch.Tensor]:
        source, target = self.pairs[item]
        values = [value for person in (source, target) for value in self._person(self.records[person])]
        return [*values, torch.tensor(self.records[source].pid)]

    def _person(self, record: PersonRecord) -> list[torch.Tensor]:
        with Image.open(self.root / record.path) as file:
            image = torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1)
        with Image.open(self.root / str(record.parsing)) as file:
            parsing = torch.from_numpy(np.array(file))
        with Image.open(self.root / str(record.mask)) as file:
            mask = torch.from_numpy(np.array(file.convert("1")))
        return [image, parsing, mask, torch.from_numpy(np.array(record.keypoints))]


def as_pair_batch(columns: list[torch.Tensor]) -> PairBatch:
    """The collated columns of FilePerFile by name."""
    kinds = ("image", "parsing", "mask", "keypoints")
    named = [f"{side}_{kind}" for side in ("source", "target") for kind in kinds]
    return PairBatch(**dict(zip([*named, "pids"], columns, strict=True)))


def draw_people(root: Path, count: int) -> list[PersonRecord]:
    """Smooth random pictures (their JPEGs are about as large as Market-1501's), blocky maps and masks."""
    rng = np.random.default_rng(SEED)
    height, width = SIZE
    for folder in ("bounding_box_train", "parsing", "mask"):
        (root / folder).mkdir(parents=True)
    records = []
    for number in range(count):
        stem = f"{2 + number // 15:04d}_c{1 + number % 6}s1_{number:06d}_00"
        coarse = rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
        image = np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
        labels = rng.integers(0, 20, (8, 4), dtype=np.uint8).repeat(height // 8, 0).repeat(width // 4, 1)
        (root / "bounding_box_train" / f"{stem}.jpg").write_bytes(encode_jpeg(image))
        write_parsing(root / "parsing" / f"{stem}.png", labels)
        (root / "mask" / f"{stem}.png").write_bytes(encode_png(labels > 9))
        records.append(record(root, stem, rng.uniform(0, width, (18, 2)).astype(np.float32)))
    return records


def record(root: Path, stem: str, keypoints: NDArray[np.float32]) -> PersonRecord:
    """One person of a folder in Market-1501's layout."""
    path = f"bounding_box_train/{stem}.jpg"
    with Image.open(root / path) as image:
        width, height = image.size
    return PersonRecord(
        name=f"{stem}.jpg",
        path=path,
        pid=int(stem.split("_")[0]),
        camid=int(stem.split("_c")[1][0]),
        split="train",
        width=width,
        height=height,
        sha256="",
        parsing=f"parsing/{stem}.png",
        mask=f"mask/{stem}.png",
        keypoints=keypoints,
    )


def same(a: PairBatch, b: PairBatch) -> bool:
    """Whether two batches hold the same values."""
    return all(torch.equal(getattr(a, field.name), getattr(b, field.name)) for field in fields(a))


def pairs_per_second(load: Callable[[int], object], steps: int) -> float:
    """Rate of ``load(step)`` over the steps."""
    start = time.perf_counter()
    for step in range(steps):
        load(step)
    return steps * BATCH / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer people and repeats")
    parser.add_argument("--root", type=Path, help="folder in Market-1501's layout with parsing/ and mask/")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), arguments.root, quick=arguments.quick)
    print(json.dumps(result))


def measure(folder: Path, root: Path | None, quick: bool) -> dict[str, object]:
    """Draw or list the people, pack them, time the loaders in turn and print the table."""
    repeats, count = (3, 300) if quick else (7, 3000)
    if root is None:
        root = folder / "root"
        records = draw_people(root, count)
    else:
        stems = sorted(path.stem for path in (root / "bounding_box_train").glob("*.jpg"))[:count]
        records = [record(root, stem, np.zeros((18, 2), np.float32)) for stem in stems]
    start = time.perf_counter()
    pack(records, root, folder / "packed", SIZE)
    packing = len(records) / (time.perf_counter() - start)
    people = PackedPeople.open(folder / "packed")
    pairs = ordered_pairs([np.flatnonzero(people.pids == pid) for pid in np.unique(people.pids)])
    names = people.names[pairs]
    (folder / "pairs.csv").write_text("\n".join(["from,to", *(f"{a},{b}" for a, b in names)]) + "\n")
    files = FilePerFile(records, root, pairs)

    def naive_batch(step: int) -> PairBatch:
        items = [files[int(item)] for item in draw_pairs(len(pairs), BATCH, SEED, step)]
        return as_pair_batch([torch.stack(column) for column in zip(*items, strict=True)])

    def naive_workers(steps: int) -> float:
        order = np.concatenate([draw_pairs(len(pairs), BATCH, SEED, step) for step in range(steps)]).tolist()
        loader = iter(DataLoader(files, BATCH, sampler=order, num_workers=2))
        next(loader)  # the start of the workers does not count
        begin = time.perf_counter()
        rest = sum(1 for _ in loader)
        return rest * BATCH / (time.perf_counter() - begin)

    plain, flipping = (training_step(folder, flip=flip) for flip in (False, True))
    identical = all(same(plain(step), naive_batch(step)) for step in range(5))
    few, many = (3, 30) if quick else (8, 200)
    arms: dict[str, Callable[[], float]] = {
        "packed": lambda: pairs_per_second(plain, many),
        "packed_flip": lambda: pairs_per_second(flipping, many),
        "files": lambda: pairs_per_second(naive_batch, few),
        "files_2_workers": lambda: naive_workers(few * 3),
    }
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(repeats):  # in turn, so that a busy moment of the machine hits all of them
        for name, arm in arms.items():
            rates[name].append(arm())
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(
        f"{len(records)} people of {SIZE[0]}x{SIZE[1]}, batches of {BATCH}, {torch.get_num_threads()} threads"
    )
    print(f"{'loader':<18}{'pairs/s':>10}{'min':>10}{'max':>10}{'times files':>13}")
    for name, values in rates.items():
        ratio = medians[name] / medians["files"]
        print(f"{name:<18}{medians[name]:>10.0f}{min(values):>10.0f}{max(values):>10.0f}{ratio:>13.1f}")
    print(f"packing once: {packing:.0f} people/s; batches identical: {identical}")
    return {
        **{f"{name}_pairs_per_second": round(value, 1) for name, value in medians.items()},
        "speedup": round(medians["packed"] / medians["files"], 1),
        "speedup_over_2_workers": round(medians["packed"] / medians["files_2_workers"], 1),
        "packing_people_per_second": round(packing, 1),
        "identical": identical,
    }


if __name__ == "__main__":
    main()
