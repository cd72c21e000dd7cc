"""A run pins what it was made from: it goes on with that, and is used with that, or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_training import tiny_config, write_prepared

from reposer.config import config_hash, save_config, stored_hash
from reposer.data.packed import HEADER, ROWS, PackedPeople
from reposer.data.pairs import load_pairs, write_pairs_csv
from reposer.errors import UserError
from reposer.generation.pose_transfer import PoseTransfer
from reposer.storage import checkpoint
from reposer.storage.checkpoint import refuse_other_data
from reposer.storage.files import sha256_bytes, sha256_file
from reposer.storage.tables import read_table
from reposer.training.loop import train
from reposer.workflows.reid_features import check_data
from reposer.workflows.verify import verify_folder

from .test_task import tiny


def started(tmp_path: Path) -> tuple[Path, Path]:
    """A prepared folder and a Re-ID run that was stopped after its first step on it."""
    prepared, run = write_prepared(tmp_path / "prepared"), tmp_path / "run"
    train(tiny(prepared), run, device="cpu", max_minutes=0)
    return prepared, run


def hold_out_others(prepared: Path) -> str:
    """Prepare the same people anew at the same place, the *first* two held out; returns the new content."""
    packed = prepared / "packed"
    rows = read_table(packed / ROWS)
    splits = pa.array(["val" if pid <= 2 else "train" for pid in rows["pid"].to_pylist()])
    pq.write_table(rows.set_column(rows.schema.get_field_index("split"), "split", splits), packed / ROWS)
    header = json.loads((packed / HEADER).read_text())
    header["sha256"][ROWS] = sha256_file(packed / ROWS)
    header["content_hash"] = sha256_bytes("\n".join(header["sha256"].values()).encode())
    (packed / HEADER).write_text(json.dumps(header))
    return str(header["content_hash"])


def test_a_run_neither_goes_on_nor_is_used_after_others_were_held_out(tmp_path):
    prepared, run = started(tmp_path)
    before = json.loads((prepared / "packed" / "packed.json").read_text())["content_hash"]
    meta = checkpoint.entries(checkpoint.steps(run / "checkpoints")[0][1])
    assert meta["inputs"] == {"prepared": before}
    assert json.loads((run / "environment.json").read_text())["inputs"] == {"prepared": before}
    check_data(PackedPeople.open(prepared / "packed"), run)

    assert hold_out_others(prepared) != before
    with pytest.raises(UserError, match="prepared changed since the run was started: put back"):
        train(tiny(prepared), run, device="cpu")
    with pytest.raises(UserError, match=r"was prepared anew since .* was trained on it"):
        check_data(PackedPeople.open(prepared / "packed"), "shipped", None, run)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(prepared, elsewhere)
    check_data(PackedPeople.open(elsewhere / "packed"), run)  # another data set: nothing was pinned of it
    config = json.loads((run / "config.json").read_text())
    for folder in ("a\0b", "\ud800", "\udcff/x", "x" * 5000, ["x"]):  # that lead nowhere
        (run / "config.json").write_text(json.dumps(config | {"data": config["data"] | {"folder": folder}}))
        refuse_other_data(run, prepared, "another")


def test_a_run_of_before_the_pins_goes_on_and_says_so(tmp_path, caplog):
    prepared, run = started(tmp_path)
    step, path = checkpoint.steps(run / "checkpoints")[0]
    found = checkpoint.load(path)
    old = {name: value for name, value in found.meta.items() if name not in ("inputs", "images_hash")}
    checkpoint.save(run / "checkpoints", step, found.groups, old)
    environment = json.loads((run / "environment.json").read_text())
    del environment["inputs"]
    (run / "environment.json").write_text(json.dumps(environment))
    hold_out_others(prepared)
    check_data(PackedPeople.open(prepared / "packed"), run)
    assert "it is not compared" in caplog.text
    caplog.clear()
    assert train(tiny(prepared), run, device="cpu", max_minutes=0).step == 2
    assert "was started before runs pinned their data: not compared" in caplog.text


def test_pair_lists_and_the_starting_run_are_pinned(tmp_path, prepared):
    here = tmp_path / "prepared"
    shutil.copytree(prepared, here)
    first = tmp_path / "first"
    train(tiny_config(here), first, device="cpu", max_minutes=0)
    config = tiny_config(here, start_from=first)
    run = tmp_path / "run"
    train(config, run, device="cpu", max_minutes=0)
    pinned = json.loads((run / "environment.json").read_text())["inputs"]
    assert pinned.keys() == {"prepared", "pairs", "validation pairs", "start_from"}
    shutil.rmtree(first)  # its weights are in the checkpoints of the second run
    train(config, run, device="cpu", max_minutes=0)
    path, people = here / "pairs_train.csv", PackedPeople.open(here / "packed")
    names = np.array(people.names)[load_pairs(path, people.name_index())]
    write_pairs_csv(path, [tuple(pair) for pair in names[1:].tolist()])
    with pytest.raises(UserError, match="run: pairs changed since the run was started"):
        train(config, run, device="cpu")


def test_a_checkpoint_of_another_run_is_refused_by_everybody(tmp_path, prepared):
    """Its step, its file hashes and its shapes are right; only its configuration is another one."""
    one, other = tmp_path / "one", tmp_path / "other"
    train(tiny_config(prepared), one, device="cpu", max_minutes=0)
    train(tiny_config(prepared, seed=1), other, device="cpu", max_minutes=0)
    assert verify_folder(one)[1] == []
    shutil.rmtree(one / "checkpoints")
    shutil.copytree(other / "checkpoints", one / "checkpoints")
    for use in (
        lambda: train(tiny_config(prepared), one, device="cpu"),
        lambda: PoseTransfer.from_pretrained(one),
        lambda: train(tiny_config(prepared, start_from=one), tmp_path / "third", device="cpu"),
    ):
        with pytest.raises(UserError, match="is of another run or configuration"):
            use()
    assert any("is of another run or configuration" in fault for fault in verify_folder(one)[1])


def test_the_stored_hash_is_that_of_the_configuration(tmp_path, prepared):
    config = tiny_config(prepared)
    save_config(config, tmp_path / "config.json")
    assert stored_hash(tmp_path / "config.json") == config_hash(config)
    (tmp_path / "config.json").write_text('{"lr": NaN}')
    with pytest.raises(UserError, match=r"config\.json"):
        stored_hash(tmp_path / "config.json")


@pytest.mark.parametrize("kind", ["generator", "embedding"])
@pytest.mark.parametrize("name", ["images.npy", "parsing.npy", "mask.npy"])
def test_arrays_changed_by_hand_are_not_trained_on(kind: str, name: str, tmp_path: Path) -> None:
    """One bit of an array, under the recorded hashes, which a run pins."""
    folder = write_prepared(tmp_path / "prepared")
    array = folder / "packed" / name
    content = bytearray(array.read_bytes())
    content[-1] ^= 1
    array.write_bytes(content)
    run = tmp_path / "run"
    start = {
        "generator": lambda: train(tiny_config(folder), run),
        "embedding": lambda: train(tiny(folder), run),
    }
    with pytest.raises(UserError, match=f"{name}.*sha256"):
        start[kind]()
    assert not (run / "checkpoints").exists()
