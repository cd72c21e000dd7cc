"""Arms beyond the presets: generators, predictors and filters of their own; the words to ask for them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
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
from reposer.studies.config import ArmFilter, Budget, GeneratorChoice, _describe_parser, training_config
from reposer.studies.plan import StudyPlan
from reposer.studies.study import configure, run_study
from reposer.studies.study_stages import SET
from reposer.trained.networks import GeneratorConfig


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
    _describe_parser.cache_clear()
    assert StudyPlan(study, tmp_path / "study").cells[1].augmented.key != made.key


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
        ([], {"variants": ["mine=x3 factor=3"]}, "arm x3: unknown: .*known: real_plain"),
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
