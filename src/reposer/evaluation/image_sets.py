"""Sets of images for metrics of whole sets: the generated ones, the real reference, and the real-against-real
floor.

Copies of photographs score as well as photographs, so a distance between sets says little without the floor:
what real photographs score against the same reference. For the Inception Score, which has no reference, the
floor is the score of the real targets.
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
from reposer.metrics import set_scores
from reposer.metrics.frechet import (
    SMALL_SAMPLE,
    FeatureStatistics,
    bootstrap_error,
    frechet_distance,
    is_collapsed,
)
from reposer.metrics.protocols import SetMetric

BOOTSTRAP_LIMIT = 20_000  # images whose features are kept for the interval: 160 MB at 2,048 dimensions
NORMAL_95 = 1.959964  # standard errors on each side of the value


@dataclass(frozen=True)
class RealImages:
    """A named set of real images, read in batches as often as needed."""

    name: str
    batches: Callable[[], Iterable[Tensor]]  # uint8 (B, 3, H, W) each
    pids: NDArray[np.int64] | None = None  # (N,) identities in the order of the images, if known


Reference = (
    FeatureStatistics | NDArray[np.float32] | None
)  # a Gaussian, rows (KID), or none (Inception Score)


class CollectedFeatures:
    """Features of one set of images, streamed; a value a set, and the rows for an interval while there are
    few.

    Args:
        metric: whose ``whole_batches_of`` says that only its first multiple counts (GFLA's script drops the
            rest); KID and Inception Score need every row.
        reference: of a metric with whole batches: one of fewer images shrinks the batch, and so does a set of
            fewer images, as in GFLA's script.
    """

    def __init__(self, network: nn.Module, metric: SetMetric, reference: Reference = None) -> None:
        self.network, self.metric = network, metric
        self.whole = metric.whole_batches_of
        if isinstance(reference, FeatureStatistics):
            self.whole = max(min(self.whole, reference.count), 1)
        self.statistics = FeatureStatistics(int(network.dimension))  # type: ignore[arg-type]
        self.hashes: list[bytes] = []
        self._pending: list[NDArray[np.float32]] = []  # rows short of a whole batch
        self._kept: list[NDArray[np.float32]] | None = []
        self._used: list[NDArray[np.bool_]] = []

    def add(self, images: Tensor, used: NDArray[np.bool_] | None = None) -> None:
        """Images uint8 (B, 3, H, W) on any device; ``used`` (B,) says which of them count, all by default."""
        self._used.append(np.ones(len(images), bool) if used is None else used)
        images = images[torch.from_numpy(self._used[-1])]
        if not len(images):
            return
        device = next(self.network.parameters()).device
        if self.metric.statistic == "inception_score":
            self.hashes += set_scores.pixel_hashes(images)
        rows = np.concatenate([*self._pending, self.network(images.to(device)).float().cpu().numpy()])
        usable = len(rows) - len(rows) % self.whole
        self._pending = [rows[usable:]]
        self._take(rows[:usable])

    def finish(self) -> CollectedFeatures:
        """After the last image: a set smaller than one batch counts whole."""
        if self._pending and not self.statistics.count:
            self._take(np.concatenate(self._pending))
            self._pending = []
        return self

    def features(self) -> NDArray[np.float32] | None:
        """(N, D) rows in order; None when there were too many to keep."""
        if self._kept is None:
            return None
        return np.concatenate([np.empty((0, self.statistics.dimension), np.float32), *self._kept])

    def clusters(self, pids: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
        """Identities of the rows, from those of all images that were added."""
        if pids is None:
            return None
        used = np.concatenate([np.empty(0, bool), *self._used])
        return pids[np.flatnonzero(used)[: self.statistics.count]]

    @property
    def left_out(self) -> int:
        """Images that do not count because their mask is empty."""
        return int(sum((~used).sum() for used in self._used))

    def _take(self, rows: NDArray[np.float32]) -> None:
        self.statistics.update(rows)
        if self._kept is not None:
            self._kept.append(rows)
            if self.statistics.count > BOOTSTRAP_LIMIT and self.metric.statistic == "frechet":
                self._kept = None


def score(
    collected: CollectedFeatures, reference: Reference, pids: NDArray[np.int64] | None, seed: int
) -> MetricResult:
    """The metric's value for a set, with its interval and its warnings.

    Args:
        pids: (N,) identities of all images that were added.
        seed: of the bootstrap of a Frechet distance.
    """
    collected.finish()
    count = collected.statistics.count
    other = len(reference) if isinstance(reference, np.ndarray) else getattr(reference, "count", None)
    needed = 2 * set_scores.SPLITS if other is None else 2
    against = "" if other is None else f" against {other}"
    if min(count, count if other is None else other) < needed:
        note = f"not measured: {count} usable images{against}, at least {needed} are needed"
        return MetricResult(None, left_out=collected.left_out, note=note)
    notes = _warnings(collected, other)
    clusters = collected.clusters(pids)
    if isinstance(reference, FeatureStatistics):
        value, features = frechet_distance(collected.statistics, reference), collected.features()
        error = None if features is None else bootstrap_error(features, reference, clusters, seed)
        floor_of_interval = 0.0
    else:
        features = collected.features()
        assert features is not None  # kept whole for these
        few = count <= BOOTSTRAP_LIMIT
        if reference is not None:
            value = set_scores.kernel_distance(features, reference)
            error = set_scores.kernel_distance_error(features, reference, clusters) if few else None
            floor_of_interval = -np.inf
        else:
            parts = set_scores.parts_of(collected.hashes)
            scores = set_scores.inception_score(features, parts)
            value, floor_of_interval = float(scores.mean()), 1.0
            notes.append(f"standard deviation over the {len(scores)} parts {scores.std():.4f}")
            error = set_scores.inception_score_error(features, parts, clusters) if few else None
    note, left_out = "; ".join(notes), collected.left_out
    if error is None:
        return MetricResult(value, count=count, left_out=left_out, note=note)
    low, high = max(value - NORMAL_95 * error, floor_of_interval), value + NORMAL_95 * error
    return MetricResult(value, low, high, count, left_out, note)


def _warnings(collected: CollectedFeatures, other: int | None) -> list[str]:
    """What a reader must know before the number: few images, a shrunken batch, a collapse."""
    count, metric, notes = collected.statistics.count, collected.metric, []
    if count < SMALL_SAMPLE and metric.statistic == "inception_score":
        notes.append(f"small sample, {count} images: the score grows with the number of images")
    elif other is not None and min(count, other) < SMALL_SAMPLE:
        notes.append(f"small sample, {count} against {other} images: " + _SMALL[metric.statistic])
    if min(collected.whole, count) < metric.whole_batches_of:
        notes.append(
            f"fewer than {metric.whole_batches_of} images on a side: the batch shrinks to"
            f" {min(collected.whole, count)}, as in the script"
        )
    if is_collapsed(collected.statistics):
        notes.append("collapsed: all images have the same features")
    return notes


_SMALL = {
    "frechet": "the bias is far larger than the interval; compare only rows with equal counts",
    "kernel": "without bias, but uncertain",
}


def reference_features(
    network: nn.Module, metric: SetMetric, images: RealImages, cache: Path | None = None, key: str = ""
) -> Reference:
    """What a metric needs of real images; with ``cache`` the statistics of a Frechet distance are kept in
    that folder under a hash of images and ``key``.

    Args:
        key: what else the numbers depend on: the metric's name and the hashes of its weights.
    """
    if metric.statistic == "inception_score":
        return None
    if metric.statistic == "kernel":
        return _collect(network, metric, images).features()
    if cache is None:
        return _collect(network, metric, images).statistics
    digest = hashlib.sha256(f"{key} whole batches of {metric.whole_batches_of}".encode())
    for batch in images.batches():
        digest.update(str(tuple(batch.shape[1:])).encode())  # not the batch size: results do not depend on it
        digest.update(batch.permute(0, 2, 3, 1).contiguous().cpu().numpy().tobytes())
    path = cache / f"frechet-{digest.hexdigest()}"
    known = _read_statistics(path)
    if known is None:
        known = _collect(network, metric, images).statistics
        cache.mkdir(parents=True, exist_ok=True)
        content = save_tensors(known.state())
        write_atomic(path, hashlib.sha256(content).digest() + content)
    return known


def floor(
    network: nn.Module,
    metric: SetMetric,
    others: RealImages | None,
    real: RealImages,
    reference: Reference,
    seed: int,
) -> MetricResult:
    """Real against real: ``others`` against the reference, or two random halves of the ``real`` images."""
    if others is not None:
        collected, pids = _collect(network, metric, others, reference), others.pids
        note = f"floor: {others.name}"
    else:
        collected, second, first = _split(network, metric, real, seed)
        reference = second.features() if metric.statistic == "kernel" else second.statistics
        pids = None if real.pids is None else real.pids[first]
        note = f"floor: two random halves of {real.name}"
    result = score(collected, reference, pids, seed)
    return replace(result, note="; ".join(filter(None, (note, result.note))))


def image_batches(images: NDArray[np.uint8], indices: NDArray[np.int64], batch_size: int) -> Iterator[Tensor]:
    """uint8 (B, 3, H, W) batches of images (N, H, W, 3) chosen by index."""
    for start in range(0, len(indices), batch_size):
        rows = np.take(images, indices[start : start + batch_size], axis=0)
        yield torch.from_numpy(rows).permute(0, 3, 1, 2)


def _collect(
    network: nn.Module, metric: SetMetric, images: RealImages, reference: Reference = None
) -> CollectedFeatures:
    collected = CollectedFeatures(network, metric, reference)
    for batch in images.batches():
        collected.add(batch)
    return collected.finish()


def _split(
    network: nn.Module, metric: SetMetric, images: RealImages, seed: int
) -> tuple[CollectedFeatures, CollectedFeatures, NDArray[np.bool_]]:
    """Two random halves, and which images are in the first."""
    rng = np.random.default_rng(seed)
    first, second = CollectedFeatures(network, metric), CollectedFeatures(network, metric)
    chosen = [np.empty(0, bool)]
    for batch in images.batches():
        chosen.append(rng.random(len(batch)) < 0.5)  # drawn image by image: the same for every batch size
        inside = torch.from_numpy(chosen[-1])
        for half, part in ((first, batch[inside]), (second, batch[~inside])):
            if len(part):
                half.add(part)
    return first, second.finish(), np.concatenate(chosen)


def _read_statistics(path: Path) -> FeatureStatistics | None:
    """Cached statistics; None when there are none or the file is damaged (they are then computed again)."""
    if not path.is_file():
        return None
    data = path.read_bytes()
    if hashlib.sha256(data[32:]).digest() != data[:32]:
        return None
    return FeatureStatistics.from_state(load_tensors(data[32:]))
