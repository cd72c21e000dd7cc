"""``reposer study``: studies by name, and the way from their stages to table, plots and sections."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pydantic

from reposer.config import Config, apply_overrides, read_json, validated
from reposer.errors import UserError, find
from reposer.jobs.stages import make_all, seal_study
from reposer.sections import SECTIONS_FILE
from reposer.storage.paths import made_folder, printable
from reposer.structures import unknown_cameras
from reposer.studies.config import (
    STUDYS,
    Arm,
    ArmFilter,
    Budget,
    StudyConfig,
    StudyRecipe,
    claim_study,
    save_study,
)
from reposer.studies.plan import StudyPlan, plan_stages, read_scores
from reposer.studies.report import PICTURES, WRITTEN, study_notes, write_report_parts
from reposer.studies.results import TABLES, ArmResult, Block, summarize_block, write_tables
from reposer.workflows.reid_features import tested_rows

T = TypeVar("T", bound=Config)
_EXAMPLE = "'x2_other=x2_any generator=RUN'"

# ---- Studies by name: functions that return a full configuration; arms that several of them share.

REAL = Arm(name="real")
REPEATED = Arm(name="real_repeated", factor=2, repeated=True)
CLASSICAL = (  # the recipe's own flip, crop and erasing, taken away and put back
    Arm(name="real_plain", settings=("augment.flip=false", "augment.pad=0", "augment.erase=0")),
    Arm(name="real_flip_crop", settings=("augment.flip=true", "augment.pad=5", "augment.erase=0")),
    Arm(name="real_erasing", settings=("augment.flip=true", "augment.pad=5", "augment.erase=0.5")),
)
GENERATED = (
    Arm(name="x2_any", factor=2),
    Arm(name="x2_compatible", factor=2, policy="compatible"),
    Arm(name="x2_coverage", factor=2, policy="coverage"),
    Arm(name="x2_filtered", factor=2, filter=ArmFilter(identity_quantile=0.99)),
    Arm(name="x2_donor_background", factor=2, background="donor"),
    Arm(name="x4_any", factor=4),
)
POLICIES = tuple(
    Arm(name=f"x2_{policy}", factor=2, policy=policy)
    for policy in ("same_camera", "other_camera", "same_identity", "canonical")
)
_MOSTLY_REAL = ("generated.real_share=0.75",)  # of every batch
LABELS = (  # how generated images enter the loss; all of them share the pictures of x2_any
    Arm(name="x2_smoothed", factor=2, settings=("generated.label=smoothed",)),
    Arm(name="x2_uniform", factor=2, settings=("generated.label=uniform",)),
    Arm(name="x2_half_weight", factor=2, settings=("generated.weight=0.5",)),
    Arm(name="x2_three_quarters_real", factor=2, settings=_MOSTLY_REAL),
)
LEVERS = (  # what raised the pictures of real people most, alone and with a milder use
    Arm(name="x2_compatible_smoothed", factor=2, policy="compatible", settings=("generated.label=smoothed",)),
    Arm(name="x2_compatible_three_quarters_real", factor=2, policy="compatible", settings=_MOSTLY_REAL),
    Arm(name="x2_same_identity_three_quarters_real", factor=2, policy="same_identity", settings=_MOSTLY_REAL),
    Arm(name="x2_filtered_strict", factor=2, filter=ArmFilter(identity_quantile=0.8)),
    Arm(name="x2_filtered_pose", factor=2, filter=ArmFilter(identity=False, pose="merged8")),
    Arm(name="x2_filtered_margin", factor=2, filter=ArmFilter(identity=False, margin=True)),
)
CONTROLS = (  # pictures that no network makes; the source stays in its pose, or is carried into the donor's
    Arm(name="paste", factor=2, generator="paste", background="donor"),
    Arm(name="transport", factor=2, generator="transport"),
)
SOURCES = (  # several images of a person, and the donor's scene in its camera's colors or in the source's
    Arm(name="x2_sources_4", factor=2, sources=4),
    Arm(name="x2_donor_camera", factor=2, background="donor", camera="donor"),
    Arm(name="x2_sources_4_donor_background", factor=2, sources=4, background="donor"),
    Arm(name="x2_sources_4_donor_camera", factor=2, sources=4, background="donor", camera="donor"),
)
SCHEDULES = (  # real images alone first, then both; its control does the same with repeated images
    Arm(name="x2_after_real", factor=2, start=0.5),
    Arm(name="x2_sources_4_after_real", factor=2, sources=4, start=0.5),
    Arm(name="real_repeated_after_real", factor=2, repeated=True, start=0.5),
)
PREDICTED = (  # the donor lends its pose only: target maps are the predictor's, from what the source wears
    Arm(name="x2_predicted", factor=2, predictor=STUDYS),
    Arm(name="x2_predicted_three_quarters_real", factor=2, predictor=STUDYS, settings=_MOSTLY_REAL),
)


def augmentation() -> StudyConfig:
    """Every kind of arm on rendered people, small enough for an hour on two cores."""
    return StudyConfig(
        data=Path("prepared/rendered"),
        arms=(REAL, REPEATED, *CLASSICAL, *GENERATED, *POLICIES),
        recipes=(StudyRecipe(preset="reid_demo"),),
        steps=150,
    )


def market_dev() -> StudyConfig:
    """Market-1501's development split: IDE on MobileNetV2, 8 arms, two budgets, 3 seeds, 300 steps each.

    Wants ``--set 'settings=["initial_path=FILE"]'``, the weights of ``ide_small``.
    """
    return StudyConfig(
        data=Path("prepared/market1501"),
        arms=(REAL, REPEATED, *GENERATED),
        recipes=(StudyRecipe(preset="ide_small"),),
        budgets=(Budget(), Budget(share=0.2)),
        steps=300,
    )


def san_table() -> StudyConfig:
    """The paper's table: IDE with three distances and Siamese, ResNet-50, by factor; for a GPU.

    Ours: real_repeated, three seeds, equal steps for every factor (the 50,000 of IDE's).
    """
    return StudyConfig(
        data=Path("prepared/market1501"),
        arms=(REAL, REPEATED, *(Arm(name=f"x{factor}", factor=factor) for factor in (2, 4, 8))),
        recipes=(
            StudyRecipe(preset="ide2016"),
            StudyRecipe(preset="siamese2017", methods=("euclidean",)),
        ),
        steps=50_000,
    )


def demo() -> StudyConfig:
    """What ``make demo`` runs: two trainings of each of four arms, two or three minutes."""
    return StudyConfig(
        data=Path("prepared/rendered"),
        arms=(
            Arm(name="real_repeated", factor=3, repeated=True),
            Arm(name="pasted", factor=3, background="donor", generator="paste"),
            Arm(name="san", factor=3, background="donor", generator="shipped"),
            Arm(name="mended", factor=3, background="donor", generator="shipped-transport"),
        ),
        recipes=(StudyRecipe(preset="reid_demo", methods=("euclidean",)),),
        seeds=(0, 1),
        steps=60,
        settings=("batch_size=32",),
        controls=("real_repeated", "pasted"),
        threads=None,
    )


STUDIES: dict[str, Callable[[], StudyConfig]] = {
    "augmentation": augmentation,
    "market_dev": market_dev,
    "san_table": san_table,
}
# of any study, by name
EXTRA_ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        *(REAL, REPEATED),
        *(*CLASSICAL, *GENERATED, *POLICIES, *LABELS, *LEVERS, *PREDICTED),
        *(*CONTROLS, *SOURCES, *SCHEDULES),
    )
}


def find_study(name: str) -> StudyConfig:
    """The study of that name, or of a plan: a JSON file with the fields of StudyConfig.

    An arm of a plan is an object with the fields of Arm, or the name of one of EXTRA_ARMS; ``data`` may be
    left out.

    Raises:
        UserError: there is none; names the nearest, or what is wrong with the file.
    """
    if not name.lower().endswith(".json"):
        return find("study", name, STUDIES, "paper_table", "ablations")()
    plan = {"data": "."} | read_json(name, named=True)
    if isinstance(plan.get("arms"), list):
        plan["arms"] = [
            find(f"{printable(name)}: arm", arm, EXTRA_ARMS).model_dump(mode="json")
            if isinstance(arm, str)
            else arm
            for arm in plan["arms"]
        ]
    return validated(StudyConfig, plan, printable(name))


# ---- ``reposer study``: make every stage of an augmentation study, then its table, plots and sections.


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
    check_tested(StudyPlan(study, out))  # refuses what cannot be run before anything is written
    claim_study(out, (*TABLES, *WRITTEN, SECTIONS_FILE), out / PICTURES)
    made_folder(out)
    save_study(study, out)
    make_all(out, plan_stages, workers=workers, threads=study.threads)
    plan = StudyPlan(study, out)
    results, notes = collect(plan), study_notes(plan)
    write_tables(out, results, notes)
    write_report_parts(plan, results, notes, out)
    seal_study(out)
    return out


def check_tested(plan: StudyPlan) -> None:
    """Refuse, before any training, people over whom nothing could be told.

    Raises:
        UserError: nobody to test on, or too few of them are found in another camera.
    """
    query, gallery = tested_rows(plan.people)
    pids, cameras = (
        each[np.concatenate([query, gallery])] for each in (plan.people.pids, plan.people.camids)
    )
    cameras = np.where(unknown_cameras(cameras), -1 - np.arange(len(cameras)), cameras)
    seen = [*zip(pids.tolist(), cameras.tolist(), strict=True)]
    elsewhere: dict[int, set[int]] = {}
    for pid, camera in seen[len(query) :]:
        elsewhere.setdefault(pid, set()).add(camera)
    found = {pid for pid, own in seen[: len(query)] if pid > 0 and elsewhere.get(pid, set()) - {own}}
    needed = 2 if plan.study.controls and len(plan.study.arms) > 1 else 1
    if len(found) < needed:
        raise UserError(
            f"{plan.study.data}: {len(found)} test people have a query and an image of another camera, and"
            f" {needed} are needed",
            "prepare it with more test people: query and gallery, or --holdout N",
        )


def configure(
    name: str,
    data: Path,
    generator: str = "",
    arms: Sequence[str] = (),
    overrides: Sequence[str] = (),
    *,
    predictor: str = "",
    parser: str = "",
    accept_license: bool = False,
    variants: Sequence[str] = (),
) -> StudyConfig:
    """A study of STUDIES, or of a plan, on a prepared folder.

    Args:
        name: as :func:`find_study` knows it.
        generator: run folder, exported folder, hub id or "shipped"; empty: the study's own.
        arms: names, of the study's arms or EXTRA_ARMS; empty: the study's.
        overrides: "a.b=c", on top of the preset.
        predictor: of target maps, for arms that take the study's; empty: the study's own, if any.
        parser: for arms that judge poses; the same.
        accept_license: of the parser's weights.
        variants: further arms, each "NAME=ARM FIELD=VALUE ...": an arm above (or a variant before it) under
            another name with some fields changed, as "x2_other=x2_any generator=RUN".

    Raises:
        UserError: an unknown study, arm or setting; a variant that says nothing new; more trainings than a
            study may have; an arm that needs a predictor or a parser where none is named, or one is named
            that no arm needs; terms that are accepted of none.
    """
    named = {
        "generator": generator,
        "predictor": predictor,
        "parser": parser,
        "accept_license": accept_license,
    }
    study = find_study(name)
    known = EXTRA_ARMS | {arm.name: arm for arm in study.arms}
    chosen = list(arms or (arm.name for arm in study.arms))
    for text in variants:
        made = variant(text, known)
        known[made.name] = made
        chosen.append(made.name)
    values = {field: value for field, value in named.items() if value}
    every = study.model_copy(update={"data": data, "arms": tuple(known.values())} | values)  # checked by only
    try:
        study = apply_overrides(every.only(tuple(chosen)), overrides)
    except pydantic.ValidationError as error:
        reasons = (problem["msg"].removeprefix("Value error, ") for problem in error.errors())
        raise UserError(f"study {printable(name)}: {'; '.join(reasons)}") from error
    _check_helpers(study)
    if accept_license and not study.parser:
        raise UserError("--accept-license: no parser is named", "add --parser, or leave it out")
    return study


def _check_helpers(study: StudyConfig) -> None:
    """Every arm has the predictor or parser that it needs, and none is named that no arm uses."""
    for arm in study.arms:
        study.painter_of(arm, study.budgets[0])
        study.parser_of(arm)
    if study.predictor and all(arm.predictor != STUDYS for arm in study.arms):
        takers = ", ".join(arm.name for arm in EXTRA_ARMS.values() if arm.predictor == STUDYS)
        advice = f"take {takers}, or add one: --arm 'NAME=ARM predictor={STUDYS}'"
        raise UserError(f"--predictor {study.predictor}: no arm of the study uses it", advice)
    if study.parser and not any(map(study.parser_of, study.arms)):
        takers = ", ".join(
            arm.name for arm in EXTRA_ARMS.values() if arm.filter and arm.filter.need("parser")
        )
        advice = f"take {takers}, or add one: --arm 'NAME=ARM filter.pose=mask'"
        raise UserError(f"--parser {study.parser}: no arm of the study uses it", advice)


def variant(text: str, known: Mapping[str, T], kind: str = "arm", example: str = _EXAMPLE) -> T:
    """The arm (or what else is named) of "NAME=ARM FIELD=VALUE ...".

    Args:
        known: by name, what it may be made from.
        kind: what they are, for messages.
        example: one of them, for messages.

    Raises:
        UserError: that says nothing new, an unknown arm or field, or a name that is taken.
    """
    try:
        head, *fields = shlex.split(text)
    except ValueError:
        head, fields = "", []
    name, _, base = (part.strip() for part in head.partition("="))
    form = f"write NAME={kind.upper()} FIELD=VALUE, as {example}"
    if not (name and base and fields):
        raise UserError(f"--arm {text}: is no {kind} with another name and other fields", form)
    arm = find(f"--arm {text}: {kind}", base, known)
    if name in known or any(field.partition("=")[0] == "name" for field in fields):
        problem = (
            f"--arm {text}: there is {'an' if kind == 'arm' else 'a'} {kind} {name} already, or two names"
        )
        raise UserError(problem, "give one new name")
    try:
        return apply_overrides(arm, [f"name={name}", *fields])
    except UserError as error:
        reason = str(error).removeprefix("--set").lstrip(": ")
        raise UserError(f"--arm {text}: {reason}") from error


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
