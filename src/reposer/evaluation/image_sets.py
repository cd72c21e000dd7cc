"""Sets of images for metrics of whole sets: the generated ones, the real reference, and the real-against-real
floor.

Copies of photographs score as well as photographs, so a distance between sets says little without the floor:
what real photographs score against the same reference. For the Inception Score, which has no reference, the
floor is the score of the real targets.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors
from torch import Tensor, nn

from reposer.metrics import set_scores
from reposer.metrics.intervals import NORMAL_95, mean_interval, student, widening
from reposer.metrics.protocols import SetMetric
from reposer.metrics.set_scores import (
    SMALL_SAMPLE,
    FeatureStatistics,
    bootstrap_error,
    frechet_distance,
    is_collapsed,
)
from reposer.sections import markdown_row
from reposer.storage.files import write_atomic
from reposer.storage.outputs import claim_outputs, holds_keys, is_older, write_output
from reposer.storage.paths import made_folder
from reposer.storage.tables import parquet_bytes

# ---- What an evaluation of images hands over: a table of methods and metrics, every image's values, and how
# to print them.
#
# Rows are methods (the model, its variants, the trivial baselines), columns are metrics. No number appears
# without its protocol, its count and, where there is one, its 95 % interval.

SCHEMA_VERSION = 1
REPORT_FILE, TABLE_FILE, PER_IMAGE = (f"image_quality.{suffix}" for suffix in ("json", "md", "parquet"))


@dataclass(frozen=True, slots=True)
class MetricResult:
    """One cell: a value with its 95 % interval, or the reason why there is none."""

    value: float | None
    low: float | None = None  # 95 % interval, see ``MetricInfo.interval``
    high: float | None = None
    count: int = 0  # images behind the value
    left_out: int = 0  # images with no finite value for this metric (an empty mask, an identical pair in dB)
    note: str = ""  # warnings; "not measured: ..." when value is None


@dataclass(frozen=True, slots=True)
class MetricInfo:
    """One column: what its name pins in this run."""

    protocol: str
    better: str  # "lower" or "higher"
    interval: str  # how the interval was made
    weights: dict[str, str] = field(default_factory=dict)  # sha256 of each weights file by name
    reference: str = ""  # the set of real images, for a Frechet distance


@dataclass(frozen=True)
class ImageQualityReport:
    """The result of ``image_quality.evaluate_pairs`` or ``evaluate_images``."""

    rows: dict[str, dict[str, MetricResult]]  # method -> metric -> cell
    metrics: dict[str, MetricInfo]
    per_image: pa.Table  # one row for each method and pair: names, pid, every per-image metric
    settings: dict[str, Any]  # counts, seed, versions

    def to_markdown(self) -> str:
        """The table, then one line a metric with its protocol, then the warnings."""
        arrows = {"lower": "↓", "higher": "↑"}
        header = [f"{name} {arrows[info.better]}" for name, info in self.metrics.items()]
        lines = [markdown_row("method", *header), markdown_row("---", *("---:" for _ in header))]
        for method, cells in self.rows.items():
            lines.append(markdown_row(method, *(_cell(cells.get(name)) for name in self.metrics)))
        lines += ["", f"{self.settings['pairs']} pairs; 95 % intervals in brackets.", ""]
        lines += [f"- **{name}**: {_describe(info)}" for name, info in self.metrics.items()]
        return "\n".join([*lines, *self._warnings()]) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Everything but the per-image values, in JSON's types."""
        return {
            "schema_version": SCHEMA_VERSION,
            "settings": self.settings,
            "metrics": {name: asdict(info) for name, info in self.metrics.items()},
            "rows": {
                method: {name: asdict(cell) for name, cell in cells.items()}
                for method, cells in self.rows.items()
            },
        }

    def write(self, folder: str | Path) -> None:
        """Write image_quality.json, .md and .parquet (per image); each appears complete or not at all."""
        folder = Path(folder)
        made_folder(folder)
        claim_quality(folder)
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False)
        write_output(folder / PER_IMAGE, parquet_bytes(self.per_image))
        write_output(folder / TABLE_FILE, self.to_markdown().encode())
        write_output(folder / REPORT_FILE, text.encode())  # last: it says that the rest is there

    def _warnings(self) -> list[str]:
        """Notes and left-out images, each once with the methods that it concerns."""
        concerned: dict[str, list[str]] = {}
        for method, cells in self.rows.items():
            for name, cell in cells.items():
                if cell.note:
                    concerned.setdefault(f"{name}: {cell.note}", []).append(method)
                if cell.left_out:
                    text = f"{name}: {cell.left_out} images without a finite value left out"
                    concerned.setdefault(text, []).append(method)
        if not concerned:
            return []
        every = list(self.rows)
        lines = [
            f"- {text}" + ("" if who == every else f" ({', '.join(who)})") for text, who in concerned.items()
        ]
        return ["", "Notes:", "", *lines]


def claim_quality(folder: Path, *more: str) -> None:
    """Refuse, before any work, to replace what no evaluation wrote.

    Raises:
        UserError: as ``outputs.claim_outputs``.
    """
    older = is_older(folder / REPORT_FILE, holds_keys("settings", "metrics", "rows"))
    claim_outputs(folder, [PER_IMAGE, TABLE_FILE, REPORT_FILE, *more], older=older)


def _cell(cell: MetricResult | None) -> str:
    if cell is None:
        return ""
    if cell.value is None:
        return "not measured"
    text = _number(cell.value)
    if cell.low is not None and cell.high is not None:
        text += f" [{_number(cell.low)}, {_number(cell.high)}]"
    return f"{text} (n = {cell.count})"


def _describe(info: MetricInfo) -> str:
    parts = [info.protocol, f"interval: {info.interval}"]
    if info.reference:
        parts.append(f"reference: {info.reference}")
    parts += [f"{name} sha256 {digest[:12]}" for name, digest in info.weights.items()]
    return "; ".join(parts) + f"; {info.better} is better."


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"


BOOTSTRAP_LIMIT = 20_000  # images whose features are kept for the interval: 160 MB at 2,048 dimensions


@dataclass(frozen=True)
class RealImages:
    """A named set of real images, read in batches as often as needed."""

    name: str
    batches: Callable[[], Iterable[Tensor]]  # uint8 (B, 3, H, W) each
    pids: NDArray[np.int64] | None = None  # (N,) identities in the order of the images, if known


# a Gaussian, rows (KID), or none (Inception Score)
Reference = FeatureStatistics | NDArray[np.float32] | None


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


def mean_of(values: NDArray[np.float64], pids: NDArray[np.int64] | None, seed: int) -> MetricResult:
    """The mean of the finite values with its interval; how many are not finite, and left out, is counted.

    Args:
        values: (N,) one for each image.
        pids: (N,) identities that the bootstrap draws; None: it draws images.
        seed: of the bootstrap.
    """
    finite = np.isfinite(values)
    left_out = int((~finite).sum())
    if not finite.any():
        return MetricResult(None, left_out=left_out, note="not measured: no image has a finite value")
    low, high = mean_interval(values[finite], None if pids is None else pids[finite], seed) or (None, None)
    return MetricResult(float(values[finite].mean()), low, high, int(finite.sum()), left_out)


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
    people = count if clusters is None else len(np.unique(clusters))
    redrawn = isinstance(reference, FeatureStatistics)  # a bootstrap; the others leave people out
    error *= NORMAL_95 * widening(people) if redrawn else student(people)
    low, high = max(value - error, floor_of_interval), value + error
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
        made_folder(cache)
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
