"""Which pictures hurt: who a network of real images alone takes them for, by what is known of each.

A picture's margin is the distance to the nearest real training image of another person minus that to the
nearest of its own, the source itself left out. It is mistaken where the margin is not above 0. The network is
the first recipe's and seed's of the arm on real images alone, so real images ("real images", each left out in
turn) are ones that it was trained on: they are the floor, not a test. No test image takes part. People with a
single real image cannot be recognized and are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reposer.data.orientation import ORIENTATIONS
from reposer.data.packed import PackedPeople
from reposer.generation.augmented_rows import set_schema
from reposer.generation.picture_scores import margins, pose_agreement, sharpness
from reposer.generation.poses import LOWER, PoseSpace, outfits
from reposer.images import decode
from reposer.jobs.stages import Stage, StageCache
from reposer.reid.features import embed_images, read_features
from reposer.storage.files import write_atomic
from reposer.storage.manifest import IMAGES, read_rows
from reposer.storage.tables import parquet_bytes
from reposer.structures import FeatureSet
from reposer.studies.study_stages import FEATURES, RUN, SET, StageContext
from reposer.trained.networks import EMBEDDING, of_run

MISTAKES = "mistakes.parquet"
MISTAKEN_PICTURES = 2000  # of a set, evenly spread, to spare time; the intervals say what that leaves open
MARGIN = "margin"  # a column; stages of before it was measured have none
UNKNOWN = "unknown"
TERCILES = ("lowest third", "middle third", "highest third")
TURNS = ("same orientation", "45 degrees", "90 degrees", "135 degrees", "180 degrees")
DONORS = ("same person", "same lower garment", "another lower garment")
# Column -> its bins in the order of the report; the words for people are in studies/report.py.
FACTORS: dict[str, tuple[str, ...]] = {
    "filter": ("kept", "dropped"),
    "donor": (*DONORS, UNKNOWN),
    "turn": (*TURNS, UNKNOWN),
    "source_lower": LOWER,
    "source_sharpness": (*TERCILES, UNKNOWN),
    "map_agreement": (*TERCILES, UNKNOWN),
    "own_distance": TERCILES,
}
_CHUNK = 256


def mistakes_stage(
    cache: StageCache,
    judge: Stage,
    features: Stage,
    augmented: Stage | None,
    place: StageContext,
    folder: Path,
) -> Sequence[str]:
    """Judge the pictures of a set, or (None) the real images themselves, each left out in turn.

    Args:
        judge: the training on real images alone.
        features: of it; their set "train" holds the real images of the budget.
    """
    people, real = place.people, read_features(cache.file(features, FEATURES))["train"]
    if augmented is None:
        sources = np.array([people.index(name) for name in real.names], np.int64)
        columns, mine = _of_sources(people, sources), real.features
    else:
        root = cache.folder(augmented) / SET
        table = read_rows(root, set_schema(root))
        table = table.take(_spread(table.num_rows))
        sides = ("source", "donor")
        sources, donors = (np.array([people.index(n) for n in table[s].to_pylist()], np.int64) for s in sides)
        columns = _of_sources(people, sources) | _of_donors(people, sources, donors)
        columns["filter"] = np.where(table["kept"].to_numpy(), "kept", "dropped")
        embedding = of_run(EMBEDDING, cache.folder(judge) / RUN).network.to(place.runtime().device)
        images = np.stack([decode(root / IMAGES / name) for name in table["file"].to_pylist()])
        mine = embed_images(embedding, images)
    mistaken, distance, margin = judged(
        mine, people.pids[sources], [people.names[row] for row in sources], real
    )
    known = np.isfinite(distance)
    columns["own_distance"] = _terciles(distance)
    found: dict[str, NDArray[Any]] = {"pid": people.pids[sources][known], "mistaken": mistaken[known]}
    found[MARGIN] = margin[known]
    for name, values in columns.items():
        found[name] = values[known]
    write_atomic(folder / MISTAKES, parquet_bytes(pa.table(found)))
    return [MISTAKES]


def judged(
    features: NDArray[np.float32], pids: NDArray[np.int64], sources: Sequence[str], real: FeatureSet
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]]:
    """Whether another person is as near as one's own, how near one's own is, and by how much nearer.

    Args:
        features: (N, D) of length 1.
        pids: (N,) the person they should show.
        sources: (N,) names of real images, each left out for its picture.
        real: features of length 1.

    Returns:
        (N,) mistaken; (N,) Euclidean distance to the nearest image of one's own, NaN where there is none;
        (N,) that to the nearest image of another person minus it.
    """
    number = {name: n for n, name in enumerate(real.names)}
    left_out = np.array([number.get(name, -1) for name in sources], np.int64)
    rows = np.arange(len(real.names))
    margin, distance = margins(features, pids, left_out, real.features, real.pids, rows)
    return margin <= 0, distance, margin


def _of_sources(people: PackedPeople, sources: NDArray[np.int64]) -> dict[str, NDArray[np.str_]]:
    shown, place = np.unique(sources, return_inverse=True)
    batches = (people.pair_batch(part, part) for part in _parts(shown))
    sharp = np.concatenate([sharpness(b.source_image, b.source_mask) for b in batches])
    lower = np.array(LOWER)[outfits(people.parsing, shown).lower]
    return {"source_lower": lower[place], "source_sharpness": _terciles(sharp[place])}


def _of_donors(
    people: PackedPeople, sources: NDArray[np.int64], donors: NDArray[np.int64]
) -> dict[str, NDArray[np.str_]]:
    first, second = (outfits(people.parsing, rows).lower for rows in (sources, donors))
    same_person = people.pids[sources] == people.pids[donors]
    relation = np.where(first == second, DONORS[1], DONORS[2])
    relation = np.where((first == 0) | (second == 0), UNKNOWN, relation)
    poses = [PoseSpace.of_people(people, rows) for rows in (sources, donors)]
    steps = np.abs(poses[0].orientations - poses[1].orientations)
    steps = np.minimum(steps, len(ORIENTATIONS) - steps)
    known = poses[0].known & poses[1].known
    turn = np.where(known, np.array(TURNS)[np.where(known, steps, 0)], UNKNOWN)
    pairs = zip(_parts(sources), _parts(donors), strict=True)
    agreement = np.concatenate([pose_agreement(people.parsing[a], people.parsing[b]) for a, b in pairs])
    return {
        "donor": np.where(same_person, DONORS[0], relation),
        "turn": turn,
        "map_agreement": _terciles(agreement),
    }


def _terciles(values: NDArray[np.float64]) -> NDArray[np.str_]:
    """(N,) TERCILES by the values' own quantiles; UNKNOWN for NaN."""
    known = np.isfinite(values)
    if not known.any():
        return np.full(len(values), UNKNOWN)
    limits = np.quantile(values[known], (1 / 3, 2 / 3))
    return np.where(known, np.array(TERCILES)[np.searchsorted(limits, values)], UNKNOWN)


def _spread(count: int) -> NDArray[np.int64]:
    """Evenly spread rows, MISTAKEN_PICTURES of them at most."""
    return np.unique(np.linspace(0, count - 1, min(count, MISTAKEN_PICTURES)).round().astype(np.int64))


def _parts(rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)]
