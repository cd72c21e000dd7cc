"""From the scores of a study's trainings to its rows: means, spread over seeds, differences to controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reposer.errors import UserError
from reposer.evaluation.significance import Difference, holm, paired_bootstrap

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
    comparisons: dict[str, list[Comparison]]  # by metric, in the order of the controls


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
    present = [name for name in controls if name in scores]
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
