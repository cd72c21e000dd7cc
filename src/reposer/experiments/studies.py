"""``reposer study``: make every stage of an augmentation study, then its table, plots and sections."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from reposer.config import apply_overrides
from reposer.errors import UserError
from reposer.experiments.stages import seal_study
from reposer.experiments.study.config import STUDYS, Arm, StudyConfig, claim_study, save_study
from reposer.experiments.study.mistakes_table import WRITTEN
from reposer.experiments.study.plan import StudyPlan, plan_stages, read_scores
from reposer.experiments.study.presets import EXTRA_ARMS, find_study
from reposer.experiments.study.report import PICTURES, study_notes, write_report_parts
from reposer.experiments.study.results import ArmResult, Block, summarize_block
from reposer.experiments.study.table import TABLES, write_tables
from reposer.experiments.workers import make_all
from reposer.sections import SECTIONS_FILE


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
    claim_study(out, (*TABLES, *WRITTEN, SECTIONS_FILE), out / PICTURES)
    out.mkdir(parents=True, exist_ok=True)
    save_study(study, out)
    make_all(out, plan_stages, workers=workers, threads=study.threads)
    plan = StudyPlan(study, out)
    results, notes = collect(plan), study_notes(plan)
    write_tables(out, results, notes)
    write_report_parts(plan, results, notes, out)
    seal_study(out)
    return out


def configure(
    name: str,
    data: Path,
    generator: str,
    arms: Sequence[str] = (),
    overrides: Sequence[str] = (),
    *,
    predictor: str = "",
    parser: str = "",
    accept_licence: bool = False,
    variants: Sequence[str] = (),
) -> StudyConfig:
    """A study of STUDIES on a prepared folder.

    Args:
        arms: names, of the study's arms or EXTRA_ARMS; empty: the study's.
        overrides: "a.b=c", on top of the preset.
        predictor: of target maps, for arms that take the study's.
        parser: for arms that judge poses.
        accept_licence: of the parser's weights.
        variants: further arms, each "NAME=ARM FIELD=VALUE ...": an arm above (or a variant before it) under
            another name with some fields changed, as "x2_other=x2_any generator=RUN".

    Raises:
        UserError: an unknown study, arm or setting; a variant that says nothing new; an arm that needs a
            predictor or a parser where none is named, or one is named that no arm needs.
    """
    study = find_study(name).changed(data=data, generator=generator)
    study = study.changed(predictor=predictor, parser=parser, accept_licence=accept_licence)
    known = {arm.name: arm for arm in (*EXTRA_ARMS, *study.arms)}
    chosen = list(arms or (arm.name for arm in study.arms))
    for text in variants:
        variant = _variant(text, known)
        known[variant.name] = variant
        chosen.append(variant.name)
    study = apply_overrides(study.changed(arms=tuple(known.values())).only(tuple(chosen)), overrides)
    _check_helpers(study)
    return study


def _check_helpers(study: StudyConfig) -> None:
    """Every arm has the predictor or parser that it needs, and none is named in vain."""
    for arm in study.arms:
        study.painter_of(arm, study.budgets[0])
        study.parser_of(arm)
    if study.predictor and all(arm.predictor != STUDYS for arm in study.arms):
        takers = ", ".join(arm.name for arm in EXTRA_ARMS if arm.predictor == STUDYS)
        advice = f"take {takers}, or add one: --arm 'NAME=ARM predictor={STUDYS}'"
        raise UserError(f"--predictor {study.predictor}: no arm of the study uses it", advice)
    if study.parser and not any(map(study.parser_of, study.arms)):
        takers = ", ".join(arm.name for arm in EXTRA_ARMS if arm.filter and arm.filter.pose)
        advice = f"take {takers}, or add one: --arm 'NAME=ARM filter.pose=mask'"
        raise UserError(f"--parser {study.parser}: no arm of the study uses it", advice)


def _variant(text: str, known: Mapping[str, Arm]) -> Arm:
    """The arm of "NAME=ARM FIELD=VALUE ..."."""
    try:
        head, *fields = shlex.split(text)
    except ValueError:
        head, fields = "", []
    name, _, base = (part.strip() for part in head.partition("="))
    form = "write NAME=ARM FIELD=VALUE, as 'x2_other=x2_any generator=RUN'"
    if not (name and base and fields):
        raise UserError(f"--arm {text}: is no arm with another name and other fields", form)
    if base not in known:
        raise UserError(f"--arm {text}: there is no arm {base}", f"choose among {', '.join(known)}")
    if name in known or any(field.partition("=")[0] == "name" for field in fields):
        raise UserError(f"--arm {text}: there is an arm {name} already, or two names", "give one new name")
    try:
        return apply_overrides(known[base], [f"name={name}", *fields])
    except UserError as error:
        told = str(error).removeprefix("--set").lstrip(": ")
        raise UserError(f"--arm {text}: {told}") from error


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
