"""Between which cameras an arm gains: each query searched for in the gallery of one other camera at a time.

A mean over a whole gallery hides where it comes from: pictures that carry a camera's scene and colors should
help most between that camera and another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reposer.evaluation.reidentification import score_form
from reposer.metrics.intervals import paired_bootstrap
from reposer.metrics.retrieval import RetrievalProtocol, per_query
from reposer.reid.features import read_features
from reposer.reid.search import checked, pairwise_form
from reposer.sections import Section, Table, markdown_page
from reposer.storage.outputs import write_output
from reposer.storage.tables import parquet_bytes
from reposer.structures import FeatureSet, unknown_cameras
from reposer.studies.plan import StudyPlan
from reposer.studies.study_stages import FEATURES

MARKDOWN, PARQUET = "cameras.md", "cameras.parquet"
TITLE = "Between which cameras does it help?"
MOST_SHOWN = 60  # pairs of cameras of a table, those with the most queries
_DRAWS = 2_000  # of the bootstrap of each pair
_SCHEMA = pa.schema(
    [
        ("budget", pa.float64()),
        *((name, pa.string()) for name in ("recipe", "arm", "control")),
        *((name, pa.int64()) for name in ("query_camera", "gallery_camera", "queries", "people")),
        *((name, pa.float64()) for name in ("mean", "difference", "low", "high")),
    ]
)


@dataclass(frozen=True)
class BetweenCameras:
    """Queries with a match in one gallery camera. Fractions in [0, 1]."""

    precision: NDArray[np.float64]  # (Q,) mAP (step) of each; NaN without a match there
    pids: NDArray[np.int64]  # (Q,)
    cameras: NDArray[np.int64]  # (Q,) of the query


def between_cameras(query: FeatureSet, gallery: FeatureSet) -> dict[int, BetweenCameras]:
    """Average precision of every query in the images of each gallery camera alone, Euclidean, length 1.

    The protocol is Market-1501's otherwise: a query's own camera never counts. Images of unknown cameras are
    left out.

    Args:
        query: (Q) images. gallery: (G) images.

    Returns:
        by gallery camera.

    Raises:
        UserError: as ``reid.search.checked``.
    """
    query, gallery = checked(query, "query", True), checked(gallery, "gallery", True)
    unknown = np.split(unknown_cameras(np.concatenate([query.camids, gallery.camids])), [len(query)])
    query, gallery = (
        each.rows(np.flatnonzero(~lost)) for each, lost in zip((query, gallery), unknown, strict=True)
    )
    found: dict[int, BetweenCameras] = {}
    if not len(query):
        return found
    for camera in np.unique(gallery.camids[gallery.pids > 0]).tolist():
        there = gallery.rows(np.flatnonzero(gallery.camids == camera))
        labels = RetrievalProtocol(query.pids, query.camids, there.pids, there.camids)
        scores = score_form(pairwise_form(query.features, there.features[labels.kept], "euclidean"), labels)
        values = per_query(scores.worst)["mAP_step"]
        found[camera] = BetweenCameras(np.where(scores.hits > 0, values, np.nan), query.pids, query.camids)
    return found


def compare_cameras(
    arm: Sequence[Mapping[int, BetweenCameras]], control: Sequence[Mapping[int, BetweenCameras]]
) -> list[dict[str, Any]]:
    """A row for every pair of cameras that has queries: the arm's mean, and what it is above the control's.

    Args:
        arm, control: of :func:`between_cameras`, one for each seed, of the same queries.
    """
    rows = []
    for camera, first in control[0].items():
        for own in np.unique(first.cameras).tolist():
            asked = np.flatnonzero((first.cameras == own) & np.isfinite(first.precision))
            if not len(asked):
                continue
            ours, theirs = (
                np.stack([seed[camera].precision[asked] for seed in seeds]) for seeds in (arm, control)
            )
            pids = first.pids[asked]
            people = len(np.unique(pids))
            told = paired_bootstrap(ours, theirs, pids, draws=_DRAWS) if people > 1 else None
            rows.append(
                {
                    "query_camera": own,
                    "gallery_camera": camera,
                    "queries": len(asked),
                    "people": people,
                    "mean": float(ours.mean()),
                    "difference": float(ours.mean() - theirs.mean()),
                    "low": told and told.low,
                    "high": told and told.high,
                }
            )
    return sorted(rows, key=lambda row: (row["query_camera"], row["gallery_camera"]))


def write_cameras(plan: StudyPlan, root: Path) -> Section | None:
    """Write cameras.parquet and cameras.md of a finished study; returns the section of its report.

    None where the study has no control, or all images are of one camera.
    """
    control = next(iter(plan.study.controls), None)
    found: dict[tuple[float, str, str], list[dict[int, BetweenCameras]]] = {}
    for cell in plan.cells if control else ():
        sets = read_features(plan.cache.file(cell.features, FEATURES))
        key = (cell.budget.share, cell.recipe.preset, cell.arm.name)
        found.setdefault(key, []).append(between_cameras(sets["query"], sets["gallery"]))
    rows: list[dict[str, Any]] = []
    for (budget, recipe, arm), seeds in found.items():
        same = {"budget": budget, "recipe": recipe, "arm": arm, "control": control}
        rows += [same | row for row in compare_cameras(seeds, found[budget, recipe, str(control)])]
    if not rows:
        return None
    write_output(root / PARQUET, parquet_bytes(pa.Table.from_pylist(rows, _SCHEMA)))
    text = [
        "mAP (step), percent, of queries of the first camera in the images of the second alone (Euclidean);"
        f" of the other arms what they are above {control}, with 95 % intervals over people (bootstrap, seeds"
        " pooled). Many pairs are looked at: one of twenty intervals leaves 0 out by chance.",
    ]
    tables = [_table(rows, *block) for block in dict.fromkeys((row["budget"], row["recipe"]) for row in rows)]
    write_output(root / MARKDOWN, markdown_page(TITLE, text, tables))
    return Section(TITLE, text, tables=tables)


def _table(rows: Sequence[dict[str, Any]], budget: float, recipe: str) -> Table:
    """Of one budget and recipe: a line for each pair of cameras, the control first, then the other arms."""
    here = [row for row in rows if (row["budget"], row["recipe"]) == (budget, recipe)]
    control = here[0]["control"]
    others = [arm for arm in dict.fromkeys(row["arm"] for row in here) if arm != control]
    cells = {(row["query_camera"], row["gallery_camera"], row["arm"]): row for row in here}
    pairs = [(q, g) for q, g, arm in cells if arm == control]
    most = sorted(pairs, key=lambda pair: -cells[*pair, control]["queries"])[:MOST_SHOWN]
    lines = []
    for pair in (pair for pair in pairs if pair in set(most)):
        base = cells[*pair, control]
        line = [f"{pair[0]} → {pair[1]}", f"{base['queries']:,}", f"{100 * base['mean']:.1f}"]
        lines.append([*line, *(_cell(cells[*pair, arm]) for arm in others)])
    caption = f"{recipe}, {100 * budget:g} % of the images"
    if len(pairs) > len(most):
        caption += f"; the {len(most)} of {len(pairs)} pairs of cameras with the most queries"
    return Table(["cameras", "queries", control, *others], lines, caption)


def _cell(row: dict[str, Any]) -> str:
    interval = "" if row["low"] is None else f" [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
    return f"{100 * row['difference']:+.1f}{interval}"
