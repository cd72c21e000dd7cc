"""What the stages of an augmentation study do: each works in its folder and names the files to seal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reposer.data.budgets import budget_rows
from reposer.data.generated.files import read_rows
from reposer.data.packed import PackedPeople
from reposer.data.preparing.prepare import PACKED
from reposer.evaluation.reid_comparison import ReidReport, compare_methods
from reposer.evaluation.reidentification import Rerank
from reposer.experiments.copying import copy_source
from reposer.experiments.identity import measure_identity
from reposer.experiments.reid_rows import tested_rows, training_note
from reposer.experiments.stages import Stage, StageCache
from reposer.experiments.study.config import Arm
from reposer.experiments.study.painters import Painter, ParserChoice
from reposer.files import write_atomic
from reposer.generation.augmentation import augment
from reposer.generation.augmented_job import AugmentOptions
from reposer.generation.donors import DonorPlan
from reposer.generation.filters import FilterOptions
from reposer.generation.pose_coverage import pose_coverage
from reposer.metrics.retrieval import per_query
from reposer.models.embedding_files import embedding_from_run
from reposer.reid.feature_files import read_features, write_features
from reposer.reid.features import extract_features
from reposer.runtime import Runtime, setup
from reposer.training.reid import train_reid
from reposer.training.reid_config import ReidConfig

SET, RUN = "set", "run"  # folders inside a stage's
SUMMARY = f"{SET}/summary.json"  # of a generated set
FEATURES, SCORES, REPORT = "features.npz", "scores.parquet", "methods.json"
IDENTITY, COVERAGE = "identity.json", "coverage.json"


@dataclass(frozen=True)
class Place:
    """Where and on what a stage computes."""

    data: Path  # the prepared folder
    device: str
    threads: int | None

    @property
    def people(self) -> PackedPeople:
        """The prepared people."""
        return PackedPeople.open(self.data / PACKED)

    def runtime(self) -> Runtime:
        """Device and threads, ready."""
        return setup(self.device, threads=self.threads)


def augment_stage(
    arm: Arm,
    painter: Painter,
    place: Place,
    options: AugmentOptions,
    network: Path | None,
    parser: ParserChoice | None,
    folder: Path,
) -> Sequence[str]:
    """The generated set of an arm; repeated: copies of the sources instead."""
    model = copy_source(place.people) if arm.repeated else painter.open(place.runtime())
    if (rule := arm.filter) is not None:
        filters = FilterOptions(
            identity=network,
            sharpness=rule.sharpness,
            pose=rule.pose,
            pose_quantile=rule.pose_quantile,
            identity_quantile=rule.identity_quantile,
            sharpness_quantile=rule.sharpness_quantile,
        )
        options = replace(options, filters=filters)
    augment(model, place.data, folder / SET, options, parser=parser.open() if parser else None)
    return [SUMMARY]


def cover_stage(
    cache: StageCache, augmented: Stage, place: Place, share: float, choice: int, folder: Path
) -> Sequence[str]:
    """Orientations and poses that the people have with real images, and with the pictures that were kept."""
    people = place.people
    table = read_rows(cache.folder(augmented) / SET)
    kept = table.filter(table["kept"])
    source, donor = (
        np.array([people.index(name) for name in kept[side].to_pylist()], np.int64)
        for side in ("source", "donor")
    )
    plan = DonorPlan(source, donor, kept["copy"].to_numpy(), [])
    rows = budget_rows(people, share, choice)
    figures: dict[str, Any] = {
        "before": pose_coverage(people, rows),
        "after": pose_coverage(people, rows, plan),
    }
    figures |= {"generated": table.num_rows, "kept": kept.num_rows}
    write_atomic(folder / COVERAGE, json.dumps(figures, indent=1).encode())
    return [COVERAGE]


def train_stage(config: ReidConfig, place: Place, folder: Path) -> Sequence[str]:
    """A Re-ID training, which goes on where a kill left it."""
    train_reid(config, folder / RUN, device=place.device)
    return [f"{RUN}/config.json"]


def extract_stage(
    cache: StageCache, training: Stage, place: Place, share: float, choice: int, folder: Path
) -> Sequence[str]:
    """Features of query, gallery and the real training images of the budget."""
    network, info = embedding_from_run(cache.folder(training) / RUN)
    embedding, people = network.to(place.runtime().device), place.people
    query, gallery = tested_rows(people)
    rows = {"query": query, "gallery": gallery, "train": budget_rows(people, share, choice)}
    training_note(info, people, rows)  # refuses people whom the network has seen
    sets = {split: extract_features(embedding, people, chosen) for split, chosen in rows.items()}
    write_features(folder / FEATURES, sets)
    return [FEATURES]


def score_stage(
    cache: StageCache, features: Stage, methods: list[str], rerank: bool, folder: Path
) -> Sequence[str]:
    """Scores of every query with a valid match under every method; and the report of the methods."""
    report = score_features(cache.file(features, FEATURES), methods, rerank)
    columns: dict[str, list[Any]] = {}
    sets = read_features(cache.file(features, FEATURES))
    query = sets["query"]
    for method, result in report.results.items():
        matched = result.scores.hits > 0
        values: dict[str, Any] = {"method": [method] * int(matched.sum())}
        values |= {"query": np.array(query.names)[matched], "pid": query.pids[matched]}
        values |= {name: value[matched] for name, value in per_query(result.scores.worst).items()}
        for name, value in values.items():
            columns.setdefault(name, []).extend(value)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    write_atomic(folder / SCORES, sink.getvalue().to_pybytes())
    write_atomic(folder / REPORT, json.dumps(report.to_dict(), indent=1, allow_nan=False).encode())
    return [SCORES, REPORT]


def score_features(path: Path, methods: Sequence[str], rerank: bool) -> ReidReport:
    """The methods side by side on a features file with the sets query, gallery and train."""
    sets = read_features(path)
    return compare_methods(
        sets["query"], sets["gallery"], sets["train"], methods=methods, rerank=Rerank() if rerank else None
    )


def judge_stage(
    cache: StageCache, judge: Stage, painter: Painter, place: Place, background: str, folder: Path
) -> Sequence[str]:
    """Are generated test people found among the real ones, by a network trained on real images?"""
    model = painter.open(place.runtime())
    measure_identity(model, cache.folder(judge) / RUN, place.data, folder, background=background)
    return [IDENTITY]


def _plain(figures: dict[str, float]) -> dict[str, float | None]:
    """JSON has no NaN."""
    return {name: None if np.isnan(value) else value for name, value in figures.items()}
