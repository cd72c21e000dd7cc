"""A tiny study of rendered people: cached, resumed after kills, shared between arms; and its arithmetic."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny_study import ARMS, tiny

from reposer.config import save_config
from reposer.data.packed import PackedPeople
from reposer.data.preparing.prepare import PACKED
from reposer.errors import UserError
from reposer.jobs.stages import DONE, STAGES
from reposer.metrics.intervals import Difference
from reposer.models.embedding import EmbeddingInfo
from reposer.studies import plan as plan_module
from reposer.studies import report
from reposer.studies.ablations import AblationConfig
from reposer.studies.config import MOST_TRAININGS, Arm, Budget, StudyConfig, StudyRecipe
from reposer.studies.paper_stages import PaperTableConfig
from reposer.studies.plan import StudyPlan
from reposer.studies.results import (
    LATEX,
    PARQUET,
    ArmResult,
    Block,
    Comparison,
    block_cells,
    summarize_block,
    to_latex,
    to_markdown,
    what_was_found,
)
from reposer.studies.study import EXTRA_ARMS, STUDIES, check_tested, configure, find_study, run_study
from reposer.studies.study_stages import copy_source
from reposer.workflows.train import REID_PRESETS

STUDY = "import sys; from pathlib import Path; from reposer.config import load_config; "
STUDY += "from reposer.studies.config import StudyConfig; "
STUDY += "from reposer.studies.study import run_study; "
STUDY += "run_study(load_config(StudyConfig, Path(sys.argv[1])), Path(sys.argv[2]), workers=int(sys.argv[3]))"


@pytest.fixture(scope="module")
def prepared(small_prepared) -> Path:
    return small_prepared


# ---- the plan


def test_arms_share_the_stages_that_are_the_same(prepared, tmp_path):
    plan = StudyPlan(tiny(prepared), tmp_path)
    kinds = [stage.kind for stage in plan.stages]
    counts = {kind: kinds.count(kind) for kind in set(kinds)}
    # generated and half_weight share their pictures; every arm and seed is a training of its own
    assert counts == {
        "augmented": 2, "training": 8, "features": 8, "scores": 8, "coverage": 1, "identity": 1,
        "mistakes": 2,  # of the generated pictures, and of the real images
    }  # fmt: skip


def key(prepared, tmp_path, kind="training", arm=ARMS[2], **changes):
    plan = StudyPlan(tiny(prepared, arms=(ARMS[0], arm), controls=(), **changes), tmp_path)
    return getattr(plan.cells[1], kind).key


def test_a_key_follows_what_a_stage_depends_on(prepared, tmp_path):
    base = key(prepared, tmp_path)
    assert base == key(prepared, tmp_path, arm=ARMS[2].changed(name="other words"))
    assert base == key(prepared, tmp_path, recipes=(StudyRecipe(preset="reid_demo", methods=("cosine",)),))
    changed = [
        key(prepared, tmp_path, steps=3),
        key(prepared, tmp_path, seeds=(1,)),
        key(prepared, tmp_path, arm=ARMS[3]),
        key(prepared, tmp_path, arm=ARMS[2].changed(policy="same_camera")),
        key(prepared, tmp_path, arm=ARMS[2].changed(donor_seed=1)),
        key(prepared, tmp_path, budgets=(Budget(share=0.5),)),
    ]
    assert len({base, *changed}) == 7
    assert key(prepared, tmp_path, "augmented") == key(prepared, tmp_path, "augmented", arm=ARMS[3], steps=9)


def test_a_moved_data_folder_keeps_every_key(prepared, tmp_path):
    moved = tmp_path / "elsewhere"
    moved.symlink_to(prepared)
    assert key(prepared, tmp_path) == key(moved, tmp_path)


@pytest.mark.parametrize("preset", REID_PRESETS)
@pytest.mark.parametrize("steps", [1, 7, 300, 2251])
def test_a_recipe_in_other_steps_keeps_its_shape(preset, steps):
    config = REID_PRESETS[preset]()
    changed = config.with_steps(steps)
    assert changed.total_steps == steps
    if steps == 300:
        assert changed.schedule.epochs == pytest.approx(config.schedule.epochs, rel=0.02)
        assert changed.schedule.milestones == config.schedule.milestones


@pytest.mark.parametrize("name", STUDIES)
def test_a_preset_is_a_study(name):
    study = find_study(name)
    assert study.controls[0] in {arm.name for arm in study.arms}
    assert len(study.seeds) >= 3


def test_the_real_study_is_the_one_that_was_declared():
    study = find_study("market_dev")
    assert [budget.share for budget in study.budgets] == [1.0, 0.2]
    assert len(study.arms) * len(study.budgets) * len(study.seeds) == 48
    assert {(arm.factor, arm.policy) for arm in study.arms if arm.factor > 1} >= {
        (2, "any"), (2, "compatible"), (2, "coverage"), (4, "any")
    }  # fmt: skip


# ---- refusals


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arms": (ARMS[0], ARMS[0])}, "arms: one or more, each once"),
        ({"controls": ("nobody",)}, "controls: arm nobody: unknown"),
        ({"seeds": ()}, "seeds: one or more"),
    ],
)
def test_refuses_a_study_that_says_nothing(prepared, changes, words):
    with pytest.raises(ValueError, match=words):
        tiny(prepared, **changes)


@pytest.mark.parametrize(
    "setting",
    [
        "data.folder=elsewhere",
        "data.budget=0.3",
        "data.budget_seed=4",
        "seed=7",
        "generated.folder=elsewhere",
        "output.held_out=true",
    ],
)
@pytest.mark.parametrize("whose", ["arm", "recipe", "study"])
def test_settings_do_not_change_what_the_study_itself_decides(prepared, setting, whose):
    """They would train on something else under the name, and the key, of the arm that the study knows."""
    arm, recipe = ARMS[0], tiny(prepared).recipes[0]
    study = tiny(prepared, arms=(arm,), controls=())
    if whose == "arm":
        study = study.changed(arms=(arm.changed(settings=(setting,)),))
    elif whose == "recipe":
        study = study.changed(recipes=(recipe.changed(settings=(*recipe.settings, setting)),))
    else:
        study = study.changed(settings=(*study.settings, setting))
    with pytest.raises(UserError, match=f"settings change {setting.partition('=')[0]} to"):
        StudyPlan(study, prepared / "no study")


def test_a_teacher_of_more_than_the_budget_is_refused_in_the_plan(prepared, monkeypatch):
    people = PackedPeople.open(prepared / PACKED)
    info = EmbeddingInfo(**people.training_facts("train"))
    monkeypatch.setattr(plan_module, "of_run", lambda *_: SimpleNamespace(info=info, weights_hash="f" * 64))
    taught = ARMS[2].changed(settings=("generated.label=teacher", "generated.teacher=taught"))
    study = tiny(prepared, arms=(*ARMS[:2], taught))
    StudyPlan(study, prepared / "no study")
    with pytest.raises(UserError, match=r"arm generated: generated\.teacher=taught: has seen 100 %"):
        StudyPlan(study.changed(budgets=(Budget(share=0.5),)), prepared / "no study")


def test_people_over_whom_nothing_can_be_told_are_refused_before_training(prepared, tmp_path):
    plan = StudyPlan(tiny(prepared), tmp_path / "study")
    tested = sorted({*plan.people.pids[plan.people.splits != "train"].tolist()} - {0, -1})
    splits = plan.people.splits.copy()
    for kept, words in (
        (tested[:1], "1 test people have a query and an image of another camera"),
        ([], "nobody"),
    ):
        unused = (splits != "train") & ~np.isin(plan.people.pids, kept)
        plan.people.splits = np.where(unused, "unused", splits)
        with pytest.raises(UserError, match=words):
            check_tested(plan)
    plan.people.splits = splits
    plan.people.camids = np.ones_like(plan.people.camids)
    check_tested(plan)  # one number for all tells no camera


@pytest.mark.parametrize(
    ("study", "fields"),
    [
        (StudyConfig, {"device": "gpu"}),
        (StudyConfig, {"arms": [{"name": "a", "factor": 2, "policy": "gpu"}]}),
        (StudyConfig, {"arms": [{"name": "a", "factor": 2, "background": "gpu"}]}),
        (StudyConfig, {"arms": [{"name": "a", "factor": 2, "camera": "gpu"}]}),
        (StudyConfig, {"recipes": [{"preset": "gpu"}]}),
        (StudyConfig, {"recipes": [{"preset": "ide_small", "methods": ["gpu"]}]}),
        (AblationConfig, {"device": "gpu"}),
        (AblationConfig, {"metrics": ["l1", "gpu"]}),
        (PaperTableConfig, {"device": "gpu"}),
        (PaperTableConfig, {"metrics": ["gpu"]}),
        (PaperTableConfig, {"policy": "gpu"}),
    ],
)
def test_a_name_that_a_stage_would_refuse_hours_later_is_refused_in_the_plan(study, fields):
    given = {"data": "prepared", "arms": [{"name": "real"}], "recipes": [{"preset": "ide_small"}]}
    values = {key: value for key, value in given.items() if key in study.model_fields} | fields
    with pytest.raises(ValueError, match=r"gpu: unknown: did you mean \w+"):
        study.model_validate(values)


SOME = [{"name": f"arm{number}"} for number in range(101)]


@pytest.mark.parametrize(
    ("study", "fields", "told"),
    [
        (StudyConfig, {"seeds": list(range(20_000))}, r"1 arms x 1 budgets x 1 recipes x 20,000 seeds"),
        (StudyConfig, {"arms": SOME, "seeds": list(range(100))}, r"101 arms x .*: 10,100 trainings"),
        (
            StudyConfig,
            {"arms": SOME, "budgets": [{"share": (n + 1) / 50} for n in range(50)]},
            r"101 arms x 50 budgets x 1 recipes x 3 seeds: 15,150 trainings, and the most is 10,000",
        ),
        (AblationConfig, {"seeds": list(range(5000))}, r"6 arms x 5,000 seeds: 30,000 trainings"),
        (
            AblationConfig,
            {"arms": SOME, "seeds": list(range(100))},
            r"101 arms x 100 seeds: 10,100 trainings",
        ),
        (PaperTableConfig, {"reid_seeds": list(range(5000))}, r"rows x 1 recipes x 5,000 reid_seeds"),
        (
            PaperTableConfig,
            {"rows": [{**row, "run": "x"} for row in SOME], "reid_seeds": list(range(100))},
            r"101 rows x .*: 10,100 trainings",
        ),
    ],
)
def test_a_table_of_too_many_trainings_is_refused_before_any_plan(study, fields, told):
    given = {"data": "prepared", "arms": [{"name": "real"}], "recipes": [{"preset": "ide_small"}]}
    given |= {"controls": []}
    values = {key: value for key, value in given.items() if key in study.model_fields} | fields
    if study is AblationConfig and "arms" not in fields:
        del values["arms"]  # its own
    with pytest.raises(ValueError, match=told):
        study.model_validate(values)


def test_a_table_of_many_trainings_is_taken():
    given = {"data": "prepared", "arms": SOME[:100], "recipes": [{"preset": "ide_small"}], "controls": []}
    assert len(StudyConfig.model_validate(given | {"seeds": list(range(100))}).seeds) == 100


def test_refuses_arms_by_name(prepared):
    with pytest.raises(UserError, match="--arms: arm x3: unknown"):
        configure("augmentation", prepared, "shipped", ["real", "x3"])
    with pytest.raises(UserError, match="a filter judges by the network"):
        configure("augmentation", prepared, "shipped", ["x2_filtered"])
    with pytest.raises(UserError, match="did you mean ablations"):
        find_study("ablation")
    assert [a.name for a in configure("augmentation", prepared, "shipped", ["x2_uniform"]).arms] == [
        "x2_uniform"
    ]
    with pytest.raises(ValueError, match="factor 1 adds no images"):
        Arm(name="real", policy="coverage")


def test_the_arms_that_are_chosen_count_and_no_others(prepared, tmp_path):
    """900 trainings are taken, though all known arms together would be 10,000 and more; 13,320 are not."""
    plan = {
        "arms": ["real", "x2_any", "x4_any"],
        "recipes": [{"preset": preset} for preset in ("reid_demo", "ide_small", "ide2016")],
        "budgets": [{"share": share / 5} for share in range(1, 6)],
        "seeds": list(range(20)),
        "controls": ["real"],
    }
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(plan))
    assert len(EXTRA_ARMS) * 5 * 3 * 20 > MOST_TRAININGS
    assert [arm.name for arm in configure(str(file), prepared).arms] == plan["arms"]
    chosen = ["x2_coverage", "real", "mine"]
    variants = ["mine=x2_canonical factor=3"]
    assert [a.name for a in configure(str(file), prepared, "", chosen[:2], variants=variants).arms] == chosen
    file.write_text(json.dumps(plan | {"seeds": list(range(222))}))
    assert len(configure(str(file), prepared).seeds) == 222  # 9,990 trainings
    with pytest.raises(
        UserError, match=r"plan\.json: 4 arms x 5 budgets .*: 13,320 trainings, and the most"
    ) as told:
        configure(str(file), prepared, variants=variants)
    assert "\n" not in str(told.value)
    with pytest.raises(UserError, match=r"plan\.json: .* holds a NUL or an undecodable character") as told:
        configure(str(file), prepared, "run\udcff")
    assert "\n" not in str(told.value)


# ---- the control


def test_the_repeated_image_is_the_source_to_the_last_bit(prepared):
    people = PackedPeople.open(prepared / PACKED)
    batch = people.pair_batch(np.array([0, 3]), np.array([4, 5]))
    assert torch.equal(copy_source(people)(batch), batch.source_image)


# ---- the table


def scores(rng, names, pids, shift):
    """A table of one training, its queries in an order of its own."""
    order = rng.permutation(len(names))
    values = {m: np.clip(rng.random(len(names)) + shift, 0, 1)[order] for m in
              ("rank1", "rank5", "rank10", "mAP_step", "mAP_trapezoid", "mINP")}  # fmt: skip
    return pa.table(
        {"method": ["euclidean"] * len(names), "query": np.array(names)[order], "pid": pids[order], **values}
    )


def test_means_deviations_and_differences_are_those_of_a_hand_calculation():
    rng = np.random.default_rng(0)
    names, pids = [f"{i:02d}" for i in range(12)], np.repeat(np.arange(1, 5), 3)
    tables = {
        arm: [scores(rng, names, pids, shift) for _ in range(3)] for arm, shift in (("a", 0), ("b", 0.2))
    }
    a, b = summarize_block(Block("r", 1.0, "euclidean"), tables, ("a",), draws=200)
    by_seed = [np.mean(table["mAP_step"].to_numpy()) for table in tables["b"]]
    assert b.means["mAP_step"] == pytest.approx(sum(by_seed) / 3)
    spread = np.sqrt(sum((value - np.mean(by_seed)) ** 2 for value in by_seed) / 2)
    assert b.deviations["mAP_step"] == pytest.approx(spread)
    (comparison,) = b.comparisons["mAP_step"]
    assert comparison.difference.value == pytest.approx(b.means["mAP_step"] - a.means["mAP_step"])
    assert comparison.p_holm == comparison.difference.p  # one arm besides the control
    assert a.comparisons["mAP_step"] == []
    block = {Block("r", 1.0, "euclidean"): [a, b]}
    cell = f"{100 * b.means['rank1']:.1f} ± {100 * b.deviations['rank1']:.1f}"
    assert cell in to_markdown(block, [])
    assert cell.replace("±", r"$\pm$") in to_latex(block)


def _block(arms):
    """A block of made-up differences from "real": (value, p, p over trainings too) by arm; None a control."""
    rows = []
    for arm, told in arms.items():
        difference = told and Difference(told[0], told[0] - 0.02, told[0] + 0.02, *told[1:], identities=12)
        comparison = [Comparison("real", difference, 0.9)] if told else []
        rows.append(ArmResult(arm, {}, {}, {}, {"mAP_step": comparison, "rank1": comparison}, ("real",)))
    return rows


def test_what_was_found_is_said_with_a_correction_for_everything_that_was_compared():
    blocks = {
        Block("r", 1.0, "euclidean"): _block(
            {"real": None, "x2": (0.03, 0.001, 0.012), "x4": (0.01, 0.3, 0.4)}
        ),
        Block("r", 0.2, "euclidean"): _block(
            {"real": None, "x2": (0.05, 0.02, 0.001), "x4": (-0.1, 0.5, 0.5)}
        ),
    }
    text = what_was_found(blocks)  # the larger p counts: .012, .4, .02, .5; Holm: 4 x .012, 3 x .02
    assert text.startswith("Beyond chance: x2 differs from real by +3.0 points of mAP (step) (r, 100 %")
    assert (
        "95 % +1.0 to +5.0 over 12 test people; p 0.012, after Holm's correction for 4 comparisons 0.048"
        in text
    )
    assert text.endswith("1 of 4 comparisons are beyond chance.")
    blocks[Block("s", 1.0, "euclidean")] = _block({"real": None, "x2": (0.2, 0.6, 0.6)})
    text = what_was_found(blocks)  # a fifth comparison: 5 x .012
    assert text.startswith("Nothing beyond chance. The clearest difference: x2 differs from real by +3.0")
    assert "for 5 comparisons 0.060" in text
    assert what_was_found({Block("r", 1.0, "m"): _block({"real": None})}).startswith("Nothing was compared")
    assert to_markdown({}, []).startswith("Nothing was compared")


@pytest.mark.parametrize("order", [("real", "worse", "same"), ("worse", "same", "real"), ("worse", "real")])
@pytest.mark.parametrize("controls", [("real", "worse"), ("worse", "real"), ("real",), ()])
def test_columns_follow_the_controls_and_a_star_is_about_the_first_alone(order, controls):
    """Two arms answer alike, one does worse."""
    rng, pids = np.random.default_rng(0), np.repeat(np.arange(1, 13), 3)
    names = [f"{i:02d}" for i in range(36)]
    good, bad = ([scores(rng, names, pids, shift) for _ in range(3)] for shift in (0.6, 0.0))
    tables = {name: bad if name == "worse" else good for name in order}
    results = summarize_block(Block("r", 1.0, "euclidean"), tables, controls, draws=200)
    header, rows = block_cells(results)
    assert header[4:] == [
        f"{metric} - {control} [95 %], p" for control in controls for metric in ("rank-1", "mAP (step)")
    ]
    for row in rows:
        assert [cell == "" for cell in row[4:]] == [
            row[0] == control for control in controls for _ in range(2)
        ]
    lines = to_latex({Block("r", 1.0, "euclidean"): results}).splitlines()
    starred = {line.split(" & ")[0] for line in lines if "$^*$" in line}
    others = {"real": {"worse"}, "worse": {"real", "same"}}
    assert starred == (others[controls[0]] & set(order) if controls else set())


def test_arms_that_answered_other_queries_are_refused():
    rng, pids = np.random.default_rng(0), np.array([1, 1, 2])
    tables = {"a": [scores(rng, ["x", "y", "z"], pids, 0)], "b": [scores(rng, ["x", "y", "w"], pids, 0)]}
    with pytest.raises(UserError, match="other queries"):
        summarize_block(Block("r", 1.0, "euclidean"), tables, ("a",))


PASTED = Arm(name="pasted", factor=2, generator="paste", background="donor")


@pytest.mark.parametrize(
    ("arms", "controls", "shown"),
    [
        ((*ARMS[:3], PASTED), ("real_repeated", "real"), ["real_repeated", "generated"]),
        ((PASTED, *ARMS[1:]), ("pasted",), ["pasted", "generated"]),
        ((*ARMS, PASTED), ("pasted", "real"), ["pasted", "generated"]),
        ((ARMS[0], ARMS[2], PASTED), (), ["generated"]),
        ((PASTED, ARMS[0]), ("pasted",), ["pasted"]),
        (ARMS[:2], ("real",), ["real"]),
        (ARMS[:2], (), []),
    ],
)
def test_failures_are_shown_of_the_first_control_and_one_arm_with_pictures(
    prepared, tmp_path, monkeypatch, arms, controls, shown
):
    monkeypatch.setattr(report, "_draw_sheet", lambda plan, cell, method, folder: [folder / "failed.png"])
    plan = StudyPlan(tiny(prepared, arms=arms, controls=controls), tmp_path)
    section = report._sheets_section(plan, tmp_path)
    found = section.pictures if section else []
    assert [picture.file for picture in found] == [f"pictures/ranks_{name}/failed.png" for name in shown]
    assert [picture.caption.split(",")[0] for picture in found] == shown


# ---- whole studies


def finished(out: Path) -> dict[str, float]:
    return {p.parent.name: p.stat().st_mtime_ns for p in (out / STAGES).glob(f"*/{DONE}")}


@pytest.mark.slow
def test_a_whole_study_and_what_a_second_run_does(prepared, tmp_path):
    study = tiny(prepared)
    run_study(study, tmp_path)
    rows = pq.read_table(tmp_path / PARQUET).to_pylist()
    assert {row["arm"] for row in rows} == {arm.name for arm in ARMS}
    assert {row["method"] for row in rows} == {"euclidean", "kissme"}
    compared = [row for row in rows if row["control"] is not None]
    assert compared
    assert all(0 < row["p"] <= row["p_holm"] <= 1 for row in compared)
    assert r"\begin{tabular}" in (tmp_path / LATEX).read_text()
    titles = [section["title"] for section in json.loads((tmp_path / "sections.json").read_text())]
    assert titles[0] == "What was found"
    assert "Is it still the same person?" in titles
    before, table = finished(tmp_path), (tmp_path / PARQUET).read_bytes()
    run_study(study, tmp_path)
    assert finished(tmp_path) == before  # nothing was made again
    assert (tmp_path / PARQUET).read_bytes() == table
    with pytest.raises(UserError, match="steps: 2 -> 3"):
        run_study(study.changed(steps=3), tmp_path)
    (tmp_path / "study.json").unlink()
    run_study(study.changed(arms=ARMS[:2]), tmp_path)  # its stages are those of the larger study
    assert finished(tmp_path) == before


@pytest.mark.slow
def test_a_study_that_is_killed_again_and_again_ends_with_the_same_table(prepared, tmp_path):
    study = tiny(prepared, arms=ARMS[:3], seeds=(0,))
    save_config(study, tmp_path / "study.json")
    run_study(study, tmp_path / "whole")
    killed, kills = tmp_path / "killed", 0
    for stages in (1, 5, 8):  # a kill when so many stages are there
        command = [sys.executable, "-c", STUDY, str(tmp_path / "study.json"), str(killed), "1"]
        child = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
        while child.poll() is None and len(finished(killed)) < stages:
            time.sleep(0.01)
        kills += child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.wait()
    run_study(study, killed)
    assert kills >= 2
    assert (killed / PARQUET).read_bytes() == (tmp_path / "whole" / PARQUET).read_bytes()


@pytest.mark.slow
def test_two_workers_make_the_table_of_one(prepared, tmp_path):
    study = tiny(prepared, arms=ARMS[:3], seeds=(0,))
    run_study(study, tmp_path / "one")
    run_study(study, tmp_path / "two", workers=2)
    assert (tmp_path / "two" / PARQUET).read_bytes() == (tmp_path / "one" / PARQUET).read_bytes()
