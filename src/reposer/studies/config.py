"""Settings of an augmentation study: arms, recipes, methods, budgets, seeds; frozen, typed.

Every training of a study does the same number of optimizer steps with the same batch size, whatever its arm:
an arm differs from another only in the images that these steps see.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, AliasChoices, Field, model_validator

from reposer.annotation.interfaces import Parser
from reposer.annotation.parser import SegmentationParser, open_parser
from reposer.config import (
    Config,
    apply_overrides,
    check_each_once,
    config_bytes,
    differences,
    load_config,
    one_of,
)
from reposer.data.packed import PackedPeople
from reposer.data.preparing.prepare import PACKED
from reposer.errors import MOST_AT_ONCE, MOST_SIDE_BY_SIDE, MOST_SOURCES, UserError, find, unknown
from reposer.evaluation.reid_comparison import LEARNERS
from reposer.generation.augmentation import check_generator
from reposer.generation.camera_colors import CAMERAS
from reposer.generation.donors import POLICIES
from reposer.generation.filters import FilterOptions
from reposer.generation.pose_transfer import MapPredictor, PoseTransfer
from reposer.generation.stitching import BACKGROUNDS
from reposer.reid.distances import DISTANCES
from reposer.runtime import DEVICES, Runtime
from reposer.storage.outputs import claim_outputs, holds_keys, is_older, write_output
from reposer.storage.paths import check_name, printable
from reposer.trained.networks import GeneratorConfig
from reposer.training.reid.config import ReidConfig
from reposer.workflows.reid_features import check_data
from reposer.workflows.train import REID_PRESETS

# ---- The networks behind an arm's pictures: generator and predictor paint, a parser judges poses.


@dataclass(frozen=True)
class GeneratorChoice:
    """By the names that a user gives."""

    generator: str  # as PoseTransfer.from_pretrained knows it
    predictor: str = ""  # as MapPredictor.from_pretrained knows it; empty: the donor's maps are used

    def open(self, runtime: Runtime | None = None) -> PoseTransfer:
        """Ready to generate.

        Raises:
            UserError: a folder that is none, or two that do not fit.
        """
        model = PoseTransfer.from_pretrained(self.generator, runtime)
        if not self.predictor:
            return model
        return model.with_predictor(MapPredictor.from_pretrained(self.predictor, model.runtime), "predicted")

    def describe(self, data: Path) -> dict[str, str]:
        """Hashes of the weights, whatever their names, or the name of a control, which has none; "predictor"
        only where there is one.

        Raises:
            UserError: as :meth:`open`; or it is of another size than the prepared folder ``data``, or was
                trained on people held out there.
        """
        people = PackedPeople.open(data / PACKED)
        check_data(people, self.generator, self.predictor or None)
        model = self.open().at_size(people.size)
        check_generator(model, people)
        hashes = {"generator": model.weights_hash if model.learned else model.config.generator}
        if model.predictor is not None:  # only then, so that sets made without one keep their names
            hashes["predictor"] = model.predictor.weights_hash
        return hashes

    def learned_from(self, people: PackedPeople) -> str:
        """What its networks were trained on, in words; empty for a control, which has none.

        Args:
            people: of whom a network may have seen a share of the training images, or all.

        Raises:
            UserError: as :meth:`open`.
        """
        model = self.open()
        parts = [("the generator", model.config)] if model.learned else []
        if model.predictor is not None:
            parts.append(("the predictor", model.predictor.config))
        here = people.identity_hash("train")
        return " and ".join(f"{what} saw {_seen(config, here)}" for what, config in parts)


def _seen(config: GeneratorConfig, here: str) -> str:
    if config.identity_hash != here:
        return config.trained_on or "people who are not recorded"
    return f"{100 * config.budget:g} % of each person's images"


@dataclass(frozen=True)
class ParserChoice:
    """The parser that the poses of pictures are judged by."""

    name: str  # as open_parser knows it: an .onnx file of `reposer export-parser`, a folder, or a known name
    accept_license: bool = False  # of its weights

    def open(self) -> Parser:
        """Ready to parse.

        Raises:
            UserError: as ``open_parser``.
        """
        return open_parser(self.name, accept_license=self.accept_license)

    def describe(self) -> dict[str, Any]:
        """Its weights by their hash, and how they are used.

        Raises:
            UserError: as ``open_parser``.
        """
        parser = self.open()
        described: dict[str, Any] = {"sha256": parser.info.sha256}
        if isinstance(parser, SegmentationParser):
            described |= parser.description.model_dump(mode="json")
            described["licence"] = described.pop("license")  # names of finished stages have this spelling
        return described


Device = Annotated[str, one_of("device", DEVICES)]
STUDY_FILE = "study.json"
STUDYS = "study"  # an arm's predictor: the one that the study names


_OF_PICTURES = {"policy", "background", "sources", "camera", "generator", "predictor", "filter"}


class ArmFilter(FilterOptions):
    """What a picture must pass to be trained on; the study's own network of real images alone judges who it
    shows.
    """

    identity: bool = True


class Arm(Config):
    """One way to make the training set; the words of the table come from ``name``."""

    later: ClassVar[frozenset[str]] = frozenset({"sources", "camera", "start", "stop"})

    name: Annotated[str, AfterValidator(check_name)]
    # images after augmentation per real one; 1: real images only
    factor: int = Field(default=1, ge=1, le=1000)
    repeated: bool = False  # the added images are the sources themselves: what more images alone bring
    policy: Annotated[str, one_of("policy", POLICIES)] = "any"  # of donors
    # generated | donor | source
    background: Annotated[str, one_of("background", BACKGROUNDS)] = "generated"
    # images of the person that a picture is made from, at most
    sources: int = Field(default=1, ge=1, le=MOST_SOURCES)
    camera: str = (
        "source"  # source | donor, whose colors and number a picture has; donor wants its background
    )
    generator: str = ""  # of this arm, as the study's; empty: the study's
    predictor: str = ""  # of target maps, of this arm, or "study"; empty: the donor's maps are used
    filter: ArmFilter | None = None
    donor_seed: int = 0
    # shares of the training's steps: generated images are seen from start to stop, else real ones alone
    start: float = Field(default=0.0, ge=0, lt=1)
    stop: float = Field(default=1.0, gt=0, le=1)
    settings: tuple[str, ...] = ()  # overrides of the recipe, as generated.weight=0.5 or augment.erase=0.5

    @property
    def painted(self) -> bool:
        """Whether it adds pictures that a generator makes."""
        return self.factor > 1 and not self.repeated

    @property
    def by_network(self) -> bool:
        """Whether a filter judges by the study's network of real images alone."""
        return self.filter is not None and self.filter.need("reid_run")

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.factor == 1 and not self.model_dump(exclude_defaults=True).keys() <= {"name", "settings"}:
            raise ValueError(
                f"arm {self.name}: factor 1 adds no images, so its other fields are read by nobody"
            )
        asked = self.model_dump(exclude_defaults=True).keys()
        if self.repeated and asked & _OF_PICTURES:
            raise ValueError(
                f"arm {self.name}: repeated images have no donor, background, camera, generator, predictor,"
                " filter or further sources"
            )
        if self.start >= self.stop:
            raise ValueError(f"arm {self.name}: stop must be greater than start")
        if self.camera not in CAMERAS:
            raise ValueError(unknown(f"arm {self.name}: camera", self.camera, CAMERAS))
        if self.camera == "donor" and self.background != "donor":
            raise ValueError(f"arm {self.name}: the donor's camera belongs to the donor's background")
        if self.predictor and self.background == "donor":
            raise ValueError(
                f"arm {self.name}: the donor's background needs the donor's mask, which a predictor replaces"
            )
        return self


class StudyRecipe(Config):
    """A Re-ID training by the name of its preset, and the distances that its features are scored with."""

    preset: str  # a key of REID_PRESETS
    methods: tuple[str, ...] = ("euclidean", "xqda", "kissme")  # keys of DISTANCES and LEARNERS
    settings: tuple[str, ...] = ()  # overrides of the preset

    @model_validator(mode="after")
    def _is_known(self) -> Self:
        if self.preset not in REID_PRESETS:
            raise ValueError(unknown("recipe", self.preset, REID_PRESETS))
        for method in self.methods:
            if method not in DISTANCES and method not in LEARNERS:
                raise ValueError(unknown("method", method, [*DISTANCES, *LEARNERS]))
        return self


class Budget(Config):
    """A share of each training person's images; donors, filter and Re-ID training see nothing else."""

    share: float = Field(default=1.0, gt=0, le=1)
    generator: str = ""  # one that was trained on this share only; empty: the study's, and the table says so


MOST_TRAININGS = 10_000  # of one table: years of a machine


def check_trainings(**listed: Sequence[Any]) -> None:
    """For validators of tables that train a network for every combination of what is listed.

    Raises:
        ValueError: they are more than MOST_TRAININGS.
    """
    count = math.prod(map(len, listed.values()))
    if count > MOST_TRAININGS:
        parts = " x ".join(f"{len(values):,} {name}" for name, values in listed.items())
        raise ValueError(
            f"{parts}: {count:,} trainings, and the most is {MOST_TRAININGS:,}: make a list shorter"
        )


class StudyConfig(Config):
    """Everything that the table depends on."""

    data: Path  # written by `reposer prepare`; tested on its query and gallery, or on its held-out people
    generator: str = "shipped"  # run folder, exported folder, hub id, or "shipped"
    predictor: str = ""  # run folder, exported folder or hub id; for arms with the predictor "study"
    parser: str = ""  # .onnx file of `reposer export-parser`, folder or name; for filters of the pose
    # the terms of the parser's weights are accepted
    accept_license: bool = Field(
        default=False, validation_alias=AliasChoices("accept_license", "accept_licence")
    )
    arms: tuple[Arm, ...]
    recipes: tuple[StudyRecipe, ...]
    budgets: tuple[Budget, ...] = (Budget(),)
    budget_seed: int = 0  # which images a budget keeps
    seeds: tuple[int, ...] = (0, 1, 2)  # of the Re-ID trainings
    steps: int = Field(default=300, ge=1)  # optimizer steps of every training, the same for all arms
    settings: tuple[str, ...] = ()  # overrides of every recipe, before an arm's own
    rerank: bool = False  # every method once more, re-ranked
    controls: tuple[str, ...] = ("real_repeated", "real")  # arms that the others are compared with
    # pictures of one forward pass of the generator
    batch_size: int = Field(default=32, ge=1, le=MOST_AT_ONCE)
    # CPU threads of each worker; results depend on it
    threads: int | None = Field(default=1, ge=1, le=MOST_SIDE_BY_SIDE)
    device: Device = "auto"  # auto, cpu, cuda or mps; results depend on it

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        check_trainings(arms=self.arms, budgets=self.budgets, recipes=self.recipes, seeds=self.seeds)
        names = [arm.name for arm in self.arms]
        shares, presets = [one.share for one in self.budgets], [one.preset for one in self.recipes]
        check_each_once(arms=names, budgets=shares, seeds=self.seeds, recipes=presets)
        missing = [name for name in self.controls if name not in names]
        if missing:
            raise ValueError(unknown("controls: arm", missing[0], names))
        if any(arm.by_network for arm in self.arms) and self.real_arm is None:
            raise ValueError("a filter needs an arm with factor 1: its network judges who a picture shows")
        return self

    @property
    def real_arm(self) -> Arm | None:
        """The first arm on real images alone; its network judges the generated ones."""
        return next((arm for arm in self.arms if arm.factor == 1), None)

    def painter_of(self, arm: Arm, budget: Budget) -> GeneratorChoice:
        """Who makes the pictures of an arm: its own generator, else the budget's, else the study's.

        Raises:
            UserError: the arm wants the study's predictor, and the study names none.
        """
        predictor = self.predictor if arm.predictor == STUDYS else arm.predictor
        if arm.predictor and not predictor:
            raise UserError(f"arm {arm.name}: needs a predictor of label maps", "name one: --predictor RUN")
        return GeneratorChoice(arm.generator or budget.generator or self.generator, predictor)

    def parser_of(self, arm: Arm) -> ParserChoice | None:
        """Who judges the poses of an arm's pictures; None where nobody does.

        Raises:
            UserError: its filter wants a parser, and the study names none.
        """
        if arm.filter is None or not arm.filter.need("parser"):
            return None
        if not self.parser:
            problem = f"arm {arm.name}: needs a parser to judge poses by"
            raise UserError(problem, "name one: --parser FILE.onnx, written by `reposer export-parser`")
        return ParserChoice(self.parser, self.accept_license)

    def only(self, names: tuple[str, ...]) -> Self:
        """The same study with these arms only, and those of its controls that are among them.

        Raises:
            UserError: an unknown name.
        """
        known = {arm.name: arm for arm in self.arms}
        arms = tuple(find("--arms: arm", name, known) for name in dict.fromkeys(names))
        if any(arm.by_network for arm in arms) and all(arm.factor > 1 for arm in arms):
            real = self.real_arm.name if self.real_arm else "one with factor 1"
            problem = "--arms: a filter judges by the network of an arm on real images alone"
            raise UserError(problem, f"take {real} too")
        return self.changed(arms=arms, controls=tuple(name for name in self.controls if name in names))


def claim_study(out: Path, names: Sequence[str], pictures: Path | None = None) -> None:
    """Refuse, before any work, to replace tables and pictures that no study wrote.

    Args:
        out: of the study.
        names: of the files that it writes there.
        pictures: a folder whose pictures are the study's, where an earlier version wrote them.

    Raises:
        UserError: as ``outputs.claim_outputs``.
    """
    older = is_older(out / STUDY_FILE, holds_keys("data", "arms"))
    claim_outputs(out, names, older=older)
    for folder in (pictures, *pictures.glob("*/")) if older and pictures is not None else ():
        claim_outputs(folder, [path.name for path in folder.glob("*.png")], older=True)


def save_study(study: Config, out: Path) -> None:
    """Keep the configuration as ``out``/study.json.

    Raises:
        UserError: the folder holds another study, whose running workers a change would lead astray.
    """
    path = out / STUDY_FILE
    if not path.exists():
        write_output(path, config_bytes(study))
        return
    changed = differences(load_config(type(study), path), study)  # fields of later versions: their defaults
    if changed:
        advice = f"choose another folder; or delete {path} to use its finished stages for this study"
        raise UserError(f"{out}: holds another study: {'; '.join(changed)}", advice)


def check_kept(config: Config, own: Mapping[str, Any], place: str) -> None:
    """Refuse settings that change what a study itself decides, and what its stages are known by.

    Args:
        config: with all settings.
        own: dotted key -> the study's own value.
        place: whose settings they are, for messages.

    Raises:
        UserError: names the setting and the study's value.
    """
    settings = config.model_dump()
    for key, value in own.items():
        found: Any = settings
        for name in key.split("."):
            found = found[name]
        if found != value:
            raise UserError(
                f"{printable(place)}: its settings change {key} to {printable(str(found))}, and the study"
                f" itself sets it to {printable(str(value))}",
                "leave it out: data, images and seeds are the study's, the same for every arm",
            )


def training_config(
    study: StudyConfig, recipe: StudyRecipe, arm: Arm, budget: Budget, seed: int, generated: Path | None
) -> ReidConfig:
    """The Re-ID training of a cell of the study.

    Args:
        generated: folder of the arm's generated set; None for an arm on real images alone.

    Raises:
        UserError: an override that does not fit, or that changes the study's data, images or seed.
    """
    config = REID_PRESETS[recipe.preset]()
    data = config.data.changed(folder=study.data, budget=budget.share, budget_seed=study.budget_seed)
    output = config.output.changed(
        validate_every=study.steps,
        held_out=False,  # they may be the test people: scored once, at the end
        checkpoint_every=max(1, study.steps // 2),
    )
    config = config.changed(data=data, output=output, threads=study.threads, seed=seed)
    config = apply_overrides(config, [*recipe.settings, *study.settings])
    folder = [f"generated.folder={generated}"] if generated else []
    config = apply_overrides(config, [*folder, *arm.settings]).with_steps(study.steps)
    own = {"data.folder": study.data, "data.budget": budget.share, "data.budget_seed": study.budget_seed}
    own |= {"generated.folder": generated, "seed": seed, "output.held_out": False}
    check_kept(config, own, f"arm {arm.name}, recipe {recipe.preset}")
    if (arm.start, arm.stop) == (0, 1):
        return config
    epochs: dict[str, float | None] = {
        "start_epoch": arm.start * config.epochs,
        "stop_epoch": arm.stop * config.epochs if arm.stop < 1 else None,
    }
    return config.changed(generated=config.generated.changed(**epochs))
