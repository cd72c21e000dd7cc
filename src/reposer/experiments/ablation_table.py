"""The table of ablations: a row a generator, a column an image metric; Parquet, Markdown, LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from reposer.evaluation.significance import Difference
from reposer.experiments.study.table import LATEX, MARKDOWN, PARQUET, p_text, tex
from reposer.files import write_output

_ARROWS = {"lower": "↓", "higher": "↑"}


@dataclass(frozen=True)
class AblationCell:
    """A metric of a row."""

    mean: float  # over seeds
    deviation: float | None  # standard deviation over seeds; None with one seed
    better: str  # "lower" or "higher"
    difference: Difference | None  # to the first row; None for it, and for metrics of whole sets


@dataclass(frozen=True)
class AblationRow:
    """A generator; a metric that was not measured has None."""

    name: str
    cells: dict[str, AblationCell | None]


def write_ablation_table(folder: Path, rows: Sequence[AblationRow], notes: Sequence[str]) -> None:
    """Write table.parquet, table.md and table.tex into ``folder``; each appears whole or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(_long(rows), sink)
    write_output(folder / PARQUET, sink.getvalue().to_pybytes())
    header, cells = cells_of(rows)
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *cells]
    table = ["| " + " | ".join(line) + " |" for line in lines]
    write_output(folder / MARKDOWN, ("\n".join([*table, "", *(f"- {n}" for n in notes)]) + "\n").encode())
    write_output(folder / LATEX, _latex(header, cells).encode())


def cells_of(rows: Sequence[AblationRow]) -> tuple[list[str], list[list[str]]]:
    """Header and cells: mean, standard deviation over seeds, and the difference to the first row."""
    header = ["generator"]
    for metric in rows[0].cells:
        found = next((row.cells[metric] for row in rows if row.cells[metric]), None)
        header.append(f"{metric} {_ARROWS[found.better]}" if found else metric)
    return header, [[row.name, *(_cell(cell) for cell in row.cells.values())] for row in rows]


def _cell(cell: AblationCell | None) -> str:
    if cell is None:
        return "not measured"
    text = f"{cell.mean:.4f}" + ("" if cell.deviation is None else f" ± {cell.deviation:.4f}")
    d = cell.difference
    return text if d is None else f"{text} ({d.value:+.4f} [{d.low:+.4f}, {d.high:+.4f}], p {p_text(d.p)})"


def _long(rows: Sequence[AblationRow]) -> pa.Table:
    names = ("difference", "low", "high", "p", "p_seeds")
    lines = []
    for row in rows:
        for metric, cell in row.cells.items():
            if cell is not None:
                d = cell.difference
                values = (None,) * 5 if d is None else (d.value, d.low, d.high, d.p, d.p_seeds)
                line = {"row": row.name, "metric": metric, "mean": cell.mean, "sd": cell.deviation}
                lines.append(line | {"better": cell.better} | dict(zip(names, values, strict=True)))
    texts = [(name, pa.string()) for name in ("row", "metric", "better")]
    numbers = [(name, pa.float64()) for name in ("mean", "sd", *names)]
    return pa.Table.from_pylist(lines, pa.schema([*texts, *numbers]))


def _latex(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    arrows = {"↓": r"$\downarrow$", "↑": r"$\uparrow$", "±": r"$\pm$"}

    def line(parts: Sequence[str]) -> str:
        text = " & ".join(tex(part.split(" (")[0]) for part in parts)
        for sign, command in arrows.items():
            text = text.replace(sign, command)
        return text + r" \\"

    columns = "l" + "r" * (len(header) - 1)
    body = [rf"\begin{{tabular}}{{{columns}}}", r"\hline", line(header), r"\hline", *map(line, cells)]
    return "\n".join([*body, r"\hline", r"\end{tabular}"]) + "\n"
