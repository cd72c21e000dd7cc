"""What ``reposer evaluate`` does: measure a generator, or a predictor of label maps, on pairs of people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reposer.annotation.interfaces import KeypointDetector
from reposer.annotation.keypoints import open_keypoint_detector
from reposer.config import read_json
from reposer.data.packed import PackedPeople
from reposer.data.pairs import load_pairs
from reposer.data.parsing import colorize
from reposer.data.preparing.prepare import PACKED, PAIRS
from reposer.data.sources import FurtherSources, check_sources
from reposer.errors import UserError
from reposer.evaluation.image_quality import DEFAULT_METRICS, Method, evaluate_pairs
from reposer.evaluation.image_sets import ImageQualityReport, claim_quality
from reposer.evaluation.map_quality import MapQualityReport, Maps, claim_maps, evaluate_maps
from reposer.generation.pose_transfer import MapPredictor, PoseTransfer, with_predicted_maps
from reposer.generation.stitching import check_background
from reposer.images import encode_png
from reposer.metrics.protocols import find_metric, weights_in
from reposer.models.generators import PREDICTORS
from reposer.progress import Stages
from reposer.sections import draw_grid
from reposer.storage.outputs import write_output
from reposer.storage.paths import contained
from reposer.structures import PairBatch
from reposer.trained.networks import PREDICTOR

# ---- Measure a trained generator on pairs of a prepared folder: the rows, the table and the pictures.

PREDICTED = "model, predicted maps"  # by one image of the person, on the background "generated"
PICTURE = "people.png"
GRID_PEOPLE = 64  # pairs in the picture, evenly spread over the list
GRID_TITLES = ("source", "target map", "generated", "true target")


def open_detector(text: str, accept_license: bool) -> KeypointDetector:
    """ "keypointrcnn", or "keypointrcnn=FILE" and "vitpose=FOLDER" with weights of one's own."""
    name, _, place = text.partition("=")
    return open_keypoint_detector(name, place or None, accept_license=accept_license)


def evaluate_model(
    model: PoseTransfer,
    prepared: Path,
    out: Path,
    *,
    pairs_csv: Path | None = None,
    metrics: Sequence[str] = DEFAULT_METRICS,
    weights: Path | None = None,
    backgrounds: Sequence[str] = ("generated",),
    sources: Sequence[int] = (1,),
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
        sources: numbers of images of the source person; each is a row of its own, on the first background.
        limit: the first so many pairs only.
        predictor: adds the model with predicted target maps as a row, if it reads any.
        detector: of keypoints, for pckh.

    Raises:
        UserError: no pairs, unknown names, another image size, or an unknown metric; pckh without a detector,
            or a detector or weights that no metric reads; no background, an unknown one, or no number of
            sources.
    """
    if not backgrounds or not sources:
        raise UserError("evaluate: no background or no number of sources: nothing to measure", "give one")
    backgrounds = [check_background(name) for name in backgrounds]
    _check_detector(metrics, detector)
    if weights and not any(getattr(find_metric(name), "weights", ()) for name in metrics):
        raise UserError(
            "--weights: no metric reads weights", "add one to --metrics, as lpips, or leave it out"
        )
    claim_quality(out, PICTURE)
    people = PackedPeople.open(prepared / PACKED)
    model = model.at_size(people.size)
    if people.size != model.size:
        raise UserError(
            f"{prepared}: images are {people.size}, the model works at {model.size}",
            "prepare at the model's size",
        )
    pairs = read_named_pairs(pairs_csv or contained(prepared, PAIRS["val"]), people)[:limit]
    methods: dict[str, Method] = {}
    check_sources(*sources)
    rows = [(background, sources[0]) for background in backgrounds]
    rows += [(backgrounds[0], count) for count in sources[1:]]
    for background, count in rows:
        label = "model" if background == "generated" else f"model, {background}'s background"
        methods[_of_sources(label, count)] = _method(model, background, count)
    if (predicting := with_predicted_maps(model, predictor)) is not None:
        methods[_of_sources(PREDICTED, sources[0])] = _method(predicting, "generated", sources[0])
    report = evaluate_pairs(
        methods,
        people,
        pairs,
        metrics,
        training=np.flatnonzero(people.splits == "train"),
        weights=weights_in(weights) if weights else None,
        detector=detector,
        sources=max(sources),
        on_progress=Stages(),
    )
    report.settings["sources"] = list(sources)
    report.write(out)
    write_output(out / PICTURE, encode_png(pairs_grid(model, people, pairs, sources[0])))
    return report


def _check_detector(metrics: Sequence[str], detector: KeypointDetector | None) -> None:
    """A metric that was asked for by name is measured, or the call fails: no table without it."""
    readers = [name for name in metrics if "generated_keypoints" in getattr(find_metric(name), "needs", ())]
    if readers and detector is None:
        raise UserError(
            f"{readers[0]}: needs a detector of the keypoints of the generated images",
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


def pairs_grid(
    model: PoseTransfer, people: PackedPeople, pairs: NDArray[np.int64], sources: int = 1
) -> NDArray[np.uint8]:
    """Source, target map, generated and true target of evenly spread pairs, as one picture."""
    chosen = pairs[np.unique(np.linspace(0, len(pairs) - 1, GRID_PEOPLE).round().astype(int))]
    batch = FurtherSources(people).pair_batch(chosen[:, 0], chosen[:, 1], sources)
    columns = (
        list(people.images[chosen[:, 0]]),
        [colorize(labels) for labels in people.parsing[chosen[:, 1]]],
        list(model(batch).permute(0, 2, 3, 1).numpy()),
        list(people.images[chosen[:, 1]]),
    )
    return draw_grid(list(zip(*columns, strict=True)), GRID_TITLES, scale=1, groups=4)


def _of_sources(label: str, count: int) -> str:
    """The name of a row, with its number of images of the person where that is not the usual one."""
    return label if count == 1 else f"{label}, {count} sources"


def _method(model: PoseTransfer, background: str, sources: int) -> Method:
    def method(batch: PairBatch) -> object:
        more = batch.more_sources
        if more is not None:
            more = more.first(sources - 1)
        return model(replace(batch, more_sources=more), background)

    return method  # type: ignore[return-value]


# ---- Measure a predictor of label maps on pairs of a prepared folder: the table and the maps of 64 pairs.

MAP_GRID_TITLES = ("source", "its map", "predicted", "true map", "true target")


def is_predictor(name: str) -> bool:
    """Whether this is a predictor of label maps: the shipped one, a run folder, or an exported folder."""
    if name in PREDICTOR.shipped:
        return True
    path = Path(name) / "config.json"
    if not path.is_file():
        return False
    settings = read_json(path)
    return "predictor" in settings or settings.get("generator") in PREDICTORS


def evaluate_predictor(
    predictor: MapPredictor,
    prepared: Path,
    out: Path,
    *,
    pairs_csv: Path | None = None,
    limit: int | None = None,
) -> MapQualityReport:
    """Write map_quality.{json,md,parquet} and maps.png into ``out``.

    Args:
        prepared: folder written by ``reposer prepare``.
        pairs_csv: columns from,to; default: the validation pairs of ``prepared``.
        limit: the first so many pairs only.

    Raises:
        UserError: no pairs, unknown names, or another image size.
    """
    claim_maps(out, "maps.png")
    people = PackedPeople.open(prepared / PACKED)
    if tuple(people.size) != tuple(predictor.config.size):
        raise UserError(
            f"{prepared}: images are {people.size}, the predictor works at {predictor.config.size}",
            "prepare at its size",
        )
    pairs = read_named_pairs(pairs_csv or contained(prepared, PAIRS["val"]), people)[:limit]

    def predict(batch: PairBatch) -> Maps:
        parsing, mask = predictor(batch)
        return parsing.cpu().numpy(), mask.cpu().numpy()

    training = np.flatnonzero(people.splits == "train")
    report = evaluate_maps({"predictor": predict}, people, pairs, training=training)
    report.write(out)
    write_output(out / "maps.png", encode_png(_grid(predictor, people, pairs)))
    return report


def _grid(predictor: MapPredictor, people: PackedPeople, pairs: NDArray[np.int64]) -> NDArray[np.uint8]:
    chosen = pairs[np.unique(np.linspace(0, len(pairs) - 1, GRID_PEOPLE).round().astype(int))]
    sources, targets = chosen.T
    predicted = predictor(people.pair_batch(sources, targets))[0].cpu().numpy()
    columns = (
        list(people.images[sources]),
        [colorize(labels) for labels in people.parsing[sources]],
        [colorize(labels) for labels in predicted],
        [colorize(labels) for labels in people.parsing[targets]],
        list(people.images[targets]),
    )
    return draw_grid(list(zip(*columns, strict=True)), MAP_GRID_TITLES, scale=1, groups=4)
