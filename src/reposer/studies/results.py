"""From the scores of a study's trainings to its rows: means, spread over seeds, differences to controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reposer.errors import UserError
from reposer.metrics.intervals import Difference, holm, paired_bootstrap
from reposer.sections import markdown_row
from reposer.storage.outputs import write_output
from reposer.storage.tables import parquet_bytes

METRICS = ("rank1", "rank5", "rank10", "mAP_step", "mAP_trapezoid", "mINP")
COMPARED = ("rank1", "mAP_step", "mAP_trapezoid")  # with a bootstrap; the others are printed without


@dataclass(frozen=True)
class Block:
    """Rows that are compared with each other: one recipe, budget and method."""

    recipe: str
    budget: float
    method: str


@dataclass(frozen=True)
class Comparison:
    """An arm against a control, in one metric."""

    control: str
    difference: Difference
    p_holm: float  # p, adjusted for the arms of the block


@dataclass(frozen=True)
class ArmResult:
    """One arm of a block. Fractions in [0, 1]."""

    arm: str
    means: dict[str, float]  # by metric, over seeds
    deviations: dict[str, float | None]  # standard deviation over seeds (n - 1); None with one seed
    by_seed: dict[str, tuple[float, ...]]  # in the order of the seeds
    comparisons: dict[str, list[Comparison]]  # by metric, in the order of the controls; none with itself
    controls: tuple[str, ...]  # of the block, in the order that the study names them


Scores = Mapping[str, Sequence[pa.Table]]  # arm -> a table of read_scores for each seed


def summarize_block(
    block: Block, scores: Scores, controls: Sequence[str], *, draws: int = 10_000
) -> list[ArmResult]:
    """The arms of a block, in the order given.

    Args:
        scores: all of the same queries.
        controls: arms that every other arm is compared with; those that are not in ``scores`` are left out.
        draws: of the bootstrap.

    Raises:
        UserError: arms that were scored on other queries.
    """
    values, pids = _aligned(block, scores)
    present = tuple(name for name in controls if name in scores)
    compared = {
        metric: {control: _compare(values, control, metric, pids, draws) for control in present}
        for metric in COMPARED
    }
    results = []
    for arm, by_metric in values.items():
        by_seed = {metric: tuple(float(m) for m in by_metric[metric].mean(1)) for metric in METRICS}
        results.append(
            ArmResult(
                arm=arm,
                means={metric: float(np.mean(means)) for metric, means in by_seed.items()},
                deviations={
                    metric: float(np.std(means, ddof=1)) if len(means) > 1 else None
                    for metric, means in by_seed.items()
                },
                by_seed=by_seed,
                comparisons={
                    metric: [compared[metric][control][arm] for control in present if control != arm]
                    for metric in COMPARED
                },
                controls=present,
            )
        )
    return results


def _compare(
    values: Mapping[str, Mapping[str, NDArray[np.float64]]],
    control: str,
    metric: str,
    pids: NDArray[np.int64],
    draws: int,
) -> dict[str, Comparison]:
    """Every other arm against a control."""
    others = [arm for arm in values if arm != control]
    found = [
        paired_bootstrap(values[arm][metric], values[control][metric], pids, draws=draws) for arm in others
    ]
    adjusted = holm([difference.p for difference in found])
    return {
        arm: Comparison(control, difference, p)
        for arm, difference, p in zip(others, found, adjusted, strict=True)
    }


def _aligned(
    block: Block, scores: Scores
) -> tuple[dict[str, dict[str, NDArray[np.float64]]], NDArray[np.int64]]:
    """arm -> metric -> (S, Q), queries in the order of their names; and the queries' people, (Q,)."""
    names: list[str] = []
    pids = np.empty(0, np.int64)
    values: dict[str, dict[str, NDArray[np.float64]]] = {}
    for arm, tables in scores.items():
        parts: dict[str, list[NDArray[np.float64]]] = {metric: [] for metric in METRICS}
        for table in tables:
            rows = table.filter(pa.compute.equal(table["method"], block.method)).sort_by("query")
            found = rows["query"].to_pylist()
            if names and found != names:
                raise UserError(
                    f"{block}: {arm} was scored on other queries than the first arm", "run the study anew"
                )
            names, pids = found, rows["pid"].to_numpy()
            for metric in METRICS:
                parts[metric].append(rows[metric].to_numpy())
        values[arm] = {metric: np.stack(rows) for metric, rows in parts.items()}
    return values, pids


# ---- The table of a study as Parquet (every number), Markdown (to read) and LaTeX (to print).

Results = Mapping[Block, Sequence[ArmResult]]
PARQUET, MARKDOWN, LATEX = "table.parquet", "table.md", "table.tex"
TABLES = (PARQUET, MARKDOWN, LATEX)
SHOWN = ("rank1", "mAP_step", "mAP_trapezoid")
_LABELS = {"rank1": "rank-1", "mAP_step": "mAP (step)", "mAP_trapezoid": "mAP (trapezoid)"}
_ALPHA = 0.05  # a star in LaTeX: below it after Holm's adjustment


def write_tables(folder: Path, results: Results, notes: Sequence[str]) -> None:
    """Write table.parquet, table.md and table.tex into ``folder``; each appears whole or not at all."""
    write_output(folder / PARQUET, parquet_bytes(long_table(results)))
    write_output(folder / MARKDOWN, to_markdown(results, notes).encode())
    write_output(folder / LATEX, to_latex(results).encode())


def long_table(results: Results) -> pa.Table:
    """A row for each block, arm, metric and control; fractions in [0, 1].

    An arm without a control (the control itself) has one row with nulls, so that every mean is in the table.
    """
    rows: list[dict[str, Any]] = []
    for block, arms in results.items():
        for result in arms:
            for metric, mean in result.means.items():
                same = {"recipe": block.recipe, "budget": block.budget, "method": block.method}
                same |= {"arm": result.arm, "metric": metric, "mean": mean, "sd": result.deviations[metric]}
                same |= {"by_seed": list(result.by_seed[metric])}
                comparisons: Sequence[Comparison | None] = result.comparisons.get(metric) or [None]
                rows += [same | _columns(comparison) for comparison in comparisons]
    return pa.Table.from_pylist(rows, _SCHEMA)


def to_markdown(results: Results, notes: Sequence[str]) -> str:
    """What was found; a table for each block, percent; then the notes."""
    lines = [what_was_found(results), ""]
    for block, arms in results.items():
        lines += [f"### {title_of(block)}", ""]
        header, rows = block_cells(arms)
        lines += [markdown_row(*row) for row in (header, ["---", *["---:"] * (len(header) - 1)], *rows)] + [
            ""
        ]
    return "\n".join([*lines, *(f"- {note}" for note in notes)]) + "\n"


def title_of(block: Block) -> str:
    """For example ``ide_small, 20 % of the images, xqda``."""
    return f"{block.recipe}, {100 * block.budget:g} % of the images, {block.method}"


def block_cells(arms: Sequence[ArmResult]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of a block: percent, mean and standard deviation over seeds, then the differences."""
    controls = arms[0].controls
    header = ["arm", *(_LABELS[metric] for metric in SHOWN)]
    for control in controls:
        header += [f"{_LABELS[metric]} - {control} [95 %], p" for metric in SHOWN[:2]]
    rows = []
    for arm in arms:
        cells = [arm.arm, *(_mean(arm, metric) for metric in SHOWN)]
        for control in controls:
            for metric in SHOWN[:2]:
                found = [c for c in arm.comparisons[metric] if c.control == control]
                cells.append(_compared(found[0]) if found else "")
        rows.append(cells)
    return header, rows


def what_was_found(results: Results) -> str:
    """One sentence: the clearest difference from the first control in mAP (step), and whether it is chance.

    All arms of all blocks are candidates, so all are corrected for (Holm), whatever a block's column says;
    p is the larger of the one over test people and the one over test people and trainings. Other controls
    are no finding.
    """
    found = [
        (block, arm.arm, arm.comparisons["mAP_step"][0])
        for block, arms in results.items()
        for arm in arms
        if arm.controls and arm.arm not in arm.controls
    ]
    if not found:
        return "Nothing was compared: the study has no control, or no arm beside its controls."
    raw = [max(c.difference.p, c.difference.p_seeds) for _, _, c in found]
    adjusted = holm(raw)
    best = min(range(len(found)), key=lambda i: (adjusted[i], raw[i], -abs(found[i][2].difference.value)))
    block, arm, comparison = found[best]
    difference, certain = comparison.difference, sum(p < _ALPHA for p in adjusted)
    many = f"Holm's correction for {len(found)} comparisons"
    numbers = (
        f"{arm} differs from {comparison.control} by {100 * difference.value:+.1f} points of mAP (step)"
        f" ({title_of(block)}; 95 % {100 * difference.low:+.1f} to {100 * difference.high:+.1f} over"
        f" {difference.identities} test people; p {p_text(raw[best])}, after {many} {p_text(adjusted[best])})"
    )
    if not certain:
        return f"Nothing beyond chance. The clearest difference: {numbers}."
    others = f" {certain} of {len(found)} comparisons are beyond chance." if len(found) > 1 else ""
    return f"Beyond chance: {numbers}.{others}"


def to_latex(results: Results) -> str:
    """A tabular for each budget: an arm a line, rank-1 and mAP (step) of each recipe and distance; the layout
    of the paper's table. A star marks what differs from the first control after Holm's adjustment (5 %)."""
    parts = []
    for budget, group in groupby(results, key=lambda block: block.budget):
        blocks = list(group)
        columns = "l" + "rr" * len(blocks)
        heads = " & ".join(
            rf"\multicolumn{{2}}{{c}}{{{tex(block.recipe)}, {tex(block.method)}}}" for block in blocks
        )
        lines = [rf"% {100 * budget:g} % of the images", rf"\begin{{tabular}}{{{columns}}}", r"\hline"]
        lines += [rf" & {heads} \\", "arm" + " & rank-1 & mAP" * len(blocks) + r" \\", r"\hline"]
        for number, first in enumerate(results[blocks[0]]):
            cells = [tex(first.arm)]
            for block in blocks:
                arm = results[block][number]
                cells += [_tex_mean(arm, metric) for metric in SHOWN[:2]]
            lines.append(" & ".join(cells) + r" \\")
        parts.append("\n".join([*lines, r"\hline", r"\end{tabular}"]))
    return "\n\n".join(parts) + "\n"


_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("recipe", "method", "arm", "metric")),
        ("budget", pa.float64()),
        ("mean", pa.float64()),
        ("sd", pa.float64()),  # over seeds
        ("by_seed", pa.list_(pa.float64())),
        ("control", pa.string()),
        *((name, pa.float64()) for name in ("difference", "low", "high", "p", "p_seeds", "p_holm")),
        ("identities", pa.int64()),
    ]
)


def _columns(comparison: Comparison | None) -> dict[str, Any]:
    if comparison is None:
        return {}
    found = comparison.difference
    return {
        "control": comparison.control,
        "difference": found.value,
        "low": found.low,
        "high": found.high,
        "p": found.p,
        "p_seeds": found.p_seeds,
        "p_holm": comparison.p_holm,
        "identities": found.identities,
    }


def _mean(arm: ArmResult, metric: str) -> str:
    deviation = arm.deviations[metric]
    text = f"{100 * arm.means[metric]:.1f}"
    return text if deviation is None else f"{text} ± {100 * deviation:.1f}"


def _compared(comparison: Comparison) -> str:
    d = comparison.difference
    interval = f"[{100 * d.low:+.1f}, {100 * d.high:+.1f}]"
    adjusted = f"Holm {p_text(comparison.p_holm)}, seeds {p_text(d.p_seeds)}"
    return f"{100 * d.value:+.1f} {interval}, p {p_text(d.p)} ({adjusted})"


def p_text(value: float) -> str:
    """Three digits; 10,000 draws give no more."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _tex_mean(arm: ArmResult, metric: str) -> str:
    text = _mean(arm, metric).replace("±", r"$\pm$")
    certain = any(c.control == arm.controls[0] and c.p_holm < _ALPHA for c in arm.comparisons[metric])
    return text + ("$^*$" if certain else "")


def tex(text: str) -> str:
    """Signs that mean something to LaTeX, as themselves."""
    for sign in "_%&#":
        text = text.replace(sign, "\\" + sign)
    return text
