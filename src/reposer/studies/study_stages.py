"""What the stages of an augmentation study do: each works in its folder and names the files to seal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reposer.data.orientation import ORIENTATIONS
from reposer.data.packed import PackedPeople
from reposer.data.preparing.prepare import PACKED
from reposer.data.records import kept_by_hand
from reposer.data.samplers import budget_rows
from reposer.evaluation.reid_comparison import ReidReport, compare_methods
from reposer.evaluation.reidentification import Rerank
from reposer.generation.augmentation import AugmentOptions, augment
from reposer.generation.augmented_rows import set_schema
from reposer.generation.donors import DonorPlan
from reposer.generation.pose_transfer import PoseTransfer
from reposer.generation.poses import FAR, PoseSpace
from reposer.jobs.stages import Stage, StageCache
from reposer.metrics.retrieval import per_query
from reposer.models.generators import Paste
from reposer.reid.features import extract_features, read_features, write_features
from reposer.runtime import Runtime, setup
from reposer.storage.files import write_atomic
from reposer.storage.manifest import read_rows
from reposer.storage.tables import parquet_bytes
from reposer.studies.config import Arm, GeneratorChoice, ParserChoice
from reposer.trained.networks import EMBEDDING, GeneratorConfig, of_run
from reposer.training.loop import train
from reposer.training.reid.config import ReidConfig
from reposer.workflows.identity import measure_identity
from reposer.workflows.reid_features import open_judge, tested_rows, training_note

# ---- A generator that generates nothing: its picture is the source image. The control of an augmentation
# study.
#
# A set made by it goes the whole way of a generated set (files, manifest, mixing, labels, weights), so that a
# training on it differs from one on generated pictures in the pictures alone.


def copy_source(people: PackedPeople) -> PoseTransfer:
    """The control for the training people of a prepared folder."""
    return PoseTransfer(
        Paste(),
        GeneratorConfig(
            generator="copy",
            size=people.size,
            trained_on="nobody",
            identity_hash=people.identity_hash("train"),
        ),
    )


# ---- How much of the space of poses the images of each person cover, before and after augmentation.

REFERENCES = 32  # poses of each orientation
_STREAM = 41  # of random numbers


def pose_coverage(
    people: PackedPeople, rows: NDArray[np.int64], extra_donors: DonorPlan | None = None, *, seed: int = 0
) -> dict[str, float]:
    """Orientations and poses that the people of ``rows`` have, each person counting once.

    The reference poses are typical poses among ``rows``, as many of each orientation as there are up to
    REFERENCES; they do not depend on ``extra_donors``, so that figures of one ``rows`` compare.

    Args:
        rows: (N,) real images.
        extra_donors: generated images, taken to have exactly their donor's pose and to show their source's
            person (what a generator makes of that is another question).
        seed: of the choice of references.

    Returns:
        people: P, those with an image in ``rows``;
        images, unknown: images in all, generated ones included, and those whose pose is unknown;
        orientations: mean over people of how many of the 8 orientations they show;
        all_orientations: share of people who show all 8;
        pose_gap: mean over people and references of the distance to the person's nearest pose, in torso
        lengths as in ``pose_space``; people without any known pose are left out. NaN without references;
        worst_pose_gap: the same with the mean over people of their farthest reference.
    """
    rows = np.unique(np.asarray(rows, np.int64))
    pids, donors = people.pids[rows], rows
    if extra_donors is not None:
        pids = np.concatenate([pids, people.pids[extra_donors.source]])
        donors = np.concatenate([donors, extra_donors.donor])
    poses = PoseSpace.of_people(people, rows)
    references = _references(poses, seed)
    shown, place = np.unique(donors, return_inverse=True)  # a donor of many is measured once
    space = PoseSpace.of_people(people, shown)
    names, person = np.unique(pids, return_inverse=True)
    known = space.known[place]
    seen = np.zeros((len(names), len(ORIENTATIONS)), np.bool_)
    seen[person[known], space.orientations[place[known]]] = True
    order = np.flatnonzero(known)[np.argsort(person[known], kind="stable")]
    gap = worst = np.nan
    if len(order) and len(references):
        distance = space.distance(references)  # (shown, R)
        starts = np.flatnonzero(np.diff(person[order], prepend=-1))
        nearest = [distance[place[part]].min(0) for part in np.split(order, starts[1:])]
        gaps = np.ma.masked_equal(np.stack(nearest), FAR)  # (people, R)
        gap, worst = float(gaps.mean()), float(gaps.max(1).mean())
    return {
        "people": len(names),
        "images": len(donors),
        "unknown": int((~known).sum()),
        "orientations": float(seen.sum(1).mean()) if len(names) else np.nan,
        "all_orientations": float(seen.all(1).mean()) if len(names) else np.nan,
        "pose_gap": gap,
        "worst_pose_gap": worst,
    }


def _references(poses: PoseSpace, seed: int) -> PoseSpace:
    """Typical poses, evenly over the orientations."""
    rng = np.random.default_rng([seed, _STREAM])
    typical = np.flatnonzero(poses.typical(rng))
    facing = poses.orientations[typical]
    drawn = [rng.permutation(typical[facing == o])[:REFERENCES] for o in range(len(ORIENTATIONS))]
    return poses[np.concatenate(drawn)]


# ---- What the stages of an augmentation study do: each works in its folder and names the files to seal.

SET, RUN = "set", "run"  # folders inside a stage's
SUMMARY = f"{SET}/summary.json"  # of a generated set
FEATURES, SCORES, REPORT = "features.npz", "scores.parquet", "methods.json"
IDENTITY, COVERAGE = "identity.json", "coverage.json"


@dataclass(frozen=True)
class StageContext:
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
    painter: GeneratorChoice,
    place: StageContext,
    options: AugmentOptions,
    network: Path | None,
    parser: ParserChoice | None,
    folder: Path,
) -> Sequence[str]:
    """The generated set of an arm; repeated: copies of the sources instead."""
    model = copy_source(place.people) if arm.repeated else painter.open(place.runtime())
    options = replace(options, filters=arm.filter)
    helpers: dict[str, Any] = {"reid_run": network, "parser": parser.open() if parser else None}
    augment(model, place.data, folder / SET, options, **helpers)
    return [SUMMARY]


def cover_stage(
    cache: StageCache, augmented: Stage, place: StageContext, share: float, choice: int, folder: Path
) -> Sequence[str]:
    """Orientations and poses that the people have with real images, and with the pictures that were kept."""
    people = place.people
    place_of_set = cache.folder(augmented) / SET
    table = read_rows(place_of_set, set_schema(place_of_set))
    columns = (table[name].to_pylist() for name in ("file", "sha256", "kept"))
    kept = table.filter(pa.array(kept_by_hand(place_of_set, *columns)))
    source, donor = (
        np.array([people.index(name) for name in kept[side].to_pylist()], np.int64)
        for side in ("source", "donor")
    )
    plan = DonorPlan(source, donor, kept["copy"].to_numpy(), [])
    rows = budget_rows(people, share, choice)
    figures: dict[str, Any] = {
        "before": _plain(pose_coverage(people, rows)),
        "after": _plain(pose_coverage(people, rows, plan)),
    }
    figures |= {"generated": table.num_rows, "kept": kept.num_rows}
    write_atomic(folder / COVERAGE, json.dumps(figures, indent=1, allow_nan=False).encode())
    return [COVERAGE]


def train_stage(config: ReidConfig, place: StageContext, folder: Path) -> Sequence[str]:
    """A Re-ID training, which goes on where a kill left it."""
    train(config, folder / RUN, device=place.device)
    return [f"{RUN}/config.json"]


def extract_stage(
    cache: StageCache, training: Stage, place: StageContext, share: float, choice: int, folder: Path
) -> Sequence[str]:
    """Features of query, gallery and the real training images of the budget."""
    trained = of_run(EMBEDDING, cache.folder(training) / RUN)
    embedding, people = trained.network.to(place.runtime().device), place.people
    query, gallery = tested_rows(people)
    rows = {"query": query, "gallery": gallery, "train": budget_rows(people, share, choice)}
    training_note(trained.info, people, rows)  # refuses people the network has seen
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
    write_atomic(folder / SCORES, parquet_bytes(pa.table(columns)))
    write_atomic(folder / REPORT, json.dumps(report.to_dict(), indent=1, allow_nan=False).encode())
    return [SCORES, REPORT]


def score_features(path: Path, methods: Sequence[str], rerank: bool) -> ReidReport:
    """The methods side by side on a features file with the sets query, gallery and train."""
    sets = read_features(path)
    return compare_methods(
        sets["query"], sets["gallery"], sets["train"], methods=methods, rerank=Rerank() if rerank else None
    )


def judge_stage(
    cache: StageCache,
    judge: Stage,
    painter: GeneratorChoice,
    place: StageContext,
    background: str,
    sources: int,
    folder: Path,
) -> Sequence[str]:
    """Are generated test people found among the real ones, by a network trained on real images?"""
    model = painter.open(place.runtime())
    run = cache.folder(judge) / RUN
    measure_identity(
        model, open_judge(run, place.data), place.data, folder, background=background, sources=sources
    )
    return [IDENTITY]


def _plain(figures: dict[str, float]) -> dict[str, float | None]:
    """JSON has no NaN."""
    return {name: None if np.isnan(value) else value for name, value in figures.items()}
