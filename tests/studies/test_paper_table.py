"""The table of generators: rows by name, one budget, what is refused; and a whole tiny one, made once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from zoo import ONE_STEP, SMALL_REID, SMALL_SAN, command, settings

from reposer.data.packed import PackedPeople
from reposer.data.pairs import load_pairs
from reposer.errors import UserError
from reposer.evaluation.image_quality import COPY, evaluate_pairs
from reposer.generation.pose_transfer import PoseTransfer
from reposer.images import decode
from reposer.models.generators import GENERATORS, build_generator
from reposer.rendered.dataset import write_rendered_dataset
from reposer.storage.manifest import read_rows
from reposer.structures import PairBatch
from reposer.studies.config import StudyRecipe
from reposer.studies.paper_report import sheet_pairs
from reposer.studies.paper_stages import ROWS, PaperTableConfig, TableRow, cost_of, pace_stage, recipe_of
from reposer.studies.paper_table import TablePlan, paper_table, run_paper_table
from reposer.trained.networks import GeneratorConfig, save_generator
from reposer.workflows.gan_presets import PRESETS

TINY_PG2 = {"size": [64, 32], "width": 4, "levels": 3, "fine_levels": 2, "code": 8}
TINY_ROWS = (
    TableRow(name="san", title="SAN", preset="san_demo", settings=SMALL_SAN),
    TableRow(
        name="pg2",
        preset="pg2_market_small",
        settings=(
            f"generator_args={json.dumps(TINY_PG2)}",
            *('discriminator_args={"kind": "dcgan", "size": [64, 32], "widths": [4, 4]}', "batch_size=2"),
        ),
    ),
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """Folder of ``reposer prepare``: rendered people of 64x32, two of them held out."""
    root = tmp_path_factory.mktemp("table")
    counts = {"identities": 5, "test_identities": 0, "images_per_identity": 3}
    write_rendered_dataset(root / "people", **counts, size=(64, 32), samples=1, workers=1)
    sizes = ("--size", "64x32", "--holdout", 2)
    command("prepare", "market1501", root / "people", "--out", root / "prepared", *sizes)
    return root / "prepared"


def tiny(prepared: Path, **changes) -> PaperTableConfig:
    values = {
        **{
            "data": prepared,
            "rows": TINY_ROWS,
            "steps": 2,
            "pairs": 4,
            "metrics": ("fid", "l1"),
            "device": "cpu",
        },
        "recipes": (StudyRecipe(preset="reid_demo", methods=("euclidean",), settings=SMALL_REID[:-1]),),
        **{"reid_steps": 1, "reid_seeds": (0,)},
    }
    return PaperTableConfig(**{**values, **changes})


# ---- the rows and the rule


def test_it_has_a_row_for_each_generator_of_the_paper_and_each_row_a_preset():
    """Table 1 of SAN's paper and its Re-ID section, SAN's relatives, and every generator of this package."""
    others = {"xinggan", "dptn"}  # of later papers
    assert {row.generator for row in ROWS} == set(GENERATORS) - others
    for row in ROWS:
        assert PRESETS[row.preset]().generator == row.generator
    title = next(row.title for row in ROWS if row.name == "intro_flow_keypoints")
    assert title == "Intro-Flow with key-point flow (not SMPL)"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_presets_of_all_rows_take_one_stand_in_for_the_perceptual_network(row, tmp_path):
    """VGG-16 to relu3_3, the file of the small SAN."""
    stand_in = ("perceptual.network=vgg16",)
    recipe = recipe_of(PaperTableConfig(data=tmp_path, settings=stand_in), row, 100)
    assert recipe.total_steps == 100
    layers = [name for names in recipe.feature_layers.values() for name in names]
    assert all(name < "relu3_4" for name in layers), layers


def test_rows_are_chosen_and_changed_by_name(tmp_path):
    table = paper_table(
        *(tmp_path, ["gfla", "san"], ["steps=7"]),
        variants=['slim=san settings=["generator_args.blocks=3"]'],
        runs=[f"patn={tmp_path}/patn", f"mine={tmp_path}/run"],
    )
    assert [row.name for row in table.rows] == ["gfla", "san", "slim", "patn", "mine"]
    gfla, san, slim, patn, mine = table.rows
    assert slim.settings == ("generator_args.blocks=3",)
    assert (slim.preset, slim.generator) == (san.preset, san.generator)
    assert (patn.run, patn.preset, patn.generator) == (f"{tmp_path}/patn", "", "patn")
    assert (mine.run, mine.generator) == (f"{tmp_path}/run", "")
    assert recipe_of(table, gfla, 7).generator == "gfla"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"names": ["san", "vnet"]}, "--arms: row vnet: unknown: did you mean vunet"),
        ({"names": ["san", "san"]}, "--arms: san is named twice"),
        ({"runs": ["san"]}, "--runs san: is no name and folder"),
        ({"runs": ["san=a", "san=b"]}, "--runs san=b: san is named twice"),
        ({"runs": ["a/b=c"]}, "--runs a/b=...: "),
        ({"runs": ["real=c"]}, "real is the name of a row that stands in every table"),
        ({"variants": ["slim=sand settings=[a=1]"]}, "row sand: unknown"),
        ({"overrides": ["minutes=0"]}, "minutes"),
        ({"overrides": ["steps=0"]}, "steps"),
        ({"overrides": ["minuets=3"]}, "did you mean minutes"),
        ({"overrides": ["recipes=[]"]}, "recipes: one or more, each once"),
        ({"overrides": ["reid_seeds=[1,1]"]}, "reid_seeds: one or more, each once"),
        ({"overrides": ["metrics=[]"]}, "metrics: one or more, each once"),
        (
            {"overrides": ["policy=anny"]},
            "--set policy=anny: policy: policy anny: unknown",
        ),
    ],
)
def test_what_cannot_be_a_table_is_refused_by_name(arguments, said, tmp_path):
    with pytest.raises(UserError) as refusal:
        paper_table(tmp_path, **arguments)
    assert said in str(refusal.value)


def test_pairs_that_do_not_fit_are_refused_before_anything_is_written(prepared, tmp_path):
    people = PackedPeople.open(prepared / "packed")
    learned = [people.names[i] for i in np.flatnonzero(people.splits == "train")[:2]]
    for row, said in (
        (("nobody.jpg", learned[0]), "nobody.jpg"),
        (learned, f"the pair {learned[0]}, {learned[1]} shows people of the training images"),
    ):
        path = tmp_path / "pairs.csv"
        path.write_text(f"from,to\n{','.join(row)}\n")
        with pytest.raises(UserError) as refusal:
            run_paper_table(tiny(prepared, pair_list=path), tmp_path / "out")
        assert said in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_people_who_tell_nothing_are_refused_before_any_work(prepared, tmp_path, monkeypatch):
    """One person is found again, and two trainings are to be compared; what compares nothing may run."""
    people = PackedPeople.open(prepared / "packed")
    held_out = np.unique(people.pids[people.splits == "val"])
    alone = np.where((people.splits == "val") & (people.pids == held_out[1]), "unused", people.splits)
    opened = PackedPeople.open

    def one_less(folder, **options):
        found = opened(folder, **options)
        found.splits = alone
        return found

    monkeypatch.setattr(PackedPeople, "open", one_less)
    (tmp_path / "pairs.csv").write_text(
        "from,to\n{0},{0}\n".format(people.names[np.flatnonzero(alone == "val")[0]])
    )
    config = tiny(prepared, pair_list=tmp_path / "pairs.csv")
    TablePlan(config.changed(augment=False), tmp_path / "out").check()
    with pytest.raises(UserError, match=r"1 test people have a query .* and 2 are needed"):
        TablePlan(config.changed(augment=True), tmp_path / "out").check()


def test_a_setting_of_the_re_id_trainings_that_does_not_fit_is_refused_before_any_work(prepared, tmp_path):
    with pytest.raises(UserError, match=r"reid_settings, recipes: --set nonsense=1: unknown key nonsense"):
        run_paper_table(tiny(prepared, reid_settings=("nonsense=1",)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_of_another_generator_or_of_other_people_is_refused_by_name(prepared, tmp_path):
    people = PackedPeople.open(prepared / "packed")
    patn = {"ngf": 4, "enc_strides": [2, 2, 1], "blocks": 1, "dropout": 0.0}
    for folder, identity, said in (
        ("here", people.identity_hash("train"), f"row san: {tmp_path}/here holds patn, not san"),
        ("other", "0" * 64, f"row mine: {tmp_path}/other was trained on other people (elsewhere)"),
    ):
        info = GeneratorConfig(
            **{"generator": "patn", "generator_args": patn, "size": people.size},
            **{"trained_on": "elsewhere", "identity_hash": identity},
        )
        save_generator(tmp_path / folder, build_generator("patn", **patn), info)
        row = TableRow(name="san" if folder == "here" else "mine", run=str(tmp_path / folder))
        rows = (row.changed(generator="san" if folder == "here" else ""),)
        with pytest.raises(UserError) as refusal:
            run_paper_table(tiny(prepared, rows=rows), tmp_path / "out")
        assert said in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_the_sheet_shows_each_person_once():
    pids = np.array([1, 1, 1, 2, 2, 3, 3])
    pairs = np.array([[0, 1], [1, 0], [2, 1], [3, 4], [4, 3], [5, 6]])
    assert sheet_pairs(pairs, pids).tolist() == [[0, 1], [3, 4], [5, 6]]
    many = np.stack([np.arange(0, 200, 2), np.arange(1, 200, 2)], axis=1)
    shown = sheet_pairs(many, np.repeat(np.arange(100), 2))
    assert len(shown) == 16
    assert shown[[0, -1]].tolist() == [[0, 1], [198, 199]]


def test_a_row_costs_what_its_shapes_say(prepared):
    """Two convolutions: (9 * 3 * 4 + 9 * 4 * 3) multiply-adds a pixel."""

    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Conv2d(4, 3, 3, padding=1)

        def forward(self, batch: PairBatch) -> torch.Tensor:
            return self.last(self.first(batch.source_image / 255))

    people = PackedPeople.open(prepared / "packed")
    pairs = load_pairs(prepared / "pairs_val.csv", people.name_index())
    model = PoseTransfer(Two(), GeneratorConfig(generator="two", size=people.size))
    cost = cost_of(model, people, pairs)
    assert cost["parameters"] == 4 * 27 + 4 + 3 * 36 + 3
    assert cost["gmac"] == pytest.approx(216 * 64 * 32 / 1e9)
    assert cost["pictures_per_second"] > 0

    class Attending(torch.nn.Module):
        """Every eighth place asks every other: two products of 32 x 32 by 3 channels."""

        needs = ("source_image",)

        def forward(self, batch: PairBatch) -> torch.Tensor:
            tokens = (batch.source_image / 255)[..., ::8, ::8].flatten(2).transpose(1, 2)
            found = torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
            return batch.source_image / 255 + found.mean()

    attending = PoseTransfer(Attending(), GeneratorConfig(generator="two", size=people.size))
    assert cost_of(attending, people, pairs)["gmac"] == pytest.approx(2 * 32 * 32 * 3 / 1e9)


# ---- whole tables


@pytest.fixture(autouse=True)
def _few_calls(monkeypatch):
    """Speeds are of three calls, not of three seconds."""
    monkeypatch.setattr("reposer.studies.paper_stages._SECONDS", 0.0)


def test_a_whole_tiny_table(prepared, tmp_path, capsys):
    """Two trainings, a given run, the trivial rows; identity; files, sheet and sections; nothing twice."""
    command(
        *("train", "san_demo", "--data", prepared, "--out", tmp_path / "given", "--threads", 1),
        *(*ONE_STEP, *settings(SMALL_SAN)),
    )
    rows = (*TINY_ROWS, TableRow(name="mine", run=str(tmp_path / "given")))
    table = tiny(prepared, rows=rows, augment=False)
    out = tmp_path / "out"
    written = run_paper_table(table, out)
    assert {path.name for path in written} == {
        *("table.md", "table.tex", "table.json", "table.parquet", "people.png")
    }
    long = {(row["row"], row["figure"]): row for row in pq.read_table(out / "table.parquet").to_pylist()}
    people = PackedPeople.open(prepared / "packed")
    pairs = load_pairs(prepared / "pairs_val.csv", people.name_index())[:4]
    truth = evaluate_pairs({}, people, pairs, ["l1"])
    copied = long["copy of the source", "l1"]
    assert copied["value"] == pytest.approx(truth.rows[COPY]["l1"].value)
    assert (copied["low"], copied["high"]) == (truth.rows[COPY]["l1"].low, truth.rows[COPY]["l1"].high)
    names = ["san", "pg2", "mine", "copy of the source", "label colors", "transport only", "nearest pose"]
    for name in names:
        assert long[name, "l1"]["count"] == len(pairs)
        if name != "nearest pose":
            assert 0 <= long[name, "own pose, rank-1"]["value"] <= 1
    real = json.loads((out / "table.json").read_text())["rows"][-1]["identity"]
    own = next(iter(real.values()))
    assert long["copy of the source", "own pose, rank-1"]["value"] == own["rank1"]  # copies are real queries
    text = (out / "table.md").read_text()
    assert text.splitlines()[2].startswith("| SAN | 2 steps | ")
    assert "| mine | given: 2 steps on prepared |" in text
    assert "- fid: not measured: " in text
    assert "fid" not in text.splitlines()[0]
    sheet = decode(out / "pictures" / "people.png", out)
    assert sheet.shape[1] > 10 * 2 * 32  # source, map, seven rows, truth, each twice as wide
    stages = {path.name: path.stat().st_mtime_ns for path in out.glob("stages/*/done.json")}
    run_paper_table(table, out)
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("stages/*/done.json")} == stages
    command("verify", out)
    assert "nothing is wrong" in capsys.readouterr().out


def test_a_share_of_the_images_is_for_re_id_trainings_and_the_judge_has_learned_all(prepared, tmp_path):
    people = PackedPeople.open(prepared / "packed")
    args = {"ngf": 4, "enc_strides": [2, 2, 1], "blocks": 1, "dropout": 0.0}
    info = GeneratorConfig(generator="patn", generator_args=args, size=people.size)
    save_generator(tmp_path / "given", build_generator("patn", **args), info)
    rows = (TableRow(name="mine", run=str(tmp_path / "given")),)
    plan = TablePlan(tiny(prepared, rows=rows, reid_budget=0.5), tmp_path / "out")
    judges = {plan.generators[0].key, *(one.stage.needs[0].key for one in plan.judged.judgments)}
    assert len(judges) == 1
    trained = {cell.training.key for cell in plan.reid.cells}
    assert len(trained) == 3  # real, repeated, mine
    assert judges.isdisjoint(trained)
    whole = TablePlan(tiny(prepared, rows=rows), tmp_path / "out")
    assert judges < {cell.training.key for cell in whole.reid.cells}


@pytest.mark.slow
def test_re_id_networks_learn_from_the_pictures_of_each_row(prepared, tmp_path):
    run_paper_table(tiny(prepared, reid_budget=0.5), tmp_path / "out")
    document = json.loads((tmp_path / "out" / "table.json").read_text())
    assert [row["arm"] for row in document["reid"]] == ["real", "real_repeated", "san", "pg2"]
    made = [path.parent for path in (tmp_path / "out").glob("stages/augmented-*/set/summary.json")]
    assert len(made) == 3
    donors = [
        read_rows(folder).select(["source", "donor"]).to_pydict()
        for folder in made
        if "the source itself" not in (folder.parent / "inputs.json").read_text()
    ]
    assert len(donors) == 2
    assert donors[0] == donors[1]
    people = PackedPeople.open(prepared / "packed")
    learned = people.pids[people.splits == "train"]
    assert len(donors[0]["source"]) == 2 * len(set(learned.tolist())) < len(learned)  # two images of three
    text = (tmp_path / "out" / "table.md").read_text()
    assert "## Re-ID networks that learned from the pictures" in text
    assert "- Re-ID: 50% of each person's images, times 2 with pictures of each generator" in text
    assert r"\begin{tabular}" in (tmp_path / "out" / "table.tex").read_text()


@pytest.mark.slow
def test_minutes_become_steps_by_the_speed_of_each_row(prepared, tmp_path):
    table = tiny(prepared, steps=None, minutes=0.02, augment=False)
    for row in TINY_ROWS:
        (tmp_path / row.name).mkdir()
        assert pace_stage(table, row, tmp_path / row.name) == ["pace.json"]
        found = json.loads((tmp_path / row.name / "pace.json").read_text())
        assert found["steps"] == max(
            int(1.2 / found["seconds_per_step"]), len(recipe_of(table, row, 1).schedule.stages)
        )
        assert [path.name for path in (tmp_path / row.name).iterdir()] == ["pace.json"]
    run_paper_table(table, tmp_path / "out", workers=2)
    text = (tmp_path / "out" / "table.md").read_text()
    assert "its preset with 0.02 minutes of 1 core(s)" in text
    plan = TablePlan(table, tmp_path / "out")
    for entry, line in zip(plan.entries, plan.lines(), strict=True):
        if entry.pace is not None:
            steps = json.loads(plan.cache.file(entry.pace, "pace.json").read_text())["steps"]
            assert line.origin == f"{steps:,} steps"
