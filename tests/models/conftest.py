"""Small batches and networks for the tests of the models."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from reposer.structures import PairBatch

BatchMaker = Callable[..., PairBatch]


def random_batch(size: int = 2, height: int = 64, width: int = 32, seed: int = 0) -> PairBatch:
    """A batch of noise; every field differs between source and target and from row to row."""
    rng = torch.Generator().manual_seed(seed)

    def draw(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, (size, *shape), generator=rng, dtype=torch.uint8)

    return PairBatch(
        source_image=draw(256, 3, height, width),
        target_image=draw(256, 3, height, width),
        source_parsing=draw(20, height, width),
        target_parsing=draw(20, height, width),
        source_mask=draw(2, height, width).bool(),
        target_mask=draw(2, height, width).bool(),
        source_keypoints=torch.rand(size, 18, 2, generator=rng) * 32,
        target_keypoints=torch.rand(size, 18, 2, generator=rng) * 32,
        pids=torch.arange(size),
    )


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it to put the plain form of RSA-GAN (benchmarks/parts) in the place of ours for this test."""
    path = Path(__file__).parents[2] / "benchmarks" / "parts" / "plain_rsa.py"
    spec = importlib.util.spec_from_file_location("plain_rsa", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda: module.install(monkeypatch.setattr)


@pytest.fixture
def make_batch() -> BatchMaker:
    return random_batch
