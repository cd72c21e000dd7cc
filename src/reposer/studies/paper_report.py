"""What ``reposer study paper_table`` writes: the table as Markdown, LaTeX, JSON and Parquet, and one sheet of
the same people by every row."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reposer.config import Config
from reposer.data.parsing import colorize
from reposer.evaluation.image_quality import NEAREST
from reposer.evaluation.measurement import FLOOR
from reposer.images import decode, encode_png
from reposer.sections import Fold, Picture, Section, Table, draw_grid, markdown_row, write_sections
from reposer.storage.outputs import write_output
from reposer.storage.paths import made_folder
from reposer.storage.tables import parquet_bytes
from reposer.studies.ablations import latex_table
from reposer.studies.report import PICTURES
from reposer.studies.results import (
    LATEX,
    MARKDOWN,
    PARQUET,
    Results,
    block_cells,
    title_of,
    to_latex,
    to_markdown,
)
from reposer.workflows.identity import OTHER_POSE, OWN_POSE, REAL

JSON_TABLE, PEOPLE = "table.json", f"{PICTURES}/people.png"
SHEET_PEOPLE = 16
SCHEMA_VERSION = 1
_ARROWS = {"lower": "↓", "higher": "↑"}
_KEPT = {  # column -> row and value of identity.json
    "own pose, rank-1 %": (OWN_POSE, "rank1"),
    "own pose, mAP %": (OWN_POSE, "mAP_step"),
    "other pose, rank-1 %": (OTHER_POSE, "rank1"),
    "other pose, mAP %": (OTHER_POSE, "mAP_step"),
}
_COSTS = {  # column -> value of cost.json, divided by what, decimals
    "pictures/s": ("pictures_per_second", 1.0, 1),
    "M parameters": ("parameters", 1e6, 2),
    "GMAC": ("gmac", 1.0, 2),
}
_UNKNOWN = "-"


@dataclass(frozen=True)
class Line:
    """A row of the table."""

    name: str
    title: str
    origin: str  # in words: its steps, or where it comes from
    metrics: dict[str, Any]  # metric -> value, low, high, count, note
    identity: dict[str, Any]  # rows of identity.json; empty: not judged
    cost: dict[str, float]  # of cost.json; empty: it makes no picture
    sheet: Path  # its pictures of the sheet, one below the other


@dataclass(frozen=True)
class Found:
    """What a table is written from."""

    config: Config
    lines: list[Line]  # the generators, then what learns nothing
    reference: dict[str, Any]  # image_quality.json of the nearest poses and the floor
    nearest: Path  # pictures of the sheet
    sources: NDArray[np.uint8]  # (N, H, W, 3) of the sheet
    targets: NDArray[np.uint8]  # the same of the true targets
    maps: NDArray[np.uint8]  # (N, H, W) label maps of the targets
    notes: list[str]

    @property
    def rows(self) -> list[Line]:
        """The lines, with those that no network can be asked for."""
        rows = self.reference["rows"]
        nearest = Line(
            "nearest pose", "nearest pose", "nothing is learned", rows[NEAREST], {}, {}, self.nearest
        )
        floor = rows.get(FLOOR, {})
        real = next((line.identity for line in self.lines if line.identity), {})
        kept = {name: real[REAL] for name in (OWN_POSE, OTHER_POSE) if REAL in real}
        return [*self.lines, nearest, Line(FLOOR, FLOOR, "", floor, kept, {}, self.nearest)]


def sheet_pairs(pairs: NDArray[np.int64], pids: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N, 2) the first pair of each of 16 people, evenly spread over those of the list."""
    first = np.sort(np.unique(pids[pairs[:, 1]], return_index=True)[1])
    chosen = np.unique(np.linspace(0, len(first) - 1, SHEET_PEOPLE).round().astype(int))
    shown: NDArray[np.int64] = pairs[first[chosen]]
    return shown


def write_paper_table(out: Path, found: Found, results: Results) -> list[Path]:
    """Write the tables, the sheet and the sections of the page into ``out``.

    Args:
        results: of the Re-ID trainings with pictures of each row; empty: there are none.

    Returns:
        the files.
    """
    header, cells = paper_cells(found)
    lines = [header, ["---", "---", *["---:"] * (len(header) - 2)], *cells]
    text = "\n".join(markdown_row(*line) for line in lines) + "\n"
    text += "\n" + "\n".join(f"- {note}" for note in found.notes) + "\n"
    if results:
        text += "\n## Re-ID networks that learned from the pictures\n\n" + to_markdown(results, [])
    made_folder(out, PICTURES)
    latex = latex_table(header, cells, whole=True) + ("\n" + to_latex(results) if results else "")
    written = {
        MARKDOWN: text.encode(),
        LATEX: latex.encode(),
        JSON_TABLE: json.dumps(_document(found, results), indent=1, allow_nan=False).encode(),
        PARQUET: parquet_bytes(_long(found.rows)),
        PEOPLE: encode_png(_sheet(found)),
    }
    for name, content in written.items():
        write_output(out / name, content)
    tables = [Table(*block_cells(arms), caption=title_of(block)) for block, arms in results.items()]
    write_sections(
        out,
        [
            Section("The generators", found.notes, tables=[Table(header, cells)]),
            *([Section("Re-ID networks that learned from the pictures", tables=tables)] if tables else []),
            Section("The same people by all", pictures=[Picture("One person a row.", PEOPLE)]),
            Section("Configuration", folds=[Fold("study", _text(found.config))]),
        ],
    )
    return [out / name for name in written]


def paper_cells(found: Found) -> tuple[list[str], list[list[str]]]:
    """Header and cells: values with 95 % intervals; a metric that no row could measure has no column."""
    rows, infos = found.rows, found.reference["metrics"]
    metrics = [name for name in infos if any(_value(row.metrics.get(name)) is not None for row in rows)]
    header = ["generator", "training", *(f"{name} {_ARROWS[infos[name]['better']]}" for name in metrics)]
    header += [*(_KEPT if any(row.identity for row in rows) else ()), *_COSTS]
    cells = []
    for row in rows:
        line = [row.title, row.origin, *(_measured(row.metrics.get(name)) for name in metrics)]
        if any(one.identity for one in rows):
            line += [_kept(row.identity, *place) for place in _KEPT.values()]
        cells.append([*line, *(_cost(row.cost, *place) for place in _COSTS.values())])
    return header, cells


def metric_notes(reference: dict[str, Any]) -> list[str]:
    """What each metric pins, or why it was not measured; a line each."""
    lines = []
    for name, info in reference["metrics"].items():
        cells = [row[name] for row in reference["rows"].values() if name in row]
        if all(_value(cell) is None for cell in cells):
            lines.append(f"{name}: {next(cell['note'] for cell in cells)}.")
            continue
        against = f"; reference: {info['reference']}" if info["reference"] else ""
        lines.append(f"{name}: {info['protocol']}; {info['interval']}{against}.")
    return lines


def _value(cell: dict[str, Any] | None) -> float | None:
    return None if cell is None else cell["value"]


def _measured(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return _UNKNOWN
    if cell["value"] is None:
        return "not measured"
    return _with_interval(cell["value"], cell["low"], cell["high"])


def _with_interval(value: float, low: float | None, high: float | None) -> str:
    form = "{:.4f}" if abs(value) < 10 else "{:.1f}"
    text = form.format(value)
    return text if low is None or high is None else f"{text} [{form.format(low)}, {form.format(high)}]"


def _kept(identity: dict[str, Any], queries: str, name: str) -> str:
    if queries not in identity or not math.isfinite(identity[queries][name]):
        return _UNKNOWN  # or no query has a valid match
    interval = identity[queries]["intervals"].get(name)
    text = f"{100 * identity[queries][name]:.1f}"
    return text + (f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else "")


def _cost(cost: dict[str, float], name: str, unit: float, digits: int) -> str:
    return f"{cost[name] / unit:,.{digits}f}" if name in cost else _UNKNOWN


def _long(rows: Sequence[Line]) -> pa.Table:
    """A line for each row and figure; shares in [0, 1], costs as they are."""
    lines: list[dict[str, Any]] = []
    for row in rows:
        for name, cell in row.metrics.items():
            keys = ("value", "low", "high", "count")
            lines.append({"row": row.name, "figure": name} | {key: cell[key] for key in keys})
        for title, (queries, name) in _KEPT.items():
            if queries in row.identity and math.isfinite(row.identity[queries][name]):
                low, high = row.identity[queries]["intervals"].get(name) or (None, None)
                value = {"value": row.identity[queries][name], "low": low, "high": high}
                lines.append({"row": row.name, "figure": title.removesuffix(" %")} | value)
        lines += [{"row": row.name, "figure": name, "value": value} for name, value in row.cost.items()]
    numbers = [(name, pa.float64()) for name in ("value", "low", "high")]
    texts = [(name, pa.string()) for name in ("row", "figure")]
    return pa.Table.from_pylist(lines, pa.schema([*texts, *numbers, ("count", pa.int64())]))


def _document(found: Found, results: Results) -> dict[str, Any]:
    """Everything in JSON's types."""
    reid = []
    for block, arms in results.items():
        for arm in arms:
            same = {"recipe": block.recipe, "method": block.method, "arm": arm.arm}
            compared = {
                metric: [
                    {"control": one.control, "difference": one.difference.value, "p": one.difference.p}
                    | {"low": one.difference.low, "high": one.difference.high, "p_holm": one.p_holm}
                    | {"p_seeds": one.difference.p_seeds}
                    for one in comparisons
                ]
                for metric, comparisons in arm.comparisons.items()
            }
            reid.append(same | {"means": arm.means, "deviations": arm.deviations, "compared": compared})
    rows = [
        {"name": row.name, "title": row.title, "training": row.origin, "metrics": row.metrics}
        | {"identity": {name: _scores(one) for name, one in row.identity.items()}, "cost": row.cost}
        for row in found.rows
    ]
    return {
        "schema_version": SCHEMA_VERSION,
        "config": found.config.model_dump(mode="json"),
        "metrics": found.reference["metrics"],
        "rows": rows,
        "reid": reid,
        "notes": found.notes,
    }


def _scores(row: dict[str, Any]) -> dict[str, Any]:
    """The scores of a row of identity.json; none where no query has a valid match."""
    names = [name for name in dict.fromkeys(name for _, name in _KEPT.values()) if math.isfinite(row[name])]
    intervals = {name: row["intervals"].get(name) for name in names}
    return {**{name: row[name] for name in names}, "intervals": intervals, "counts": row["counts"]}


def _sheet(found: Found) -> NDArray[np.uint8]:
    """A person a row: source, target map, the picture of each row, true target."""
    count, height, width = found.targets.shape[:3]
    made = [row for row in found.rows if row.name != FLOOR]
    titles = ["source", "target map", *(row.name for row in made), "true target"]
    columns = [list(found.sources), [colorize(one) for one in found.maps]]
    columns += [list(decode(row.sheet, row.sheet.parent).reshape(count, height, width, 3)) for row in made]
    columns.append(list(found.targets))
    scale, groups = (2, 2) if width <= 64 else (1, 1)
    return draw_grid(list(zip(*columns, strict=True)), titles, scale=scale, groups=min(groups, count))


def _text(config: Config) -> str:
    return json.dumps(config.model_dump(mode="json"), indent=1)
