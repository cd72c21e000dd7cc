"""``reposer study``: make every stage of an augmentation study, then its table, plots and sections."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reposer.config import apply_overrides
from reposer.experiments.study_config import StudyConfig, save_study
from reposer.experiments.study_plan import StudyPlan, plan_stages, read_scores
from reposer.experiments.study_presets import EXTRA_ARMS, find_study
from reposer.experiments.study_report import study_notes, write_report_parts
from reposer.experiments.study_results import ArmResult, Block, summarize_block
from reposer.experiments.study_table import write_tables
from reposer.experiments.workers import make_all


def run_study(study: StudyConfig, out: Path, *, workers: int = 1) -> Path:
    """Run a study into ``out``, or go on with it; returns ``out``.

    Several calls may run at once on one folder; each makes what the others are not at, and all end with the
    table. A study with other arms may use the folder too: finished stages are shared.

    Args:
        out: study.json, stages/, table.{parquet,md,tex}, pictures/, sections.json.
        workers: processes, each with ``study.threads`` threads.

    Raises:
        UserError: what is wrong with the data, generator, settings, or a stage.
    """
    StudyPlan(study, out)  # refuses what cannot be run before anything is written
    out.mkdir(parents=True, exist_ok=True)
    save_study(study, out)
    make_all(out, plan_stages, workers=workers, threads=study.threads)
    plan = StudyPlan(study, out)
    results, notes = collect(plan), study_notes(plan)
    write_tables(out, results, notes)
    write_report_parts(plan, results, notes, out)
    return out


def configure(
    name: str, data: Path, generator: str, arms: Sequence[str] = (), overrides: Sequence[str] = ()
) -> StudyConfig:
    """A study of STUDIES on a prepared folder.

    Args:
        arms: names, of the study's arms or EXTRA_ARMS; empty: the study's.
        overrides: "a.b=c", on top of the preset.

    Raises:
        UserError: an unknown study, arm or setting.
    """
    study = find_study(name).changed(data=data, generator=generator)
    if arms:
        known = {arm.name for arm in study.arms}
        extra = tuple(arm for arm in EXTRA_ARMS if arm.name not in known)
        study = study.changed(arms=(*study.arms, *extra)).only(tuple(arms))
    return apply_overrides(study, overrides)


def collect(plan: StudyPlan) -> dict[Block, list[ArmResult]]:
    """The rows of the table of a finished study, by budget, recipe and method."""
    study, results = plan.study, dict[Block, list[ArmResult]]()
    for budget in study.budgets:
        for recipe in study.recipes:
            cells = [c for c in plan.cells if c.budget == budget and c.recipe == recipe]
            scores = {
                arm.name: [read_scores(plan.cache, cell) for cell in cells if cell.arm == arm]
                for arm in study.arms
            }
            first = next(iter(scores.values()))[0]
            for method in dict.fromkeys(first["method"].to_pylist()):
                block = Block(recipe.preset, budget.share, method)
                results[block] = summarize_block(block, scores, study.controls)
    return results
