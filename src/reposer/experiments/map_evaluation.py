"""Measure a predictor of target maps on pairs of a prepared folder: the table and the maps of 64 pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reposer.config import read_json
from reposer.data.packed import PackedPeople
from reposer.data.parsing import colorize
from reposer.data.preparing.prepare import PACKED, PAIRS
from reposer.errors import UserError
from reposer.evaluation.map_quality import MapQualityReport, Maps, claim_maps, evaluate_maps
from reposer.experiments.image_evaluation import GRID_PEOPLE, read_named_pairs
from reposer.files import write_output
from reposer.generation.map_prediction import MapPredictor
from reposer.generation.shipped import PREDICTOR
from reposer.grids import draw_grid
from reposer.images import encode_png
from reposer.models.generators import PREDICTORS
from reposer.structures import PairBatch

GRID_TITLES = ("source", "its map", "predicted", "true map", "true target")


def is_predictor(name: str) -> bool:
    """Whether this is a predictor of maps: the shipped one, a run folder, or an exported folder."""
    if name == PREDICTOR:
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
    pairs = read_named_pairs(pairs_csv or prepared / PAIRS["val"], people)[:limit]

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
    return draw_grid(list(zip(*columns, strict=True)), GRID_TITLES, scale=1, groups=4)
