"""``reposer study paper_table``: the generators that the paper compares, in one table, under one budget.

Each is trained on the same pairs for the same minutes or steps, or comes as a run, an export or imported
weights. All make the same pairs, beside rows that learn nothing; then Re-ID networks learn from the pictures
of each, with the same donors. Stages are shared and resumable as those of any study.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from reposer.config import apply_overrides, load_config, read_json, validated
from reposer.data.packed import PackedPeople
from reposer.data.preparing.prepare import PACKED, PAIRS
from reposer.errors import UserError, find
from reposer.evaluation.image_sets import REPORT_FILE
from reposer.jobs.stages import Stage, StageCache, in_order, make_all, seal_study
from reposer.metrics.protocols import known_hashes, weights_in
from reposer.sections import SECTIONS_FILE
from reposer.storage.files import sha256_bytes
from reposer.storage.paths import check_name, contained, made_folder
from reposer.studies.ablations import RUN, described_training
from reposer.studies.config import (
    STUDY_FILE,
    Arm,
    Budget,
    GeneratorChoice,
    StudyConfig,
    claim_study,
    save_study,
)
from reposer.studies.paper_report import (
    JSON_TABLE,
    PEOPLE,
    Found,
    Line,
    metric_notes,
    sheet_pairs,
    write_paper_table,
)
from reposer.studies.paper_stages import (
    AT_ONCE,
    COST,
    EXAMPLE,
    MODEL,
    REFERENCES,
    ROWS,
    SHEET,
    TRIVIAL,
    VERSION,
    PaperTableConfig,
    TableRow,
    generator_stage,
    pace_stage,
    pictures_stage,
    recipe_of,
)
from reposer.studies.plan import StudyPlan
from reposer.studies.results import TABLES
from reposer.studies.study import REAL, REPEATED, check_tested, collect, variant
from reposer.studies.study_stages import IDENTITY
from reposer.trained.networks import GENERATOR, open_network
from reposer.workflows.evaluate import read_named_pairs


def paper_table(
    data: Path,
    names: Sequence[str] = (),
    overrides: Sequence[str] = (),
    *,
    variants: Sequence[str] = (),
    runs: Sequence[str] = (),
) -> PaperTableConfig:
    """The table on a prepared folder.

    Args:
        names: of rows; empty: all.
        overrides: "a.b=c".
        variants: further rows, each "NAME=ROW FIELD=VALUE ...", as "slim=san settings=[...]".
        runs: "NAME=FOLDER" each: a row is not trained, and its network is that of the folder; or one more.

    Raises:
        UserError: an unknown or repeated row or an unknown setting; a run without a name.
    """
    rows = {row.name: row for row in ROWS}
    chosen = list(names) or [*rows]
    for text in variants:
        made = variant(text, rows, "row", EXAMPLE)
        rows[made.name] = made
        chosen.append(made.name)
    given: dict[str, str] = {}
    for text in runs:
        name, _, place = (part.strip() for part in text.partition("="))
        if not (name and place):
            raise UserError(f"--runs {text}: is no name and folder", "write NAME=FOLDER, as san=runs/san")
        if name in given:
            raise UserError(f"--runs {text}: {name} is named twice", "give each row one run")
        given[name] = place
        base = rows.get(name, TableRow(name=_named(name), run=place))
        rows[name] = base.changed(preset="", settings=(), run=place)
        if name not in chosen:
            chosen.append(name)
    found = tuple(find("--arms: row", name, rows) for name in chosen)
    for number, name in enumerate(chosen):
        if name in chosen[:number]:
            raise UserError(f"--arms: {name} is named twice", "name each row once")
    values = {"data": str(data), "rows": [row.model_dump(mode="json") for row in found]}
    return apply_overrides(validated(PaperTableConfig, values, "--arms, --runs"), overrides)


def _named(name: str) -> str:
    try:
        return check_name(name)
    except ValueError as error:
        raise UserError(f"--runs {name}=...: {error}", "give the row another name") from error


def run_paper_table(config: PaperTableConfig, out: Path, *, workers: int = 1) -> list[Path]:
    """Run the table into ``out``, or go on with it.

    Args:
        out: study.json, stages/, table.{md,tex,json,parquet}, pictures/people.png, sections.json.

    Returns:
        what was written.

    Raises:
        UserError: what is wrong with the data, the pairs, a run, the settings, or a stage.
    """
    TablePlan(config, out).check()
    claim_study(out, (*TABLES, JSON_TABLE, SECTIONS_FILE), (out / PEOPLE).parent)
    made_folder(out)
    save_study(config, out)
    make_all(out, plan_generators, workers=workers, threads=config.threads)
    make_all(out, plan_reid, workers=workers, threads=config.threads)
    plan = TablePlan(config, out)
    results = collect(plan.reid) if config.augment else {}
    written = write_paper_table(out, plan.found(), results)
    seal_study(out)
    return written


def plan_generators(root: Path) -> Sequence[Stage]:
    """The judge, the trainings and their pictures; what a worker starts from."""
    return TablePlan(load_config(PaperTableConfig, root / STUDY_FILE), root).generators


def plan_reid(root: Path) -> Sequence[Stage]:
    """Identity kept, and the Re-ID trainings; once every generator is there."""
    plan = TablePlan(load_config(PaperTableConfig, root / STUDY_FILE), root)
    scores = [cell.scores for cell in plan.reid.cells] if plan.config.augment else []
    return in_order([*(one.stage for one in plan.judged.judgments), *scores])


# ---- The stages: how long a step takes, trainings, pictures and what they cost.


@dataclass(frozen=True)
class Entry:
    """A row of the table, and the stages that it ends in."""

    name: str
    title: str
    network: str  # as PoseTransfer.from_pretrained knows it
    quality: Stage
    row: TableRow | None = None  # None: it learns nothing
    pace: Stage | None = None  # where minutes are the budget
    training: Stage | None = None  # None: nothing is trained here


class TablePlan:
    """The stages of a table.

    Args:
        config: what is compared.
        root: its folder.

    Raises:
        UserError: no prepared folder or list of pairs, an unknown preset, setting or metric, or no such run.
    """

    def __init__(self, config: PaperTableConfig, root: Path) -> None:
        self.config, self.cache, self._root = config, StageCache(root), root
        self.people = PackedPeople.open(config.data / PACKED)
        self._data = str(self.people.header["content_hash"])
        self._list = config.pair_list or contained(config.data, PAIRS["val"])
        self.pairs = read_named_pairs(self._list, self.people)[: config.pairs]
        self._weights = {} if config.weights is None else weights_in(config.weights)
        self._measured: dict[str, Any] = {
            **{"version": VERSION, "data": self._data, "pairs": sha256_bytes(self.pairs.tobytes())},
            **{"metrics": {name: known_hashes(name, self._weights) for name in config.metrics}},
            **{"device": config.device, "threads": config.threads},
        }
        self.nearest = self._quality("nearest poses", {"generator": "nearest"}, None)
        self.entries = [self._entry(row) for row in config.rows]
        for name, control in TRIVIAL.items():
            self.entries.append(
                Entry(name, name, control, self._quality(name, {"generator": control}, control))
            )

    def check(self) -> None:
        """Refuse, before any work, what would fail or mislead later.

        Raises:
            UserError: pairs of people who are trained on, nobody to test on, a setting of the Re-ID
                trainings that does not fit, or a run of another generator, size or data set.
        """
        try:
            plan = StudyPlan(self._study((REAL, REPEATED) if self.config.augment else (REAL,)), self._root)
        except UserError as error:
            raise UserError(f"reid_settings, recipes: {error.problem}", error.advice) from error
        check_tested(plan)
        learned = np.isin(self.pairs, np.flatnonzero(self.people.splits == "train")).any(1)
        if learned.any():
            source, target = (self.people.names[i] for i in self.pairs[learned][0])
            raise UserError(
                f"{self._list}: the pair {source}, {target} shows people of the training images",
                "give pairs of people who are held out",
            )
        for row in self.config.rows:
            if row.run:
                _check_run(row, self.config.data, self.people)

    @property
    def generators(self) -> list[Stage]:
        """The judge first, and how long steps take: what is missing is told in the first minutes."""
        judge = StudyPlan(self._study((REAL,)), self._root).cells[0].training
        paces = [entry.pace for entry in self.entries if entry.pace]
        return in_order([judge, *paces, self.nearest, *(entry.quality for entry in self.entries)])

    @property
    def reid(self) -> StudyPlan:
        """The Re-ID trainings: real images, repeated ones, and the pictures of each generator."""
        learned = (self._arm(entry) for entry in self.entries if entry.row)
        return StudyPlan(self._study((REAL, REPEATED, *learned), self.config.reid_budget), self._root)

    @property
    def judged(self) -> StudyPlan:
        """Whether the pictures of each row keep who is shown; the generators must be there."""
        return StudyPlan(self._study((REAL, *map(self._arm, self.entries))), self._root)

    def found(self) -> Found:
        """What the table is written from, of finished stages."""
        shown = sheet_pairs(self.pairs, self.people.pids)
        reference = read_json(self.cache.file(self.nearest, REPORT_FILE))
        images, maps = self.people.images, self.people.parsing
        return Found(
            *(self.config, self.lines(), reference, self.cache.file(self.nearest, SHEET)),
            *(images[shown[:, 0]], images[shown[:, 1]], maps[shown[:, 1]]),
            notes=[*self._notes(), *metric_notes(reference)],
        )

    def lines(self) -> list[Line]:
        """What the finished stages say of each row."""
        identity = {
            name: read_json(self.cache.file(one.stage, IDENTITY))["rows"]
            for one in self.judged.judgments
            for name in one.arms
        }
        found = []
        for entry in self.entries:
            report = read_json(self.cache.file(entry.quality, REPORT_FILE))
            found.append(
                Line(
                    entry.name,
                    entry.title,
                    self._origin(entry),
                    metrics=report["rows"][MODEL],
                    identity=identity[entry.name],
                    cost=read_json(self.cache.file(entry.quality, COST)),
                    sheet=self.cache.file(entry.quality, SHEET),
                )
            )
        return found

    def _notes(self) -> list[str]:
        config = self.config
        if config.steps is not None:
            budget = f"{config.steps:,} optimizer steps"
        else:
            cores = "the cores of PyTorch's choice" if config.threads is None else f"{config.threads} core(s)"
            budget = f"{config.minutes:g} minutes of {cores}, its steps by its own speed"
        judge = f"{config.recipes[0].preset}, {config.reid_steps:,} steps on real images"
        notes = [
            f"{len(self.pairs):,} pairs of people who are held out, the same for every row; 95 % intervals"
            " over people in brackets.",
            f"Each generator that is trained here: its preset with {budget}, the same training pairs, seed"
            f" {config.seed}. A small budget ranks otherwise than a large one.",
            f"Pose, rank-1 and mAP: generated queries against real images under a network that did not take"
            f" part ({judge}); own: the pose of another picture of the same person, other: of another person,"
            " whose label map comes along in rows that read it. The last row: real queries.",
            f"pictures/s: {AT_ONCE} at a time, {config.threads or 'all'} thread(s), on this machine; GMAC:"
            " multiply-adds of convolutions and matrix products for one picture.",
        ]
        if config.augment:
            whole = config.reid_budget == 1
            images = "the training set" if whole else f"{config.reid_budget:.0%} of each person's images,"
            seen = "" if whole else " The generators have seen all images of the training people."
            notes.append(
                f"Re-ID: {images} times {config.factor} with pictures of each generator, donors"
                f" {config.policy}, the same for all; {config.reid_steps:,} steps each.{seen}"
            )
        return notes

    # ---- the parts

    def _entry(self, row: TableRow) -> Entry:
        title = row.title or row.name
        if row.run:
            described = GeneratorChoice(row.run).describe(self.config.data)
            return Entry(row.name, title, row.run, self._quality(title, described, row.run), row)
        config, pace = self.config, None
        shape = recipe_of(config, row, config.steps or 1000)
        inputs: dict[str, Any] = {"version": VERSION, "data": self._data, "device": config.device}
        inputs |= {"recipe": described_training(shape)}
        if config.steps is None:
            inputs |= {"minutes": config.minutes}
            make: Callable[[Path], Sequence[str]] = partial(pace_stage, config, row)
            pace = Stage("pace", f"seconds of a step of {title}", inputs, make)
        make = partial(generator_stage, config, row, self.cache, pace)
        training = Stage("generator", title, inputs, make, (pace,) if pace else ())
        network = str(self.cache.folder(training) / RUN)
        quality = self._quality(title, {}, network, training)
        return Entry(row.name, title, network, quality, row, pace, training)

    def _quality(
        self, title: str, described: dict[str, str], network: str | None, training: Stage | None = None
    ) -> Stage:
        """A row's pictures, measured; network None: the copies, the nearest poses and the floor."""
        needs = () if network is None else (self.nearest, *([training] if training else []))
        references = self.cache.folder(self.nearest) / REFERENCES if network else None
        make = partial(pictures_stage, self.config, self.pairs, self._weights, network, references)
        return Stage("quality", f"pictures of {title}", self._measured | described, make, needs)

    def _study(self, arms: tuple[Arm, ...], share: float = 1.0) -> StudyConfig:
        config = self.config
        return StudyConfig(
            data=config.data,
            arms=arms,
            budgets=(Budget(share=share),),
            recipes=config.recipes,
            seeds=config.reid_seeds,
            steps=config.reid_steps,
            settings=config.reid_settings,
            controls=tuple(arm.name for arm in (REPEATED, REAL) if arm in arms),
            threads=config.threads,
            device=config.device,
        )

    def _arm(self, entry: Entry) -> Arm:
        """The arm that enlarges the training set by a row's pictures; its donors do not depend on the row."""
        config = self.config
        return Arm(name=entry.name, factor=config.factor, policy=config.policy, generator=entry.network)

    def _origin(self, entry: Entry) -> str:
        """In words: the steps of its training, or where it comes from."""
        if entry.row is None:
            return "nothing is learned"
        info = open_network(GENERATOR, entry.network).info
        if entry.training is not None:
            return f"{info.step:,} steps"
        return f"given: {info.step:,} steps on {info.trained_on or 'people who are not recorded'}"


def _check_run(row: TableRow, data: Path, people: PackedPeople) -> None:
    """Refuse a run that the row is not about, or that did not learn from the training people."""
    info = open_network(GENERATOR, row.run).info
    if row.generator and info.generator != row.generator:
        raise UserError(
            f"row {row.name}: {row.run} holds {info.generator}, not {row.generator}",
            "give a run of that generator, or give the row a name of its own",
        )
    GeneratorChoice(row.run).describe(data)  # refuses another size, and people who are held out
    if info.identity_hash not in ("", people.identity_hash("train")):
        raise UserError(
            f"row {row.name}: {row.run} was trained on other people ({info.trained_on}) than those of {data}",
            "give a run that was trained on this folder",
        )
