"""The stages of an augmentation study: generated sets, Re-ID trainings, features, scores, identity checks.

    augmented set -> training -> features -> scores
                        \\-> (of real images alone) judges the filters' pictures, and whether identity is kept

What a stage depends on is described by content: hashes of the prepared data, of the generator's weights and
of weight files stand for their paths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from reposer.config import load_config
from reposer.data.records import decisions_hash
from reposer.generation.augmentation import AugmentOptions
from reposer.jobs.stages import Stage, StageCache, in_order
from reposer.storage.files import sha256_file
from reposer.storage.tables import read_table
from reposer.studies.config import (
    STUDY_FILE,
    Arm,
    Budget,
    GeneratorChoice,
    StudyConfig,
    StudyRecipe,
    training_config,
)
from reposer.studies.mistakes import MISTAKEN_PICTURES, mistakes_stage
from reposer.studies.study_stages import (
    RUN,
    SCORES,
    SET,
    StageContext,
    augment_stage,
    cover_stage,
    extract_stage,
    judge_stage,
    score_stage,
    train_stage,
)
from reposer.trained.networks import EMBEDDING, of_run
from reposer.training.config import check_budget
from reposer.training.reid.config import ReidConfig

REAL_IMAGES = "real images"
_VERSION = 1  # of what the stages compute; a change of meaning raises it


@dataclass(frozen=True)
class Cell:
    """One training of the study, and the stages that it ends in."""

    recipe: StudyRecipe
    budget: Budget
    arm: Arm
    seed: int
    augmented: Stage | None
    training: Stage
    features: Stage
    scores: Stage


@dataclass(frozen=True)
class Judgment:
    """Whether the pictures of some arms keep who is shown, under a network trained on real images."""

    budget: Budget
    arms: tuple[str, ...]  # with this generator, predictor, background and number of sources
    background: str
    stage: Stage


@dataclass(frozen=True)
class Coverage:
    """How many orientations and poses the people have, before and after an arm's pictures."""

    budget: Budget
    arm: Arm
    stage: Stage


@dataclass(frozen=True)
class Mistakes:
    """Which pictures of some arms are taken for another person."""

    budget: Budget
    name: str  # of the first arm with these pictures, or REAL_IMAGES
    stage: Stage


class StudyPlan:
    """The stages of a study.

    Args:
        study: what is compared.
        root: its folder.

    Raises:
        UserError: no prepared folder, no such generator or weights file, or an override that does not fit.
    """

    def __init__(self, study: StudyConfig, root: Path) -> None:
        self.study, self.cache = study, StageCache(root)
        self._place = StageContext(study.data, study.device, study.threads)
        self.people = self._place.people
        # Each network is opened once a plan, not once a process: it may learn on between two plans.
        self._painter = cache(lambda painter: painter.describe(study.data))
        self._parser = cache(lambda parser: parser.describe())
        self._teacher = cache(lambda run: of_run(EMBEDDING, run))
        self.cells = [
            self._cell(recipe, budget, arm, seed)
            for seed in study.seeds  # first one of everything: an early look
            for budget in study.budgets
            for recipe in study.recipes
            for arm in study.arms
        ]
        self.judgments, self.coverage = list(self._judgments()), list(self._covered())
        self.mistakes = list(self._mistakes())

    @property
    def stages(self) -> list[Stage]:
        """All of them, what is needed before what needs it."""
        extra: tuple[Coverage | Judgment | Mistakes, ...] = (*self.coverage, *self.judgments, *self.mistakes)
        return in_order([cell.scores for cell in self.cells] + [part.stage for part in extra])

    # ---- the parts

    def _cell(self, recipe: StudyRecipe, budget: Budget, arm: Arm, seed: int) -> Cell:
        augmented = self.augmented(arm, budget) if arm.factor > 1 else None
        training = self._training(recipe, budget, arm, seed, augmented)
        data, share, choice = self._data_hash, budget.share, self.study.budget_seed
        features = Stage(
            "features",
            f"features of {training.title}",
            {"version": _VERSION, "data": data, "budget": share, "budget_seed": choice},
            partial(extract_stage, self.cache, training, self._place, share, choice),
            (training,),
        )
        methods, rerank = list(recipe.methods), self.study.rerank
        scores = Stage(
            "scores",
            f"scores of {training.title}",
            {"version": _VERSION, "methods": methods, "rerank": rerank},
            partial(score_stage, self.cache, features, methods, rerank),
            (features,),
        )
        return Cell(recipe, budget, arm, seed, augmented, training, features, scores)

    def augmented(self, arm: Arm, budget: Budget) -> Stage:
        """The generated set of an arm with a factor above 1."""
        painter, rule = self.study.painter_of(arm, budget), arm.filter
        options = AugmentOptions(
            factor=arm.factor,
            policy=arm.policy,
            seed=arm.donor_seed,
            background=arm.background,
            sources=arm.sources,
            camera=arm.camera,
            batch_size=self.study.batch_size,
            file_format="png" if arm.repeated else "jpg",  # a repeated image is the same to the last bit
            real="none",
            budget=budget.share,
            budget_seed=self.study.budget_seed,
        )
        inputs = {field: getattr(options, field) for field in AugmentOptions.__slots__ if field not in _SPEED}
        inputs |= {"device": self.study.device, "threads": self.study.threads}
        for field, usual in _USUAL.items():  # not named, as in earlier studies
            if inputs[field] == usual:
                del inputs[field]
        inputs |= {"version": _VERSION, "data": self._data_hash}
        # What is not asked for is not named, so that sets of earlier studies keep their names.
        unasked = {"pose", "pose_quantile"} if rule and not rule.pose else set()
        inputs |= {"filter": rule and rule.model_dump(mode="json", exclude=unasked)}
        parser = self.study.parser_of(arm)
        if parser is not None:
            inputs |= {"parser": self._parser(parser)}
        inputs |= {"generator": "the source itself"} if arm.repeated else self._painter(painter)
        judge = self._judge(budget) if rule and rule.need("reid_run") else None
        network = self.cache.folder(judge) / RUN if judge else None
        title = f"pictures of {arm.name}, {_percent(budget.share)}"
        make = partial(augment_stage, arm, painter, self._place, options, network, parser)
        return Stage("augmented", title, inputs, make, (judge,) if judge else ())

    def _judge(self, budget: Budget) -> Stage:
        """The network that has seen nothing but the budget's real images."""
        arm = self.study.real_arm
        assert arm is not None, "StudyConfig checks it"
        return self._training(self.study.recipes[0], budget, arm, self.study.seeds[0], None)

    def _training(
        self, recipe: StudyRecipe, budget: Budget, arm: Arm, seed: int, augmented: Stage | None
    ) -> Stage:
        folder = self.cache.folder(augmented) / SET if augmented else None
        config = training_config(self.study, recipe, arm, budget, seed, folder)
        described, taught_by = _described(config), config.generated.teacher
        if taught_by is not None:
            teacher, facts = self._teacher(taught_by), self.people.training_facts(*config.data.splits)
            # told now, not by its training
            check_budget(f"arm {arm.name}: generated.teacher={taught_by}", teacher.info, config.data, facts)
            described["generated"]["teacher"] = teacher.weights_hash
        inputs = {"version": _VERSION, "data": self._data_hash, "recipe": described}
        inputs |= {"device": self.study.device} | self._decided(augmented)
        title = f"{recipe.preset}, {_percent(budget.share)}, {arm.name}, seed {seed}"
        return Stage(
            "training",
            title,
            inputs,
            partial(train_stage, config, self._place),
            (augmented,) if augmented else (),
        )

    def _judgments(self) -> Iterator[Judgment]:
        """One for each budget, generator and background, where there is a network to judge the pictures."""
        for budget in self.study.budgets if self.study.real_arm else ():
            made: dict[tuple[str, int, GeneratorChoice], list[str]] = {}
            for arm in self.study.arms:
                if arm.painted:
                    origin = (arm.background, arm.sources, self.study.painter_of(arm, budget))
                    made.setdefault(origin, []).append(arm.name)
            judge = self._judge(budget)
            for (background, sources, painter), arms in made.items():
                inputs = {"version": _VERSION, "data": self._data_hash, "background": background}
                inputs |= {"sources": sources} if sources > 1 else {}  # as in earlier studies
                if sources > 1 or background == "donor":  # not found by what they are made of
                    inputs |= {"rules": 2}
                inputs |= self._painter(painter)
                make = partial(judge_stage, self.cache, judge, painter, self._place, background, sources)
                title = f"identity kept, {_percent(budget.share)}, {arms[0]}"
                yield Judgment(
                    budget, tuple(arms), background, Stage("identity", title, inputs, make, (judge,))
                )

    def _covered(self) -> Iterator[Coverage]:
        """One for each generated set."""
        for budget in self.study.budgets:
            for arm in self.study.arms:
                if arm.painted:
                    made = self.augmented(arm, budget)
                    inputs = {"version": _VERSION, "data": self._data_hash} | self._decided(made)
                    make = partial(
                        cover_stage, self.cache, made, self._place, budget.share, self.study.budget_seed
                    )
                    yield Coverage(
                        budget, arm, Stage("coverage", f"poses of {made.title}", inputs, make, (made,))
                    )

    def _mistakes(self) -> Iterator[Mistakes]:
        """One for each generated set and one for the real images, where there is a network to judge them."""
        first = (self.study.recipes[0], self.study.real_arm, self.study.seeds[0])
        for judge in (cell for cell in self.cells if (cell.recipe, cell.arm, cell.seed) == first):
            sets = {c.stage.needs[0].key: c for c in reversed(self.coverage) if c.budget == judge.budget}
            for part in (None, *reversed(sets.values())):
                made = part.stage.needs[0] if part else None
                name = part.arm.name if part else REAL_IMAGES
                inputs = {"version": _VERSION, "data": self._data_hash, "pictures": MISTAKEN_PICTURES}
                make = partial(mistakes_stage, self.cache, judge.training, judge.features, made, self._place)
                title = f"mistaken pictures of {name}, {_percent(judge.budget.share)}"
                needs = (judge.training, judge.features, *([made] if made else []))
                yield Mistakes(judge.budget, name, Stage("mistakes", title, inputs, make, needs))

    def _decided(self, augmented: Stage | None) -> dict[str, str]:
        """What was kept or dropped by hand of a set; nothing where nothing was, as in earlier studies."""
        decided = decisions_hash(self.cache.folder(augmented) / SET) if augmented else ""
        return {"decisions": decided} if decided else {}

    @property
    def _data_hash(self) -> str:
        return str(self.people.header["content_hash"])


def plan_stages(root: Path) -> Sequence[Stage]:
    """The stages of the study whose configuration lies in ``root``; what a worker starts from."""
    return StudyPlan(load_config(StudyConfig, root / STUDY_FILE), root).stages


def read_scores(cache: StageCache, cell: Cell) -> pa.Table:
    """Scores of every query with a valid match under every method: method, query, pid, the scores."""
    return read_table(cache.file(cell.scores, SCORES))


_USUAL = {"sources": 1, "camera": "source", "device": "auto", "threads": 1}
_SPEED = ("real", "shard_items", "encoders", "filters")  # no picture depends on them, or named elsewhere


def _described(config: ReidConfig) -> dict[str, Any]:
    """The settings, with hashes of content in place of paths; a teacher's is the plan's to open."""
    settings = config.model_dump(mode="json")
    settings["data"].pop("folder")
    settings["generated"].pop("folder")  # a stage that is needed
    settings["output"].pop("held_out")  # moves no weight, and older stages say nothing about it
    if config.initial_path is not None:
        settings["initial_path"] = sha256_file(config.initial_path)
    return settings


def _percent(share: float) -> str:
    return f"{100 * share:g} %"
