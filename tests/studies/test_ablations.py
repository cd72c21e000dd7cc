"""Ablations: rows of equal length, one part changed each; and a whole tiny table."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from zoo import SMALL_REID, command, settings

from reposer.data.preparing.prepare import prepare_market1501
from reposer.errors import UserError
from reposer.rendered.dataset import write_rendered_dataset
from reposer.studies.ablations import (
    AblationArm,
    AblationCell,
    AblationConfig,
    AblationRow,
    _trials,
    ablations,
    cells_of,
    described_training,
    generator_config,
    run_ablations,
)
from reposer.trained.networks import GENERATOR, open_network, save_generator
from reposer.workflows.gan_presets import PRESETS, find_preset


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("steps", [1, 7, 300, 2251])
def test_every_row_has_the_steps_that_were_asked_for(tmp_path, preset, steps):
    base = find_preset(preset)
    steps = max(steps, len(base.schedule.stages))  # each stage has one
    config = AblationConfig(data=tmp_path, preset=preset, steps=steps)
    recipe = generator_config(config, config.arms[0], 0)
    assert recipe.total_steps == steps
    if steps == 2251:
        kept = base.schedule.epochs_const / (base.schedule.epochs_const + base.schedule.epochs_decay)
        total = recipe.schedule.epochs_const + recipe.schedule.epochs_decay
        assert recipe.schedule.epochs_const / total == pytest.approx(kept, abs=0.01)


def test_each_row_changes_what_its_name_says_and_nothing_else(tmp_path):
    config = AblationConfig(data=tmp_path)
    full = generator_config(config, config.arms[0], 0)
    rows = {arm.name: generator_config(config, arm, 0) for arm in config.arms[1:]}
    assert rows["no perceptual loss"].weights == full.weights.changed(perceptual=0.0)
    assert rows["no mask"].generator_args == {**full.generator_args, "use_mask": False}
    assert rows["7 blocks"].generator_args == {**full.generator_args, "blocks": 7}
    for name, row in rows.items():
        same = row.changed(weights=full.weights, generator_args=full.generator_args)
        assert same == full, name


@pytest.mark.parametrize("setting", ["data.folder=elsewhere", "seed=7"])
def test_a_row_changes_neither_data_nor_seed(tmp_path, setting):
    config = AblationConfig(data=tmp_path, arms=(AblationArm(name="other", settings=(setting,)),))
    with pytest.raises(UserError, match=f"row other: its settings change {setting.partition('=')[0]} to"):
        generator_config(config, config.arms[0], 0)


def test_the_pictures_of_a_row_are_known_by_the_list_that_they_are_made_from(small_prepared, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(small_prepared, data)
    listed = (small_prepared / "pairs_val.csv").read_text().splitlines(keepends=True)
    arms = (AblationArm(name="full"), AblationArm(name="blind", settings=("data.validation_pairs=",)))
    config, keys = AblationConfig(data=data, preset="san_demo", arms=arms, steps=1), []
    for rows in (listed, listed[:-1]):
        (data / "pairs_val.csv").write_text("".join(rows))
        keys.append([trial.quality.key for trial in _trials(config, tmp_path / "study")])
    assert all(first != second for first, second in zip(*keys, strict=True))


def test_ablations_without_a_pair_to_measure_on_are_refused_before_any_training(small_prepared, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(small_prepared, data)
    (data / "pairs_val.csv").write_text("from,to\n")
    with pytest.raises(UserError, match=r"pairs_val\.csv: holds no pairs"):
        run_ablations(AblationConfig(data=data, preset="san_demo", steps=1), tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_an_unknown_row_is_refused(tmp_path):
    with pytest.raises(UserError, match="row no_mask: unknown: did you mean no mask"):
        ablations(tmp_path, ["full", "no_mask"])


def test_a_row_twice_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"--arms: .*arms: one or more, each once"):
        ablations(tmp_path, ["full", "full"])


def test_a_metric_that_was_not_measured_says_so():
    rows = [AblationRow("full", {"ssim": AblationCell(0.5, None, "higher", None), "fid": None})]
    assert cells_of(rows) == (["generator", "ssim ↑", "fid"], [["full", "0.5000", "not measured"]])


def test_a_training_is_described_by_what_its_networks_hold(small_prepared, tmp_path):
    def described(judge, start):
        recipe = find_preset("transport_demo")
        return described_training(
            recipe.changed(
                data=recipe.data.changed(folder=small_prepared),
                weights=recipe.weights.changed(identity=1.0),
                identity=recipe.identity.changed(network=judge),
                start_from=start,
            )
        )

    data = ("--data", small_prepared, "--threads", 1, *settings(SMALL_REID))
    for name, seed in (("judge", 0), ("other", 1)):
        command("reid", "train", "reid_demo", "--out", tmp_path / name, "--set", f"seed={seed}", *data)
    first = described(tmp_path / "judge", Path("shipped-transport"))
    assert len(first["identity"]["network"]) == len(first["start_from"]) == 64
    (tmp_path / "judge").rename(tmp_path / "moved")
    opened = open_network(GENERATOR, "shipped-transport")
    save_generator(tmp_path / "copied", opened.network, opened.info)
    assert described(tmp_path / "moved", tmp_path / "copied") == first
    assert described(tmp_path / "other", tmp_path / "copied")["identity"] != first["identity"]
    next(opened.network.parameters()).data.add_(1)
    save_generator(tmp_path / "on", opened.network, opened.info)
    assert described(tmp_path / "moved", tmp_path / "on")["start_from"] != first["start_from"]


def test_a_metric_is_measured_once_its_weights_are_there(small_prepared, tmp_path, monkeypatch):
    config = AblationConfig(data=small_prepared, preset="san_demo", metrics=("l1", "fid"))
    monkeypatch.setenv("REPOSER_WEIGHTS", str(tmp_path / "none"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "none"))
    before = next(iter(_trials(config, tmp_path))).quality
    assert before.inputs["weights"] == {"fid": None}
    monkeypatch.setattr("reposer.studies.ablations.known_hashes", lambda name: {name: "0" * 64})
    assert next(iter(_trials(config, tmp_path))).quality.key != before.key
    plain = next(iter(_trials(config.changed(metrics=("l1",)), tmp_path))).quality
    assert "weights" not in plain.inputs  # as in earlier studies


@pytest.mark.slow
def test_a_whole_table(tmp_path):
    write_rendered_dataset(
        tmp_path / "people", identities=4, test_identities=1, images_per_identity=4, seed=1
    )
    prepare_market1501(tmp_path / "people", tmp_path / "prepared", holdout=2)
    config = AblationConfig(
        data=tmp_path / "prepared",
        preset="san_demo",
        arms=(
            AblationArm(name="full"),
            AblationArm(name="no mask", settings=("generator_args.use_mask=false",)),
        ),
        steps=1,
        pairs=8,
        metrics=("ssim", "l1"),
    )
    run_ablations(config, tmp_path / "out")
    rows = {
        (row["row"], row["metric"]): row
        for row in pq.read_table(tmp_path / "out" / "table.parquet").to_pylist()
    }
    assert rows.keys() == {(row, metric) for row in ("full", "no mask") for metric in ("ssim", "l1")}
    without, full = rows["no mask", "l1"], rows["full", "l1"]
    assert without["difference"] == pytest.approx(without["mean"] - full["mean"], abs=1e-6)
    assert full["difference"] is None
