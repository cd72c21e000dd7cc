"""A small packed data set of noise people, and a tiny feature network with its weights in a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from reposer.data.packed import PackedPeople
from reposer.data.preparing.packing import pack
from reposer.metrics.protocols import METRICS, SetMetric
from reposer.storage.files import sha256_file
from reposer.structures import PersonRecord

SIZE = (32, 16)
PEOPLE, PICTURES = 8, 5  # of each; people 5-8 are the held-out ones


@pytest.fixture(scope="session")
def people(tmp_path_factory: pytest.TempPathFactory) -> PackedPeople:
    """40 pictures: pids 1-4 train, 5-8 val; one training and one held-out picture without keypoints."""
    root = tmp_path_factory.mktemp("people")
    rng = np.random.default_rng(0)
    records = []
    for pid in range(1, PEOPLE + 1):
        for number in range(PICTURES):
            name = f"{pid:04d}_c1s1_{number:06d}_00.png"
            mask = np.zeros(SIZE, np.uint8)
            mask[4:28, 3 : 8 + number] = 1
            Image.fromarray(rng.integers(0, 256, (*SIZE, 3), np.uint8)).save(root / name)
            Image.fromarray(mask * 5).save(root / f"parsing-{name}")
            Image.fromarray(mask * 255).save(root / f"mask-{name}")
            keypoints = (rng.random((18, 2)) * [SIZE[1], SIZE[0]]).astype(np.float32)
            keypoints[[0, 4, 15]] = np.nan
            records.append(
                PersonRecord(
                    name=name,
                    path=name,
                    pid=pid,
                    camid=1,
                    split="train" if pid <= PEOPLE // 2 else "val",
                    width=SIZE[1],
                    height=SIZE[0],
                    sha256=sha256_file(root / name),
                    parsing=f"parsing-{name}",
                    mask=f"mask-{name}",
                    keypoints=None if (pid, number) in ((2, 0), (6, 0)) else keypoints,
                )
            )
    pack(records, root, root / "packed", SIZE)
    return PackedPeople.open(root / "packed")


class TinyNetwork(nn.Module):
    """Pooled pixels through one matrix: 7 features."""

    dimension = 7

    def __init__(self, weights: Path) -> None:
        super().__init__()
        self.matrix = nn.Parameter(load_file(weights)["matrix"], requires_grad=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (B, 3, H, W) -> float32 (B, 7)."""
        return nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1) @ self.matrix


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Registers frechet_tiny and frechet_tiny_gfla (training reference, batches of 8); their weights."""
    path = tmp_path / "tiny.safetensors"
    save_file({"matrix": torch.randn(12, 7, generator=torch.Generator().manual_seed(0))}, path)
    monkeypatch.setitem(METRICS, "frechet_tiny", SetMetric("tiny", TinyNetwork, ("tiny",)))
    strict = SetMetric("tiny", TinyNetwork, ("tiny",), reference="training", whole_batches_of=8)
    monkeypatch.setitem(METRICS, "frechet_tiny_gfla", strict)
    for name, statistic, masked in (
        *(("kid_tiny", "kernel", False), ("is_tiny", "inception_score", False)),
        ("mask_is_tiny", "inception_score", True),
    ):
        metric = SetMetric("tiny", TinyNetwork, ("tiny",), statistic=statistic, masked=masked)
        monkeypatch.setitem(METRICS, name, metric)
    return {"tiny": path}


@pytest.fixture
def tiny_network(tiny: dict[str, Path]) -> nn.Module:
    """The network of frechet_tiny."""
    return TinyNetwork(tiny["tiny"])
