"""Measure a trained generator on pairs of a prepared folder: the rows, the table and the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reposer.annotation.interfaces import KeypointDetector
from reposer.annotation.keypoint_detector import open_keypoint_detector
from reposer.data.packed import PackedPeople
from reposer.data.pairs import load_pairs
from reposer.data.parsing import colorize
from reposer.data.preparing.prepare import PACKED, PAIRS
from reposer.errors import UserError
from reposer.evaluation.image_quality import DEFAULT_METRICS, Method, evaluate_pairs
from reposer.evaluation.quality_report import ImageQualityReport, claim_quality
from reposer.files import write_output
from reposer.generation.map_prediction import MapPredictor
from reposer.generation.pose_transfer import PoseTransfer
from reposer.generation.shipped import GENERATORS
from reposer.grids import draw_grid
from reposer.images import encode_png
from reposer.metrics.protocols import find_metric, weights_in
from reposer.runtime import Runtime
from reposer.structures import PairBatch

PREDICTED = "model, predicted maps"
PICTURE = "people.png"
GRID_PEOPLE = 64  # pairs in the picture, evenly spread over the list
GRID_TITLES = ("source", "target map", "generated", "true target")


def open_model(name: str, runtime: Runtime | None = None) -> PoseTransfer:
    """A generator by what a user calls it: "shipped", "shipped-rsa", a run, an export, or a hub id."""
    if name in GENERATORS:
        return PoseTransfer.shipped(runtime, name)
    if (Path(name) / "checkpoints").is_dir():
        return PoseTransfer.from_run(name, runtime)
    return PoseTransfer.from_pretrained(name, runtime)


def open_detector(text: str, accept_licence: bool) -> KeypointDetector:
    """ "keypointrcnn", or "keypointrcnn=FILE" and "vitpose=FOLDER" with weights of one's own."""
    name, _, place = text.partition("=")
    return open_keypoint_detector(name, place or None, accept_licence=accept_licence)


def evaluate_model(
    model: PoseTransfer,
    prepared: Path,
    out: Path,
    *,
    pairs_csv: Path | None = None,
    metrics: Sequence[str] = DEFAULT_METRICS,
    weights: Path | None = None,
    backgrounds: Sequence[str] = ("generated",),
    limit: int | None = None,
    predictor: MapPredictor | None = None,
    detector: KeypointDetector | None = None,
) -> ImageQualityReport:
    """Write image_quality.{json,md,parquet} and a grid of 64 people into ``out``.

    Args:
        model: the generator; each background is a row of its own.
        prepared: folder written by ``reposer prepare``.
        out: made if missing.
        pairs_csv: columns from,to; default: the validation pairs of ``prepared``.
        metrics: names in ``metrics.protocols.METRICS``.
        weights: folder with .safetensors files of metric networks; default: the weights folder only.
        backgrounds: of ``generation.stitching.BACKGROUNDS``.
        limit: the first so many pairs only.
        predictor: adds the model with predicted target maps as a row, if it reads any.
        detector: of key-points, for pckh.

    Raises:
        UserError: no pairs, unknown names, another image size, or an unknown metric; pckh without a detector,
            or a detector that no metric reads.
    """
    _check_detector(metrics, detector)
    claim_quality(out, PICTURE)
    people = PackedPeople.open(prepared / PACKED)
    if people.size != model.size:
        raise UserError(
            f"{prepared}: images are {people.size}, the model works at {model.size}",
            "prepare at the model's size",
        )
    pairs = read_named_pairs(pairs_csv or prepared / PAIRS["val"], people)[:limit]
    methods: dict[str, Method] = {}
    for background in backgrounds:
        label = "model" if background == "generated" else f"model, {background}'s background"
        methods[label] = _method(model, background)
    if predictor is not None and {"target_parsing", "target_mask"} & set(model.needs()):
        methods[PREDICTED] = _method(model.with_predictor(predictor, "predicted"), "generated")
    report = evaluate_pairs(
        methods,
        people,
        pairs,
        metrics,
        training=np.flatnonzero(people.splits == "train"),
        weights=weights_in(weights) if weights else None,
        detector=detector,
    )
    report.write(out)
    write_output(out / PICTURE, encode_png(pairs_grid(model, people, pairs)))
    return report


def _check_detector(metrics: Sequence[str], detector: KeypointDetector | None) -> None:
    """Whoever asks for a metric by name shall get it, and not a table without it."""
    readers = [name for name in metrics if "generated_keypoints" in getattr(find_metric(name), "needs", ())]
    if readers and detector is None:
        raise UserError(
            f"{readers[0]}: needs a detector of the key-points of the generated images",
            "add --keypoint-detector keypointrcnn, or vitpose=FOLDER",
        )
    if detector is not None and not readers:
        raise UserError("--keypoint-detector: no metric reads it", "add pckh to --metrics, or leave it out")


def read_named_pairs(path: Path, people: PackedPeople) -> NDArray[np.int64]:
    """(P, 2) indices of a CSV of pairs; every unknown name is an error.

    Raises:
        UserError: the first row that cannot be used, or no row at all.
    """
    pairs = load_pairs(path, people.name_index())
    if not len(pairs):
        raise UserError(f"{path}: holds no pairs", "give a list with at least one row below from,to")
    return pairs


def pairs_grid(model: PoseTransfer, people: PackedPeople, pairs: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Source, target map, generated and true target of evenly spread pairs, as one picture."""
    chosen = pairs[np.unique(np.linspace(0, len(pairs) - 1, GRID_PEOPLE).round().astype(int))]
    batch = people.pair_batch(chosen[:, 0], chosen[:, 1])
    columns = (
        list(people.images[chosen[:, 0]]),
        [colorize(labels) for labels in people.parsing[chosen[:, 1]]],
        list(model(batch).permute(0, 2, 3, 1).numpy()),
        list(people.images[chosen[:, 1]]),
    )
    return draw_grid(list(zip(*columns, strict=True)), GRID_TITLES, scale=1, groups=4)


def _method(model: PoseTransfer, background: str) -> Method:
    def method(batch: PairBatch) -> object:
        return model(batch, background)

    return method  # type: ignore[return-value]
