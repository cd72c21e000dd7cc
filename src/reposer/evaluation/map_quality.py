"""How good are predicted target maps? Beside true ones, and what one would use without a predictor.

Two baselines on the same pairs: "donor's map", that of another training person in the nearest pose, which is
what a generator gets from a donor; and "source's map", unchanged. Per pair first, means with intervals over
identities last; the IoU of a label and their mean are those of all pixels of all pairs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reposer.data.packed import PackedPeople
from reposer.data.parsing import LIP_LABELS
from reposer.errors import UserError
from reposer.evaluation.image_quality import nearest_donors
from reposer.evaluation.image_sets import ImageQualityReport, MetricInfo, MetricResult, mean_of
from reposer.metrics.intervals import FEWER, REPEATS
from reposer.metrics.similarity import (
    garments_added,
    garments_kept,
    label_confusion,
    label_iou,
    mask_iou,
    mean_iou,
)
from reposer.sections import markdown_row
from reposer.storage.outputs import claim_outputs, holds_keys, is_older, write_output
from reposer.storage.paths import made_folder
from reposer.storage.tables import parquet_bytes
from reposer.structures import NUM_LABELS, PairBatch

DONOR, SOURCE = "donor's map", "source's map"
Maps = tuple[NDArray[np.uint8], NDArray[np.bool_]]  # (B, H, W) LIP-20 and person mask
Method = Callable[[PairBatch], Maps]
REPORT_FILE, TABLE_FILE, PER_PAIR = (f"map_quality.{suffix}" for suffix in ("json", "md", "parquet"))
_OVER_PEOPLE = f"percentile bootstrap over identities ({REPEATS} draws){FEWER}"
METRICS = {
    "miou": MetricInfo(
        "mean IoU over the labels of the true maps, of all pixels of all pairs", "higher", "none"
    ),
    "mask_iou": MetricInfo("IoU of the person mask and the target's", "higher", _OVER_PEOPLE),
    "garments_kept": MetricInfo(
        "share of the source's garments (1 % of the person or more) that the map has too",
        "higher",
        _OVER_PEOPLE,
    ),
    "garments_added": MetricInfo("share of the map's garments that the source lacks", "lower", _OVER_PEOPLE),
}


@dataclass(frozen=True)
class MapQualityReport:
    """Means and intervals, and the IoU of each label."""

    summary: ImageQualityReport
    labels: dict[str, dict[str, float | None]]  # method -> label -> IoU; None where the truth lacks the label

    def to_markdown(self) -> str:
        """The summary, then a table of labels."""
        methods = list(self.labels)
        lines = ["", markdown_row("label", *methods), markdown_row("---", *("---:" for _ in methods))]
        for label in LIP_LABELS:
            values = [self.labels[method][label] for method in methods]
            if any(value is not None for value in values):
                cells = ("" if value is None else f"{value:.3f}" for value in values)
                lines.append(markdown_row(label, *cells))
        return self.summary.to_markdown() + "\n".join(lines) + "\n"

    def write(self, folder: Path) -> None:
        """Write map_quality.parquet (per pair), .md and, last, .json."""
        made_folder(folder)
        claim_maps(folder)
        text = json.dumps({**self.summary.to_dict(), "labels": self.labels}, indent=2, allow_nan=False)
        write_output(folder / PER_PAIR, parquet_bytes(self.summary.per_image))
        write_output(folder / TABLE_FILE, self.to_markdown().encode())
        write_output(folder / REPORT_FILE, text.encode())


def claim_maps(folder: Path, *more: str) -> None:
    """Refuse, before any work, to replace what no evaluation of label maps wrote.

    Raises:
        UserError: as ``outputs.claim_outputs``.
    """
    older = is_older(folder / REPORT_FILE, holds_keys("settings", "metrics", "rows", "labels"))
    claim_outputs(folder, [PER_PAIR, TABLE_FILE, REPORT_FILE, *more], older=older)


def evaluate_maps(
    methods: Mapping[str, Method],
    people: PackedPeople,
    pairs: NDArray[np.int64],
    *,
    training: NDArray[np.int64],
    batch_size: int = 64,
    seed: int = 0,
) -> MapQualityReport:
    """Measure methods on pairs of prepared people, with both baselines beside them.

    Args:
        methods: by name.
        pairs: (P, 2) positions of source and target in ``people``.
        training: positions of the training people's images: donors of "donor's map".
        seed: of the bootstrap.

    Raises:
        UserError: no pairs.
    """
    pairs = np.asarray(pairs, np.int64).reshape(-1, 2)
    if not len(pairs):
        raise UserError("nothing to evaluate: the list of pairs is empty", "give at least one pair")
    donors = nearest_donors(people, pairs[:, 1], np.asarray(training, np.int64))
    every = np.arange(len(pairs))
    rows = dict.fromkeys((*methods, SOURCE), every) | {DONOR: np.flatnonzero(donors >= 0)}
    table: dict[str, dict[str, MetricResult]] = {}
    labels: dict[str, dict[str, float | None]] = {}
    parts = []
    names = np.array(people.names)
    for name, chosen in rows.items():
        confusion = np.zeros((NUM_LABELS, NUM_LABELS), np.int64)
        values: dict[str, list[NDArray[np.float64]]] = {metric: [] for metric in METRICS if metric != "miou"}
        for start in range(0, len(chosen), batch_size):
            part = chosen[start : start + batch_size]
            sources, targets = pairs[part].T
            parsing, mask = _maps(name, methods, people, sources, targets, donors[part])
            worn = people.parsing[sources]
            confusion += label_confusion(people.parsing[targets], parsing)
            values["mask_iou"].append(mask_iou(mask, people.mask[targets]))
            values["garments_kept"].append(garments_kept(parsing, worn))
            values["garments_added"].append(garments_added(parsing, worn))
        columns = {metric: np.concatenate([*v, np.empty(0)]) for metric, v in values.items()}
        pids = people.pids[pairs[chosen, 1]]
        table[name] = {"miou": _whole(mean_iou(confusion), len(chosen))}
        table[name] |= {metric: mean_of(v, pids, seed) for metric, v in columns.items()}
        labels[name] = {
            label: None if np.isnan(iou) else float(iou)
            for label, iou in zip(LIP_LABELS, label_iou(confusion), strict=True)
        }
        columns_of = {"method": [name] * len(chosen), "source": names[pairs[chosen, 0]]}
        parts.append(pa.table({**columns_of, "target": names[pairs[chosen, 1]], "pid": pids, **columns}))
    settings = {"pairs": len(pairs), "seed": seed}
    return MapQualityReport(ImageQualityReport(table, METRICS, pa.concat_tables(parts), settings), labels)


def _maps(
    name: str,
    methods: Mapping[str, Method],
    people: PackedPeople,
    sources: NDArray[np.int64],
    targets: NDArray[np.int64],
    donors: NDArray[np.int64],
) -> Maps:
    if name in methods:
        return methods[name](people.pair_batch(sources, targets))
    rows = sources if name == SOURCE else donors
    return people.parsing[rows], people.mask[rows]


def _whole(value: float, count: int) -> MetricResult:
    if np.isnan(value):
        return MetricResult(None, note="not measured: the true maps have no label")
    return MetricResult(value, count=count)
