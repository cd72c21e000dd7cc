"""Sets of images for Frechet distances: the generated ones, the real reference, and the real-against-real
floor.

Copies of photographs score as well as photographs, so a Frechet distance says little without the floor: what
real photographs score against the same reference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors
from torch import Tensor, nn

from reposer.evaluation.quality_report import MetricResult
from reposer.files import write_atomic
from reposer.metrics.frechet import (
    SMALL_SAMPLE,
    FeatureStatistics,
    bootstrap_error,
    frechet_distance,
    is_collapsed,
)

BOOTSTRAP_LIMIT = 20_000  # images whose features are kept for the interval: 160 MB at 2,048 dimensions
NORMAL_95 = 1.959964  # standard errors on each side of the value


@dataclass(frozen=True)
class RealImages:
    """A named set of real images, read in batches as often as needed."""

    name: str
    batches: Callable[[], Iterable[Tensor]]  # uint8 (B, 3, H, W) each
    pids: NDArray[np.int64] | None = None  # (N,) identities in the order of the images, if known


class CollectedFeatures:
    """Features of one set of images, streamed; a value a set, and the rows for a bootstrap while there are
    few.

    Args:
        whole_batches_of: only the first multiple of so many images counts (GFLA's script drops the rest).
    """

    def __init__(self, network: nn.Module, whole_batches_of: int = 1) -> None:
        self.network = network
        self.whole = whole_batches_of
        self.statistics = FeatureStatistics(int(network.dimension))  # type: ignore[arg-type]
        self._pending: list[NDArray[np.float32]] = []  # rows short of a whole batch
        self._kept: list[NDArray[np.float32]] | None = []

    def add(self, images: Tensor) -> None:
        """Images uint8 (B, 3, H, W) on any device."""
        device = next(self.network.parameters()).device
        rows = np.concatenate([*self._pending, self.network(images.to(device)).float().cpu().numpy()])
        usable = len(rows) - len(rows) % self.whole
        self._pending = [rows[usable:]]
        self.statistics.update(rows[:usable])
        if self._kept is not None:
            self._kept.append(rows[:usable])
            if self.statistics.count > BOOTSTRAP_LIMIT:
                self._kept = None

    def features(self) -> NDArray[np.float32] | None:
        """(N, D) rows in order; None when there were too many to keep."""
        return None if self._kept is None else np.concatenate(self._kept)


def score(
    collected: CollectedFeatures, reference: FeatureStatistics, pids: NDArray[np.int64] | None, seed: int
) -> MetricResult:
    """Frechet distance of a set from the reference, with its interval and its warnings."""
    count, other = collected.statistics.count, reference.count
    if min(count, other) < 2:
        return MetricResult(
            None, note=f"not measured: {count} usable images against {other}, at least 2 are needed"
        )
    value = frechet_distance(collected.statistics, reference)
    notes = []
    if min(count, other) < SMALL_SAMPLE:
        notes.append(
            f"small sample, {count} against {other} images: the bias is far larger than the interval; "
            "compare only rows with equal counts"
        )
    if is_collapsed(collected.statistics):
        notes.append("collapsed: all images have the same features")
    features = collected.features()
    error = None
    if features is not None:
        clusters = None if pids is None else pids[: len(features)]
        error = bootstrap_error(features, reference, clusters, seed)
    if error is None:
        return MetricResult(value, count=count, note="; ".join(notes))
    low, high = max(value - NORMAL_95 * error, 0.0), value + NORMAL_95 * error
    return MetricResult(value, low, high, count, note="; ".join(notes))


def reference_statistics(
    network: nn.Module,
    images: RealImages,
    whole_batches_of: int = 1,
    cache: Path | None = None,
    key: str = "",
) -> FeatureStatistics:
    """Statistics of real images; with ``cache`` they are kept in that folder under a hash of images and
    ``key``.

    Args:
        key: what else the numbers depend on: the metric's name and the hashes of its weights.
    """
    if cache is None:
        return _collect(network, images, whole_batches_of).statistics
    digest = hashlib.sha256(f"{key} whole batches of {whole_batches_of}".encode())
    for batch in images.batches():
        digest.update(str(tuple(batch.shape[1:])).encode())  # not the batch size: results do not depend on it
        digest.update(batch.permute(0, 2, 3, 1).contiguous().cpu().numpy().tobytes())
    path = cache / f"frechet-{digest.hexdigest()}"
    known = _read_statistics(path)
    if known is None:
        known = _collect(network, images, whole_batches_of).statistics
        cache.mkdir(parents=True, exist_ok=True)
        content = save_tensors(known.state())
        write_atomic(path, hashlib.sha256(content).digest() + content)
    return known


def floor(
    network: nn.Module,
    others: RealImages | None,
    reference: RealImages,
    statistics: FeatureStatistics,
    whole_batches_of: int,
    seed: int,
) -> MetricResult:
    """Real against real: ``others`` against the reference, or two random halves of the reference."""
    if others is not None:
        collected, pids = _collect(network, others, whole_batches_of), others.pids
        note = f"floor: {others.name}"
    else:
        collected, statistics, first = _split(network, reference, seed)
        pids = None if reference.pids is None else reference.pids[first]
        note = f"floor: two random halves of {reference.name}"
    result = score(collected, statistics, pids, seed)
    return replace(result, note="; ".join(filter(None, (note, result.note))))


def image_batches(images: NDArray[np.uint8], indices: NDArray[np.int64], batch_size: int) -> Iterator[Tensor]:
    """uint8 (B, 3, H, W) batches of images (N, H, W, 3) chosen by index."""
    for start in range(0, len(indices), batch_size):
        rows = np.take(images, indices[start : start + batch_size], axis=0)
        yield torch.from_numpy(rows).permute(0, 3, 1, 2)


def _collect(network: nn.Module, images: RealImages, whole_batches_of: int) -> CollectedFeatures:
    collected = CollectedFeatures(network, whole_batches_of)
    for batch in images.batches():
        collected.add(batch)
    return collected


def _split(
    network: nn.Module, images: RealImages, seed: int
) -> tuple[CollectedFeatures, FeatureStatistics, NDArray[np.bool_]]:
    """Two random halves, and which images are in the first."""
    rng = np.random.default_rng(seed)
    first, second = CollectedFeatures(network), CollectedFeatures(network)
    chosen = [np.empty(0, bool)]
    for batch in images.batches():
        chosen.append(rng.random(len(batch)) < 0.5)  # drawn image by image: the same for every batch size
        inside = torch.from_numpy(chosen[-1])
        for half, part in ((first, batch[inside]), (second, batch[~inside])):
            if len(part):
                half.add(part)
    return first, second.statistics, np.concatenate(chosen)


def _read_statistics(path: Path) -> FeatureStatistics | None:
    """Cached statistics; None when there are none or the file is damaged (they are then computed again)."""
    if not path.is_file():
        return None
    data = path.read_bytes()
    if hashlib.sha256(data[32:]).digest() != data[:32]:
        return None
    return FeatureStatistics.from_state(load_tensors(data[32:]))
