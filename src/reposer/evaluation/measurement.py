"""The measuring itself: run every method's images past every metric once, then reduce to a report.

Methods are measured one after the other, so that at most one set of generated features is in memory.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import nn

from reposer.errors import UserError
from reposer.evaluation.image_sets import (
    CollectedFeatures,
    ImageQualityReport,
    MetricInfo,
    MetricResult,
    RealImages,
    Reference,
    floor,
    mean_of,
    reference_features,
    score,
)
from reposer.metrics.intervals import FEWER, REPEATS
from reposer.metrics.protocols import (
    ImageBatch,
    Measure,
    SetMetric,
    WeightFiles,
    find_metric,
    load_metrics,
    weight_hashes,
)
from reposer.metrics.set_scores import BOOTSTRAP_REPEATS

FLOOR = "real against real"

Columns = Mapping[str, Sequence[str] | NDArray[np.int64] | NDArray[np.str_]]  # (P,) each, "target" among them


@dataclass(frozen=True)
class MeasuredRow:
    """One row of the table, to be measured."""

    rows: NDArray[np.int64]  # the pairs that it has a picture for
    batches: Callable[[], Iterator[ImageBatch]]  # in the order of ``rows``


@dataclass(frozen=True)
class MeasurementOptions:
    """What all metrics of an evaluation share."""

    weights: WeightFiles
    device: torch.device
    seed: int  # of the bootstrap
    cache: Path | None  # folder of reference statistics

    @classmethod
    def of(
        cls,
        weights: WeightFiles | None = None,
        device: str | torch.device = "cpu",
        seed: int = 0,
        cache: str | Path | None = None,
    ) -> MeasurementOptions:
        """From what a caller gives, see :class:`Measuring`."""
        return cls(weights or {}, torch.device(device), seed, Path(cache) if cache else None)


class Measuring(TypedDict, total=False):
    """Keywords of what measures images."""

    weights: WeightFiles | None  # files by name that are not in the weights folder, see protocols.weights_in
    device: str | torch.device  # "cpu" unless given
    seed: int  # of the bootstrap; 0 unless given
    cache: str | Path | None  # folder that keeps statistics of reference sets, keyed by their content


def evaluate(
    runs: Mapping[str, MeasuredRow],
    names: Sequence[str],
    columns: Columns,
    pids: NDArray[np.int64] | None,
    sets: Mapping[str, RealImages],
    reference: str,
    fields: set[str],
    options: MeasurementOptions,
    *,
    floors: bool = True,
) -> ImageQualityReport:
    """Measure every run with every metric of ``names``.

    Args:
        columns: what the per-image table says about each of the P pairs.
        pids: (P,) identities that the intervals are drawn over; None draws single images.
        sets: real images: "targets", and "training" where there are any.
        reference: the set for Frechet distances whose protocol leaves it open.
        fields: optional fields that the batches carry.
        floors: add the row of real against real for metrics of whole sets.

    Raises:
        UserError: an unknown metric, or no pairs.
    """
    count = len(columns["target"])
    if not count:
        raise UserError("nothing to evaluate: the list of pairs is empty", "give at least one pair")
    measures, networks, missing = load_metrics(names, options.weights, options.device)
    _drop_unmeasurable(measures, networks, missing, fields, sets)
    chosen = {name: _reference_name(name, reference) for name in networks}
    real = {
        name: _reference(name, network, sets[chosen[name]], options) for name, network in networks.items()
    }
    table: dict[str, dict[str, MetricResult]] = {}
    parts = []
    for method, run in runs.items():
        values, collected = _measure(run, measures, networks, real)
        own = None if pids is None else pids[run.rows]
        cells = {name: mean_of(v, own, options.seed) for name, v in values.items()}
        cells |= {name: score(c, real[name], own, options.seed) for name, c in collected.items()}
        cells |= {
            name: MetricResult(None, note=f"not measured: {reason}") for name, reason in missing.items()
        }
        table[method] = {name: cells[name] for name in names}
        parts.append(_per_image(method, run.rows, columns, values))
    if networks and floors:
        alone = {name for name in networks if _set_metric(name).statistic == "inception_score"}
        apart = {name for name in networks if name in alone or chosen[name] == "training"}
        table[FLOOR] = {
            name: floor(
                *(network, _set_metric(name), sets["targets"] if name in apart else None),
                *(sets[chosen[name]], real[name], options.seed),
            )
            for name, network in networks.items()
            if not _set_metric(name).masked  # masks of the real targets are not at hand here
        }
    described = {name: sets[key].name for name, key in chosen.items() if real[name] is not None}
    infos = {name: _info(name, described.get(name, ""), pids is not None, missing, options) for name in names}
    settings = {"pairs": count, "seed": options.seed, "device": str(options.device)}
    settings |= {"torch": torch.__version__, "python": platform.python_version()}
    return ImageQualityReport(table, infos, pa.concat_tables(parts), settings)


def _measure(
    run: MeasuredRow,
    measures: Mapping[str, Measure],
    networks: Mapping[str, nn.Module],
    real: Mapping[str, Reference],
) -> tuple[dict[str, NDArray[np.float64]], dict[str, CollectedFeatures]]:
    """One pass over a run: per-image values (R,) by metric, and the features of its set metrics."""
    values: dict[str, list[NDArray[np.float64]]] = {name: [] for name in measures}
    collected = {
        name: CollectedFeatures(network, _set_metric(name), real[name]) for name, network in networks.items()
    }
    for batch in run.batches():
        for name, measure in measures.items():
            values[name].append(measure(batch))
        for features in collected.values():
            features.add(*features.metric.shown(batch))
    empty = [np.empty(0)]
    return {name: np.concatenate(parts or empty) for name, parts in values.items()}, collected


def _drop_unmeasurable(
    measures: dict[str, Measure],
    networks: dict[str, nn.Module],
    missing: dict[str, str],
    fields: set[str],
    sets: Mapping[str, RealImages],
) -> None:
    """Move metrics that lack an input from the first two to ``missing``, with the reason."""
    for name in [*measures, *networks]:
        lacking = [field for field in find_metric(name).needs if field not in fields]
        if lacking:
            missing[name] = f"no {' and no '.join(lacking)} of the targets given"
            if lacking == ["generated_keypoints"]:
                missing[name] = "no keypoint detector given"
            measures.pop(name, None)
            networks.pop(name, None)
    for name in list(networks):
        if _reference_name(name, "targets") not in sets:
            missing[name] = "its protocol compares with the whole training set, which is not given"
            del networks[name]


def _set_metric(name: str) -> SetMetric:
    metric = find_metric(name)
    assert isinstance(metric, SetMetric)
    return metric


def _reference_name(name: str, default: str) -> str:
    return _set_metric(name).reference or default


def _reference(name: str, network: nn.Module, images: RealImages, options: MeasurementOptions) -> Reference:
    hashes = weight_hashes(find_metric(name), options.weights)
    key = f"{name} {sorted(hashes.items())} torch {torch.__version__}"
    return reference_features(network, _set_metric(name), images, options.cache, key)


def _per_image(
    method: str, rows: NDArray[np.int64], columns: Columns, values: Mapping[str, NDArray[np.float64]]
) -> pa.Table:
    table = {"method": pa.array([method] * len(rows), pa.string()), "pair": pa.array(rows, pa.int64())}
    table |= {name: pa.array(np.asarray(column)[rows]) for name, column in columns.items()}
    return pa.table(table | {name: pa.array(column, pa.float64()) for name, column in values.items()})


def _info(
    name: str, reference: str, over_people: bool, missing: Mapping[str, str], options: MeasurementOptions
) -> MetricInfo:
    metric = find_metric(name)
    unit = "identities" if over_people else "images"
    if isinstance(metric, SetMetric):
        interval = f"value +- 1.96 jackknife errors over {unit}{FEWER}"
        if metric.statistic == "frechet":
            interval = f"value +- 1.96 bootstrap errors over {unit} ({BOOTSTRAP_REPEATS} draws){FEWER}"
        if metric.statistic != "inception_score":
            interval += ", reference fixed"
    else:
        interval = f"percentile bootstrap over {unit} ({REPEATS} draws){FEWER}"
    hashes = {} if name in missing else weight_hashes(metric, options.weights)
    return MetricInfo(metric.protocol, metric.better, interval, hashes, reference)
