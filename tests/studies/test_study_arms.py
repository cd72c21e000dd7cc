"""Arms beyond the presets: generators, predictors and filters of their own; the words to ask for them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation, binary_erosion
from tiny_study import ARMS, FILTERED, tiny
from torch import nn

from reposer.data.packed import PackedPeople
from reposer.data.preparing.prepare import PACKED
from reposer.errors import UserError
from reposer.generation.pose_transfer import MapPredictor, PoseTransfer
from reposer.images import decode
from reposer.models.parsing_networks import ParsingPredictor
from reposer.runtime import setup
from reposer.storage.manifest import read_rows
from reposer.studies.config import (
    Arm,
    ArmFilter,
    Budget,
    GeneratorChoice,
    StudyRecipe,
    training_config,
)
from reposer.studies.plan import StudyPlan
from reposer.studies.report import _kept, study_notes
from reposer.studies.study import CONTROLS, EXTRA_ARMS, configure, run_study
from reposer.studies.study_stages import COVERAGE, SET, SUMMARY
from reposer.trained.networks import GENERATOR, GeneratorConfig, open_network, save_generator


@pytest.fixture(scope="module")
def prepared(small_prepared) -> Path:
    return small_prepared


def test_settings_that_nobody_asked_for_are_in_no_key(prepared, tmp_path):
    plan = StudyPlan(tiny(prepared, arms=(*ARMS, FILTERED)), tmp_path)
    inputs = {cell.arm.name: cell.augmented.inputs for cell in plan.cells if cell.augmented}
    plain = {"factor", "policy", "seed", "background", "batch_size", "file_format", "budget", "budget_seed"}
    assert inputs["generated"].keys() == plain | {"version", "data", "filter", "generator"}
    judged = {"identity", "sharpness", "identity_quantile", "sharpness_quantile"}
    assert inputs["filtered"]["filter"].keys() == judged
    assert "held_out" not in plan.cells[0].training.inputs["recipe"]["output"]
    cell = plan.cells[0]
    config = training_config(plan.study, cell.recipe, cell.arm, cell.budget, cell.seed, None)
    assert not config.output.held_out  # test people are looked at once, at the end
    (judgment,) = plan.judgments
    assert judgment.stage.inputs.keys() == {"version", "data", "generator", "background"}
    arm = plan.study.arms[2].model_dump(mode="json")
    assert not {"sources", "camera", "start", "stop"} & arm.keys()  # nor in study.json
    recipe = plan.cells[2].training.inputs["recipe"]["generated"]
    assert (recipe["start_epoch"], recipe["stop_epoch"]) == (0, None)


# ---- arms with several sources, the donor's camera, a schedule, and pictures that no network makes


def test_sources_camera_and_schedule_are_in_the_keys_that_depend_on_them(prepared, tmp_path):
    base = ARMS[2].changed(background="donor")
    fields = {
        "plain": {},
        "four": {"sources": 4},
        "camera": {"camera": "donor"},
        "both": {"sources": 4, "camera": "donor"},
        "later": {"start": 0.5},
        "until": {"start": 0.25, "stop": 0.75},
    }
    arms = [base.changed(name=name, **values) for name, values in fields.items()]
    study = tiny(prepared, arms=(ARMS[0], *arms), controls=(), seeds=(0,), steps=8)
    plan = StudyPlan(study, tmp_path)
    sets = {cell.arm.name: cell.augmented for cell in plan.cells if cell.augmented}
    assert len({stage.key for stage in sets.values()}) == 4
    assert sets["later"].key == sets["until"].key == sets["plain"].key  # the pictures are the same
    assert {"sources", "camera"} & sets["plain"].inputs.keys() == set()
    assert (sets["both"].inputs["sources"], sets["both"].inputs["camera"]) == (4, "donor")
    assert len({cell.training.key for cell in plan.cells}) == 7
    # the colors of a camera are no question of identity; the number of sources is
    judged = {part.arms: part.stage.inputs.get("sources") for part in plan.judgments}
    assert judged == {("plain", "camera", "later", "until"): None, ("four", "both"): 4}
    assert {part.stage.inputs["rules"] for part in plan.judgments} == {2}
    for changes in ({"device": "cpu"}, {"threads": 2}):  # pictures depend on both
        other = StudyPlan(study.changed(**changes), tmp_path).cells[1].augmented
        assert other.key != sets["plain"].key
        assert other.inputs.items() - sets["plain"].inputs.items() == set(changes.items())


def test_a_schedule_counts_steps_whatever_the_recipe(prepared):
    """Of 8 steps, generated images are seen from start to stop: every batch outside is of real images."""
    for start, stop, seen in ((0, 1, range(8)), (0.5, 1, range(4, 8)), (0.25, 0.75, range(2, 6))):
        for preset in ("reid_demo", "ide_small"):
            arm = ARMS[2].changed(start=start, stop=stop)
            study = tiny(prepared, recipes=(StudyRecipe(preset=preset),), steps=8, settings=())
            config = training_config(study, study.recipes[0], arm, study.budgets[0], 0, prepared)
            assert config.total_steps == 8
            assert [step for step in range(8) if config.mixes(step)] == list(seen)
    settings = ("generated.start_epoch=1",)
    asked = training_config(
        study, study.recipes[0], ARMS[2].changed(settings=settings), study.budgets[0], 0, prepared
    )
    assert asked.generated.start_epoch == 1  # of an arm that names no share


def test_controls_without_weights_do_not_share_their_pictures(prepared, tmp_path):
    """Both have no weights, so that the hash of these says nothing; each picture is its own."""
    study = tiny(prepared, arms=(ARMS[0], *CONTROLS), controls=(), seeds=(0,))
    plan = StudyPlan(study, tmp_path)
    people, seen = plan.people, {}
    for cell in plan.cells[1:]:
        assert plan.cache.make(cell.augmented)
        folder = plan.cache.folder(cell.augmented) / SET
        rows = read_rows(folder).slice(0, 6)
        sources, donors = (
            np.array([people.index(name) for name in rows[side].to_pylist()]) for side in ("source", "donor")
        )
        seen[cell.arm.name] = [decode(folder / "images" / name) for name in rows["file"].to_pylist()]
        assert rows["background"].to_pylist() == [cell.arm.background] * 6
    for picture, source, donor in zip(seen["paste"], sources, donors, strict=True):
        mask, own = people.mask[source] > 0, people.images[source].astype(int)
        inside = binary_erosion(mask, iterations=4)
        assert np.abs(picture.astype(int) - own)[inside].mean() < 12  # JPEG
        outside = ~binary_dilation(mask | (people.mask[donor] > 0), iterations=6)
        assert np.abs(picture.astype(int) - people.images[donor])[outside].mean() < 12
    assert np.abs(np.stack(seen["paste"]).astype(int) - np.stack(seen["transport"])).mean() > 5


def test_a_plan_in_a_file_is_a_study(prepared, tmp_path):
    """Arms by name and by their fields; what the command line names goes before what the file says."""
    file = tmp_path / "plan.json"
    plan = {
        "arms": [
            *("real", "real_repeated", "paste", "transport", "x2_sources_4_donor_camera", "x2_after_real"),
            {"name": "mine", "factor": 3, "sources": 2, "start": 0.25, "settings": ["generated.weight=0.5"]},
        ],
        "recipes": [{"preset": "reid_demo", "methods": ["euclidean"]}],
        "generator": "shipped-rsa",
        "steps": 9,
    }
    file.write_text(json.dumps(plan))
    study = configure(str(file), prepared)
    assert [arm.name for arm in study.arms] == [*plan["arms"][:-1], "mine"]
    assert study.arms[4] == EXTRA_ARMS["x2_sources_4_donor_camera"]
    assert study.arms[-1] == Arm(
        name="mine", factor=3, sources=2, start=0.25, settings=("generated.weight=0.5",)
    )
    assert (study.generator, study.steps, study.data) == ("shipped-rsa", 9, prepared)
    assert configure(str(file), prepared, "shipped", ["real", "mine"], ["steps=3"]).steps == 3
    assert configure(str(file), prepared, "shipped").generator == "shipped"
    for change, words in {
        "arms": (["real", "realy"], "arm realy: unknown: did you mean real"),
        "steps": (0, "steps: input should be greater than or equal to 1"),
        "stepz": (3, "unknown key stepz: did you mean steps"),
        "recipes": (3, "recipes"),
    }.items():
        file.write_text(json.dumps(plan | {change: words[0]}))
        with pytest.raises(UserError, match=words[1]) as caught:
            configure(str(file), prepared)
        assert "plan.json" in str(caught.value)
    with pytest.raises(UserError, match=r"none\.json"):
        configure(str(tmp_path / "none.json"), prepared)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"camera": "donor"}, "the donor's camera belongs to the donor's background"),
        ({"camera": "donors", "background": "donor"}, "camera donors: unknown: did you mean donor"),
        ({"sources": 0}, "greater than or equal to 1"),
        ({"sources": 17}, "less than or equal to 16"),
        ({"start": 0.5, "stop": 0.5}, "stop must be greater than start"),
        ({"start": 1}, "less than 1"),
        ({"repeated": True, "sources": 2}, "repeated images have no donor, .* or further sources"),
        ({"factor": 1, "start": 0.5}, "factor 1 adds no images"),
    ],
)
def test_an_arm_that_asks_for_what_cannot_be_is_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        Arm(**{"name": "x", "factor": 2} | fields)


# ---- arms with a generator or a predictor of their own


@pytest.fixture(scope="module")
def others(prepared, tmp_path_factory) -> dict[str, str]:
    """Another generator and a predictor of maps, of random weights."""
    folder, runtime = tmp_path_factory.mktemp("others"), setup("cpu", seed=3)
    shipped = PoseTransfer.from_pretrained("shipped", runtime)
    for parameter in shipped.generator.parameters():
        parameter.data.mul_(0.9)
    shipped.save_pretrained(folder / "generator")
    config = GeneratorConfig(generator="parsing_predictor", generator_args={"width": 8}, size=shipped.size)
    MapPredictor(ParsingPredictor(width=8), config, runtime).save_pretrained(folder / "predictor")
    return {name: str(folder / name) for name in ("generator", "predictor")}


def test_an_arm_s_generator_and_predictor_are_in_its_key_by_content(prepared, tmp_path, others):
    arms = [
        ARMS[2].changed(name="other", generator=others["generator"]),
        ARMS[2].changed(name="predicted", predictor=others["predictor"]),
        ARMS[2].changed(name="studys", predictor="study"),
    ]
    study = tiny(prepared, arms=(*ARMS[:3], *arms), predictor=others["predictor"])
    plan = StudyPlan(study, tmp_path)
    sets = {cell.arm.name: cell.augmented for cell in plan.cells if cell.augmented}
    assert len({sets[name].key for name in ("generated", "other", "predicted")}) == 3
    assert sets["studys"].key == sets["predicted"].key
    copied = tmp_path / "copied"
    shutil.copytree(others["generator"], copied)
    moved = study.changed(arms=(*study.arms[:3], arms[0].changed(generator=str(copied))))
    assert StudyPlan(moved, tmp_path).cells[3].augmented.key == sets["other"].key
    opened = open_network(GENERATOR, str(copied))
    next(opened.network.parameters()).data.add_(1)
    shutil.rmtree(copied)
    save_generator(copied, opened.network, opened.info)  # it learned on, in the same process
    assert StudyPlan(moved, tmp_path).cells[3].augmented.key != sets["other"].key
    judged = [part.arms for part in plan.judgments]  # pictures of one origin are judged once
    assert judged == [("generated",), ("other",), ("predicted", "studys")]


def test_their_pictures_are_theirs(prepared, tmp_path, others):
    """Each arm's stage against the pictures that its generator and predictor give by themselves."""
    arms = [
        ARMS[2].changed(name="other", generator=others["generator"]),
        ARMS[2].changed(name="predicted", predictor="study"),
    ]
    plan = StudyPlan(
        tiny(prepared, arms=(ARMS[0], *arms), predictor=others["predictor"], controls=()), tmp_path
    )
    people, runtime = PackedPeople.open(prepared / PACKED), setup("cpu", threads=1)
    completed = MapPredictor.from_pretrained(others["predictor"], runtime)
    expected = {
        "other": PoseTransfer.from_pretrained(others["generator"], runtime),
        "predicted": PoseTransfer.from_pretrained("shipped", runtime).with_predictor(completed, "predicted"),
    }
    seen = []
    for cell in plan.cells[1:3]:
        assert plan.cache.make(cell.augmented)
        folder = plan.cache.folder(cell.augmented) / SET
        rows = read_rows(folder).slice(0, 8)
        pairs = [np.array([people.index(name) for name in rows[s].to_pylist()]) for s in ("source", "donor")]
        pictures = expected[cell.arm.name](people.pair_batch(*pairs)).permute(0, 2, 3, 1).numpy().astype(int)
        found = np.stack([decode(folder / "images" / name) for name in rows["file"].to_pylist()]).astype(int)
        assert np.abs(pictures - found).mean() < 4  # JPEG
        seen.append(found)
    assert np.abs(seen[0] - seen[1]).mean() > 8


@pytest.mark.slow
def test_a_filter_of_poses_judges_by_the_named_parser(prepared, tmp_path):
    torch.manual_seed(0)
    network = nn.Conv2d(3, 20, 1).eval()
    file = tmp_path / "parser.onnx"
    sample, free = torch.zeros(2, 3, 128, 64), ({0: torch.export.Dim("batch", min=1)},)
    torch.onnx.export(
        network, (sample,), file, dynamo=True, external_data=False, dynamic_shapes=free, verbose=False
    )
    description = {"size": [128, 64], "labels": "lip20", "fit": "resize", "mean": [0.5] * 3, "std": [0.5] * 3}
    file.with_suffix(".json").write_text(json.dumps(description))
    rule = ArmFilter(identity=False, pose="mask", pose_quantile=0.5)
    arm = ARMS[2].changed(name="pose", filter=rule)
    study = tiny(prepared, arms=(ARMS[0], arm), parser=str(file), controls=())
    plan = StudyPlan(study, tmp_path / "study")
    made = plan.cells[1].augmented
    assert plan.cache.make(made)
    people, folder = plan.people, plan.cache.folder(made) / SET

    def agreement(images: np.ndarray, rows: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            scores = network(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1)
        seen, wanted = scores.argmax(1).numpy() > 0, people.parsing[rows] > 0
        return (seen & wanted).sum((1, 2)) / (seen | wanted).sum((1, 2))

    table = read_rows(folder)
    donors = np.array([people.index(name) for name in table["donor"].to_pylist()])
    pictures = np.stack([decode(folder / "images" / name) for name in table["file"].to_pylist()])
    scores = table["pose_agreement"].to_numpy()
    np.testing.assert_allclose(agreement(pictures, donors), scores, atol=0.02)  # judged before the JPEG
    training = np.flatnonzero(people.splits == "train")
    threshold = np.quantile(agreement(people.images[training], training), 0.5)
    assert table["kept"].to_pylist() == (scores >= threshold).tolist()
    fallen = json.loads((folder / "summary.json").read_text())["dropped"]
    assert fallen == {"pose": int((scores < threshold).sum())}
    network.bias.data[0] += 1
    torch.onnx.export(network, (sample,), file, dynamo=True, external_data=False, verbose=False)
    assert StudyPlan(study, tmp_path / "study").cells[1].augmented.key != made.key


def test_the_notes_say_what_the_networks_behind_the_pictures_saw(prepared, tmp_path):
    opened, people = open_network(GENERATOR, "shipped"), PackedPeople.open(prepared / PACKED)
    info = opened.info.changed(identity_hash=people.identity_hash("train"), budget=0.5)
    save_generator(tmp_path / "half", opened.network, info)
    arms = (
        *(ARMS[0], ARMS[1], ARMS[2], Arm(name="carried", factor=2, generator="transport")),
        Arm(name="fair", factor=2, generator=str(tmp_path / "half")),
        Arm(name="fair_too", factor=2, generator=str(tmp_path / "half"), policy="compatible"),
    )
    budgets = (Budget(), Budget(share=0.5))
    plan = StudyPlan(tiny(prepared, arms=arms, budgets=budgets, generator="shipped"), tmp_path / "study")
    assert study_notes(plan)[-3:] == [
        "50 % of the images: donors, filter and Re-ID training saw that share only.",
        f"generated: the generator saw {opened.info.trained_on}.",
        "fair, fair_too: the generator saw 50 % of each person's images.",
    ]


def test_the_notes_say_what_repeated_images_differ_by(prepared, tmp_path):
    """In batches of people an image and its copy may meet; other settings are no chance."""
    study = tiny(prepared, arms=ARMS[:2], controls=())
    (told,) = (note for note in study_notes(StudyPlan(study, tmp_path)) if "repeated" in note)
    assert told.endswith("is chance, and that a batch of people may hold an image and its copy.")
    plain = study.changed(recipes=(StudyRecipe(preset="ide_small"),), settings=("batch_size=8",))
    (told,) = (note for note in study_notes(StudyPlan(plain, tmp_path)) if "repeated" in note)
    assert told.endswith("what real_repeated differs from real by is chance.")
    other = study.changed(arms=(ARMS[0].changed(settings=("augment.erase=0.5",)), ARMS[1]))
    assert not any("repeated" in note for note in study_notes(StudyPlan(other, tmp_path)))


def test_what_is_kept_is_what_is_trained_on(tmp_path):
    """A picture that a person took out, or brought back, after the filter."""
    place = SimpleNamespace(file=lambda stage, name: tmp_path / stage / name)
    part = SimpleNamespace(stage=type("Stage", (str,), {"needs": ("set",)})("coverage"))
    for stage, name, facts in (
        ("set", SUMMARY, {"kept": 70, "generated": 96, "dropped": {"identity": 20, "pose": 6}}),
        ("coverage", COVERAGE, {"kept": 71, "generated": 96}),
    ):
        (tmp_path / stage / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / stage / name).write_text(json.dumps(facts))
    told = _kept(SimpleNamespace(cache=place), part)
    assert told == "71 of 96 (20 identity, 6 pose, -1 by hand)"


def test_poses_that_nobody_knows_are_null_in_the_file(prepared, tmp_path, monkeypatch):
    unknown = {"orientations": float("nan"), "pose_gap": 1.0}
    monkeypatch.setattr("reposer.studies.study_stages.pose_coverage", lambda *_: unknown)
    plan = StudyPlan(tiny(prepared, arms=ARMS[:3]), tmp_path)
    (part,) = plan.coverage
    for stage in (*part.stage.needs, part.stage):
        assert plan.cache.make(stage)
    text = plan.cache.file(part.stage, COVERAGE).read_text()
    assert json.loads(text)["before"] == {"orientations": None, "pose_gap": 1.0}
    assert "NaN" not in text


def test_arms_are_named_on_the_command_line(prepared, others):
    study = configure(
        "market_dev",
        prepared,
        "shipped",
        ["real", "real_repeated", "x2_predicted", "x2_compatible_three_quarters_real", "x2_filtered_strict"],
        ["steps=4"],
        predictor="P",
        variants=["x2_rsa=x2_any generator=G", "x2_rsa_2=x2_rsa settings=[generated.weight=0.5] factor=3"],
    )
    assert [arm.name for arm in study.arms[-2:]] == ["x2_rsa", "x2_rsa_2"]
    predicted, compatible, strict, rsa, last = study.arms[2:]
    assert study.painter_of(predicted, study.budgets[0]) == GeneratorChoice("shipped", "P")
    assert study.painter_of(rsa, Budget(generator="B")) == GeneratorChoice("G")
    assert study.painter_of(compatible, Budget(generator="B")) == GeneratorChoice("B")
    assert (compatible.policy, compatible.settings) == ("compatible", ("generated.real_share=0.75",))
    assert strict.filter == ArmFilter(identity_quantile=0.8)
    assert last == rsa.changed(name="x2_rsa_2", settings=("generated.weight=0.5",), factor=3)


@pytest.mark.parametrize(
    ("arms", "options", "words"),
    [
        (["x2_predicted"], {}, "arm x2_predicted: needs a predictor of label maps: name one: --predictor"),
        (["x2_any"], {"predictor": "P"}, "--predictor P: no arm of the study uses it: take x2_predicted"),
        (["x2_filtered_pose"], {}, "arm x2_filtered_pose: needs a parser .*--parser FILE.onnx"),
        (["x2_any"], {"parser": "P"}, "--parser P: no arm of the study uses it: take x2_filtered_pose"),
        ([], {"variants": ["mine"]}, "--arm mine: is no arm .*write NAME=ARM FIELD=VALUE"),
        ([], {"variants": ["mine=x2_any"]}, "--arm mine=x2_any: is no arm with another name and other"),
        ([], {"variants": ["mine=x3 factor=3"]}, "arm x3: unknown: .*known: real, real_repeated, real_plain"),
        ([], {"variants": ["x2_any=x2_any factor=3"]}, "there is an arm x2_any already"),
        ([], {"variants": ["mine=x2_any generatr=G"]}, "--arm mine=x2_any generatr=G: generatr=G: unknown"),
        ([], {"variants": ["mine=real generator=G"]}, "factor 1 adds no images"),
        ([], {"variants": ["mine=x2_donor_background predictor=P"]}, "needs the donor's mask"),
        ([], {"variants": ['mine=x2_any generator="G']}, "write NAME=ARM FIELD=VALUE"),
    ],
)
def test_arms_that_cannot_be_made_are_one_clear_line(prepared, arms, options, words):
    with pytest.raises(UserError, match=words) as caught:
        configure("market_dev", prepared, "shipped", arms, **options)
    assert len(str(caught.value).splitlines()) == 1


def test_a_generator_that_does_not_fit_is_refused_before_any_work(prepared, tmp_path, others):
    people = PackedPeople.open(prepared / PACKED)
    model = PoseTransfer.from_pretrained("shipped", setup("cpu"))
    seen = model.config.changed(identity_hash=people.identity_hash("train", "query"))
    PoseTransfer(model.generator, seen).save_pretrained(tmp_path / "leaks")
    study = tiny(prepared, arms=(*ARMS[:3], ARMS[2].changed(name="x", generator=str(tmp_path / "leaks"))))
    with pytest.raises(UserError, match="the generator was trained on people that this data set holds out"):
        run_study(study, tmp_path / "out")
    assert not (tmp_path / "out").exists()
