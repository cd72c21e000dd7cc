"""Augmented sets by several sources, in the donor's colors, by controls: rows, faults, removal, export."""

from __future__ import annotations

import shutil
from pathlib import Path

import augment_runner as runner
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from reposer.data.packed import PackedPeople
from reposer.data.samplers import budget_rows
from reposer.errors import UserError
from reposer.generation.augmentation import AugmentOptions
from reposer.generation.camera_colors import CameraColors
from reposer.generation.forgetting import forget
from reposer.generation.lineage import set_faults
from reposer.generation.pose_transfer import PoseTransfer
from reposer.generation.set_exports import export_set
from reposer.runtime import setup

SEVERAL = AugmentOptions(
    factor=2, background="donor", sources=3, camera="donor", batch_size=4, shard_items=8, file_format="png"
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Twelve training people in three cameras."""
    return runner.prepare_drawn(tmp_path_factory.mktemp("data"), people=12)


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory):
    out = tmp_path_factory.mktemp("sets") / "whole"
    runner.augmented(
        PoseTransfer.from_pretrained("transport", setup("cpu", threads=1)), prepared, out, SEVERAL
    )
    return out


def rows_of(folder: Path) -> list[dict]:
    return pq.read_table(folder / "manifest").to_pylist()


def test_rows_name_further_sources_and_the_donors_camera(prepared, whole):
    people = PackedPeople.open(prepared / "packed")
    rows = rows_of(whole)
    assert set_faults(whole) == []
    assert any(len(row["more_sources"]) == 2 for row in rows)
    for row in rows:
        assert row["camid"] == row["donor_camid"]
        assert row["pid"] == row["source_pid"]
        for name in row["more_sources"]:
            at = people.index(name)
            assert (people.pids[at], people.splits[at]) == (row["pid"], "train")
            assert name not in (row["source"], row["donor"])


def test_pictures_are_those_of_the_model_in_the_donors_colors(prepared, whole):
    """The first pictures by hand: carried, recolored by the training people's lines, stitched."""
    people = PackedPeople.open(prepared / "packed")
    colors = CameraColors.fit(people, np.flatnonzero(people.splits == "train"))
    model = PoseTransfer.from_pretrained("transport", setup("cpu", threads=1)).at_size(runner.SIZE)
    for row in rows_of(whole)[:4]:
        source, donor = (np.array([people.index(row[side])]) for side in ("source", "donor"))
        more = np.array([[people.index(name) for name in row["more_sources"]]])
        batch = people.pair_batch(source, donor, more if more.size else None)
        lines = colors.between([row["source_camid"]], [row["donor_camid"]])
        wanted = model.paint(batch, "donor", lines)[0].permute(1, 2, 0).numpy()
        with Image.open(whole / "images" / row["file"]) as picture:
            np.testing.assert_array_equal(np.asarray(picture), wanted)


def test_several_processes_write_the_same_set(prepared, whole, tmp_path):
    model = PoseTransfer.from_pretrained("transport", setup("cpu", threads=1))
    runner.augmented(model, prepared, tmp_path / "set", SEVERAL, processes=2)
    for name in ("manifest", "images"):
        ours, theirs = (
            {path.name: path.read_bytes() for path in (folder / name).iterdir()}
            for folder in (whole, tmp_path / "set")
        )
        assert ours == theirs


def test_a_budget_hides_further_sources(prepared, tmp_path):
    people = PackedPeople.open(prepared / "packed")
    options = AugmentOptions(factor=2, sources=4, budget=0.7, batch_size=8)
    runner.augmented(PoseTransfer.from_pretrained("transport"), prepared, tmp_path / "set", options)
    allowed = {people.names[row] for row in budget_rows(people, 0.7, 0, ("train",)).tolist()}
    named = {name for row in rows_of(tmp_path / "set") for name in row["more_sources"]}
    assert named
    assert named <= allowed


def test_a_row_that_lies_about_its_camera_is_a_fault(whole, tmp_path):
    copied = Path(shutil.copytree(whole, tmp_path / "copy"))
    settings = (copied / "job.json").read_text()
    (copied / "job.json").write_text(settings.replace('"camera": "donor"', '"camera": "source"'))
    assert any("camid is not that of its source" in fault for fault in set_faults(copied))


def test_removal_keeps_the_columns(whole, tmp_path):
    copied = Path(shutil.copytree(whole, tmp_path / "copy"))
    pid = rows_of(copied)[0]["pid"]
    forget(copied, pid)
    left = rows_of(copied)
    assert left
    assert all(row["pid"] != pid and row["donor_pid"] != pid and "more_sources" in row for row in left)
    assert set_faults(copied) == []


def test_an_export_names_pictures_by_the_camera_whose_colors_they_have(prepared, tmp_path):
    options = AugmentOptions(factor=2, background="donor", camera="donor", batch_size=8)
    runner.augmented(PoseTransfer.from_pretrained("paste"), prepared, tmp_path / "set", options)
    export_set(tmp_path / "set", tmp_path / "market", "market", copy=True)
    names = {path.name for path in (tmp_path / "market" / "bounding_box_train").iterdir()}
    for row in rows_of(tmp_path / "set"):
        stem = (
            row["source"]
            .replace(f"_c{row['source_camid']}s", f"_c{row['donor_camid']}s")
            .removesuffix(".jpg")
        )
        assert f"{stem}_g01.jpg" in names


def test_a_set_by_one_source_has_no_further_column(prepared, tmp_path):
    runner.augmented(
        PoseTransfer.from_pretrained("paste"), prepared, tmp_path / "set", AugmentOptions(factor=2)
    )
    rows = rows_of(tmp_path / "set")
    assert "more_sources" not in rows[0]
    assert all(row["camid"] == row["source_camid"] for row in rows)
    assert set_faults(tmp_path / "set") == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (AugmentOptions(camera="donor"), "add --background donor"),
        (AugmentOptions(camera="other"), "known: source, donor"),
        (AugmentOptions(sources=0), "sources 0"),
        (AugmentOptions(sources=99), "at most 16"),
    ],
)
def test_impossible_options_are_refused(prepared, tmp_path, options, said):
    with pytest.raises(UserError, match=said):
        runner.augmented(PoseTransfer.from_pretrained("transport"), prepared, tmp_path / "set", options)
    assert not (tmp_path / "set").exists()
