"""The table of mistaken pictures: shares with 95 % intervals over people, by what is known of a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from reposer.experiments.study.mistakes import FACTORS, MISTAKES, PICTURES
from reposer.experiments.study.plan import StudyPlan
from reposer.files import write_output
from reposer.metrics.intervals import mean_interval
from reposer.sections import Section, Table
from reposer.tables import read_table

MARKDOWN, PARQUET = "mistakes.md", "mistakes.parquet"
WRITTEN = (MARKDOWN, PARQUET)
TITLE = "Which pictures are mistaken for another person?"
ALL = "all"
_WORDS = {
    "filter": "filter",
    "donor": "donor",
    "turn": "turn from source to donor",
    "source_lower": "source's lower garment",
    "source_sharpness": "source's sharpness",
    "map_agreement": "overlap of source's and donor's maps",
    "own_distance": "distance to the person's nearest real image",
}
_SCHEMA = pa.schema(
    [
        ("budget", pa.float64()),
        *((name, pa.string()) for name in ("arm", "factor", "bin")),
        *((name, pa.int64()) for name in ("pictures", "people")),
        *((name, pa.float64()) for name in ("mistaken", "low", "high")),  # share, 95 % interval or null
    ]
)


def write_mistakes(plan: StudyPlan, root: Path) -> Section | None:
    """Write mistakes.parquet and mistakes.md of a finished study; returns the section of its report."""
    rows: list[dict[str, Any]] = [
        {"budget": part.budget.share, "arm": part.name} | row
        for part in plan.mistakes
        for row in shares(read_table(plan.cache.file(part.stage, MISTAKES)))
    ]
    if not rows:
        return None
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, _SCHEMA), sink)
    write_output(root / PARQUET, sink.getvalue().to_pybytes())
    text = [
        "Share of pictures whose nearest real training image, the source left out, shows another person,"
        " under the network of the first seed that was trained on the budget's real images only; 95 %"
        " interval over people (bootstrap); number of pictures. At most"
        f" {PICTURES:,} of each set, kept and dropped ones. No interval: one person, or all alike.",
        "Real images are judged by a network that has learned them: a floor. Lines are related to each"
        " other, so none is a cause by itself; the distance to one's own is part of the verdict.",
    ]
    tables = [_table(rows, share) for share in dict.fromkeys(row["budget"] for row in rows)]
    parts = [f"# {TITLE}", *text]
    for table in tables:
        lines = [table.columns, ["---"] * len(table.columns), *table.rows]
        parts += [f"## {table.caption}", "\n".join("| " + " | ".join(line) + " |" for line in lines)]
    write_output(root / MARKDOWN, ("\n\n".join(parts) + "\n").encode())
    return Section(TITLE, text, tables=tables)


def shares(table: pa.Table) -> list[dict[str, Any]]:
    """A row for all pictures of a set and one for each bin that has any.

    Args:
        table: of ``mistakes_stage``.
    """
    bins = [
        (factor, name) for factor, names in FACTORS.items() if factor in table.column_names for name in names
    ]
    parts = [(ALL, ALL, table)]
    parts += [(factor, name, table.filter(pc.equal(table[factor], name))) for factor, name in bins]
    return [_share(factor, name, part) for factor, name, part in parts if part.num_rows]


def _share(factor: str, name: str, part: pa.Table) -> dict[str, Any]:
    mistaken, pids = part["mistaken"].to_numpy().astype(np.float64), part["pid"].to_numpy()
    found = mean_interval(mistaken, pids) if 0 < mistaken.mean() < 1 else None
    low, high = found or (None, None)  # drawing from equal values tells no spread
    row = {"factor": factor, "bin": name, "pictures": len(pids), "people": len(np.unique(pids))}
    return row | {"mistaken": float(mistaken.mean()), "low": low, "high": high}


def _table(rows: Sequence[dict[str, Any]], budget: float) -> Table:
    """Of one budget: a line for each bin, a column for each set."""
    here = [row for row in rows if row["budget"] == budget]
    arms = list(dict.fromkeys(row["arm"] for row in here))
    cells = {(row["arm"], row["factor"], row["bin"]): _cell(row) for row in here}
    lines = [["all pictures", *(cells[arm, ALL, ALL] for arm in arms)]]
    for factor, names in FACTORS.items():
        for name in names:
            found = [cells.get((arm, factor, name), "") for arm in arms]
            if any(found):
                lines.append([f"{_WORDS[factor]}: {name}", *found])
    return Table(["pictures", *arms], lines, f"{100 * budget:g} % of the images")


def _cell(row: dict[str, Any]) -> str:
    interval = "" if row["low"] is None else f" [{100 * row['low']:.0f}, {100 * row['high']:.0f}]"
    return f"{100 * row['mistaken']:.0f} %{interval} ({row['pictures']:,})"
