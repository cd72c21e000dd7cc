"""Twelve drawn people in a folder and packed, and a generator of a few weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from reposer.data.packed import PackedPeople
from reposer.data.parsing import write_parsing
from reposer.data.preparing.packing import pack
from reposer.generation.pose_transfer import PoseTransfer
from reposer.images import encode_png, to_float
from reposer.runtime import setup
from reposer.structures import PairBatch, PersonRecord
from reposer.trained.networks import GeneratorConfig

SIZE = (64, 32)


class TinyGenerator(nn.Module):
    """Two convolutions and a BatchNorm over the source image and the target's labels."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 3, 3, padding=1)
        )

    def forward(self, batch: PairBatch) -> Tensor:
        labels = batch.target_parsing[:, None].float() / 20
        generated: Tensor = self.layers(torch.cat([to_float(batch.source_image), labels], 1))
        return generated.tanh()


@pytest.fixture
def pose_transfer() -> PoseTransfer:
    """The tiny generator with statistics that differ from those of any batch."""
    runtime = setup("cpu", "float32", seed=0)
    generator = TinyGenerator()
    norm = generator.layers[1]
    torch.nn.init.uniform_(norm.running_mean, -0.5, 0.5)
    torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    return PoseTransfer(generator, GeneratorConfig(generator="tiny", size=SIZE), runtime)


@pytest.fixture
def people_folder(tmp_path: Path) -> Path:
    """Images, parsing/ and mask/ of twelve people; the last has no parsing map and the one before no mask."""
    root = tmp_path / "people"
    rng = np.random.default_rng(0)
    for folder in ("parsing", "mask"):
        (root / folder).mkdir(parents=True)
    for number in range(12):
        stem = f"{number // 3 + 1:04d}_c{number % 3 + 1}s1_{number:06d}_01"
        image = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        labels = np.zeros(SIZE, np.uint8)
        labels[10 + number : 50, 8:24] = rng.integers(1, 20, (40 - number, 16))
        (root / f"{stem}.png").write_bytes(encode_png(image))
        if number < 11:
            write_parsing(root / "parsing" / f"{stem}.png", labels)
        if number < 10:
            (root / "mask" / f"{stem}.png").write_bytes(encode_png(labels > 3))
    return root


@pytest.fixture
def people(tmp_path: Path, people_folder: Path) -> PackedPeople:
    """The same people, packed."""
    records = []
    for number, path in enumerate(sorted(people_folder.glob("*.png"))):
        parts = {kind: f"{kind}/{path.name}" for kind in ("parsing", "mask")}
        known = {kind: place for kind, place in parts.items() if (people_folder / place).exists()}
        records.append(
            PersonRecord(
                name=path.name,
                path=path.name,
                pid=number // 3 + 1,
                camid=number % 3 + 1,
                split="train",
                width=SIZE[1],
                height=SIZE[0],
                sha256=f"{number:064x}",
                **known,
            )
        )
    pack(records, people_folder, tmp_path / "packed", SIZE)
    return PackedPeople.open(tmp_path / "packed")
