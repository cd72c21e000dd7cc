"""A small data set of drawn people on disk, for the tests of packing and batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from reposer.data.packed import PackedPeople
from reposer.data.parsing import write_parsing
from reposer.data.preparing.packing import pack
from reposer.images import encode_png
from reposer.structures import PersonRecord

MakePeople = Callable[..., list[PersonRecord]]


@pytest.fixture
def make_people(tmp_path: Path) -> MakePeople:
    """Writes ``count`` random people of (height, width) below tmp_path/root and returns their records."""

    def make(count: int, size: tuple[int, int] = (16, 8)) -> list[PersonRecord]:
        rng = np.random.default_rng(count)
        root = tmp_path / "root"
        for folder in ("images", "parsing", "mask"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        records = []
        for number in range(count):
            name = f"{2 + number // 3:04d}_c{1 + number % 6}s1_{number:06d}_00.png"
            image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            (root / "images" / name).write_bytes(encode_png(image))
            write_parsing(root / "parsing" / name, rng.integers(0, 20, size, dtype=np.uint8))
            (root / "mask" / name).write_bytes(encode_png(rng.random(size) < 0.5))
            keypoints = rng.integers(0, min(size), (18, 2)).astype(np.float32)
            keypoints[rng.random(18) < 0.2] = np.nan
            paths = (f"images/{name}", f"parsing/{name}", f"mask/{name}")
            records.append(
                PersonRecord(
                    name=name,
                    path=paths[0],
                    pid=2 + number // 3,
                    camid=1 + number % 6,
                    split="val" if number >= count - 3 else "train",
                    width=size[1],
                    height=size[0],
                    sha256=f"{number:064x}",
                    parsing=paths[1],
                    mask=paths[2],
                    keypoints=keypoints,
                )
            )
        return records

    return make


@pytest.fixture
def people(tmp_path: Path, make_people: MakePeople) -> PackedPeople:
    """Twelve packed people, 16 pixels high and 8 wide."""
    pack(make_people(12), tmp_path / "root", tmp_path / "packed", (16, 8))
    return PackedPeople.open(tmp_path / "packed")
