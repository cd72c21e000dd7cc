"""Whole trainings of a tiny network: it learns, resumes bit for bit, and refuses what it must."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image
from tiny_training import ONE_THREAD, TRAIN, final_hashes, tiny_config

from reposer.config import save_config
from reposer.data.packed import PackedPeople
from reposer.errors import UserError
from reposer.storage import checkpoint
from reposer.storage.checkpoint import DamagedCheckpointError
from reposer.storage.files import sha256_bytes
from reposer.storage.runs import read_metrics
from reposer.training import run_writer, state
from reposer.training.gan import task as gan
from reposer.training.gan.config import (
    AdversarialConfig,
    GanConfig,
    GanOutputConfig,
    LossWeights,
    ScheduleConfig,
)
from reposer.training.gan.data import GanData
from reposer.training.loop import train
from reposer.training.state import NonFiniteStepError


def _figures(run: Path) -> list[dict]:
    """The log without what depends on the clock."""
    return [{k: v for k, v in line.items() if k != "pairs_per_second"} for line in read_metrics(run)]


def _stop_after(monkeypatch, steps: int) -> None:
    """Raise in the middle of a step, as a crash would, after so many generator losses."""
    real, calls = gan.generator_loss, []

    def failing(*args):
        calls.append(1)
        if len(calls) > steps:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(gan, "generator_loss", failing)


@pytest.fixture(scope="module")
def uninterrupted(prepared, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "whole"
    summary = train(tiny_config(prepared), run, device="cpu")
    assert summary.finished
    assert (summary.step, summary.total_steps) == (16, 16)
    return run


def test_a_run_writes_what_it_promises(uninterrupted):
    lines = read_metrics(uninterrupted)
    assert [line["step"] for line in lines if "lr" in line] == [3, 6, 9, 12, 15, 16]
    assert [line["step"] for line in lines if "validation/l1" in line] == [8, 16]
    assert [step for step, _ in checkpoint.steps(uninterrupted / "checkpoints")] == [16, 15]
    grids = sorted((uninterrupted / "samples").iterdir())
    assert [grid.name for grid in grids] == ["step_00000008.png", "step_00000016.png"]
    with Image.open(grids[0]) as grid:
        assert grid.mode == "RGB"
    assert list((uninterrupted / "tensorboard").glob("events.*"))
    assert "none" in json.loads((uninterrupted / "environment.json").read_text())["perceptual"]


@pytest.mark.slow
def test_without_tensorboard_training_logs_all_the_same_and_says_so_once(
    prepared, uninterrupted, tmp_path, monkeypatch, caplog
):
    run_writer._say_that_it_is_missing.cache_clear()
    monkeypatch.setattr(run_writer, "find_spec", lambda name: None)
    for name, minutes in (("one", None), ("two", 0)):
        summary = train(tiny_config(prepared), tmp_path / name, device="cpu", max_minutes=minutes)
        assert "tensorboard/" not in summary.wrote
        assert not (tmp_path / name / "tensorboard").exists()
    assert _figures(tmp_path / "one") == _figures(uninterrupted)
    assert caplog.text.count("pip install reposer[tensorboard]") == 1


def test_a_checkpoint_holds_everything(uninterrupted):
    found = checkpoint.latest(uninterrupted / "checkpoints")
    names = {
        "generator",
        "discriminator",
        "ema",
        "generator_optimizer",
        "discriminator_optimizer",
        "processes",
    }
    assert set(found.groups) == names
    assert {"rng.torch", "rng.source.pool", "pool.generated"} <= set(found.groups["processes"])
    assert found.groups["processes"]["pool.generated"].shape == (1, 8, 3, 32, 16)
    assert found.meta["threads"] == 1


def test_resuming_twice_inside_an_epoch_gives_the_same_bits(prepared, uninterrupted, tmp_path, monkeypatch):
    run = tmp_path / "run"
    for steps in (7, 4):  # dies at step 7, resumes from 5, dies at 9, resumes from 5 again
        with monkeypatch.context() as patch:
            _stop_after(patch, steps)
            with pytest.raises(KeyboardInterrupt):
                train(tiny_config(prepared), run, device="cpu")
    assert [step for step, _ in checkpoint.steps(run / "checkpoints")] == [5]
    train(tiny_config(prepared), run, device="cpu")
    assert final_hashes(run) == final_hashes(uninterrupted)
    assert _figures(run) == _figures(uninterrupted)


@pytest.mark.slow
def test_ten_stops_inside_one_epoch_give_the_same_bits(prepared, tmp_path, monkeypatch):
    base = tiny_config(prepared)
    config = tiny_config(
        prepared,
        data=base.data.changed(pairs_per_epoch=4 * 12),  # 12 steps an epoch
        schedule=ScheduleConfig(epochs_const=1, epochs_decay=0),
        output=GanOutputConfig(log_every=1, sample_every=100, validate_every=100, checkpoint_every=1),
    )
    assert train(config, tmp_path / "whole", device="cpu").step == 12
    run = tmp_path / "run"
    for stop in range(1, 11):
        with monkeypatch.context() as patch:
            _stop_after(patch, 1)  # one step further, then in the middle of the next
            with pytest.raises(KeyboardInterrupt):
                train(config, run, device="cpu")
        assert checkpoint.latest(run / "checkpoints").step == stop
    assert train(config, run, device="cpu").finished
    assert final_hashes(run) == final_hashes(tmp_path / "whole")


def test_a_budget_of_minutes_stops_after_a_saved_step_and_changes_nothing(prepared, uninterrupted, tmp_path):
    run = tmp_path / "run"
    summaries = [train(tiny_config(prepared), run, device="cpu", max_minutes=0) for _ in range(3)]
    assert [s.step for s in summaries] == [1, 2, 3]
    assert not summaries[-1].finished
    assert "same command" in str(summaries[-1])
    train(tiny_config(prepared), run, device="cpu")
    assert final_hashes(run) == final_hashes(uninterrupted)
    assert _figures(run) == _figures(uninterrupted)


def test_a_finished_run_stays_as_it_is(prepared, uninterrupted):
    before = final_hashes(uninterrupted)
    assert train(tiny_config(prepared), uninterrupted, device="cpu").finished
    assert final_hashes(uninterrupted) == before


def test_another_configuration_is_refused_by_name(prepared, uninterrupted):
    with pytest.raises(UserError, match="ema_decay"):
        train(tiny_config(prepared, ema_decay=0.5), uninterrupted, device="cpu")


def test_a_damaged_checkpoint_is_skipped_and_the_run_ends_with_the_same_bits(
    prepared, uninterrupted, tmp_path, caplog
):
    run = tmp_path / "run"
    train(tiny_config(prepared), run, device="cpu")
    newest = checkpoint.steps(run / "checkpoints")[0][1] / "ema.safetensors"
    data = bytearray(newest.read_bytes())
    data[-5] ^= 1
    newest.write_bytes(data)
    train(tiny_config(prepared), run, device="cpu")
    assert "damaged checkpoint skipped" in caplog.text
    assert final_hashes(run) == final_hashes(uninterrupted)


def test_it_learns_one_batch_by_heart(prepared, tmp_path):
    config = tiny_config(
        prepared,
        data=tiny_config(prepared).data.changed(max_pairs=4, pairs_per_epoch=4 * 100),
        generator_args={**tiny_config(prepared).generator_args, "ngf": 8, "dropout": 0.0},
        optimizer=tiny_config(prepared).optimizer.changed(lr=5e-3),
        weights=LossWeights(adversarial=0.1, l1=10.0, perceptual=0.0),
        schedule=ScheduleConfig(epochs_const=1, epochs_decay=0),
        output=GanOutputConfig(log_every=1, sample_every=1000, validate_every=1000, checkpoint_every=1000),
    )
    train(config, tmp_path, device="cpu")
    l1 = [line["generator/l1"] for line in read_metrics(tmp_path) if "generator/l1" in line]
    assert l1[-1] < 0.25 * l1[0]  # model float: from about 0.4


def test_parts_and_processes_share_one_batch(prepared):
    whole = list(GanData(tiny_config(prepared)).parts(3))
    parts = list(GanData(tiny_config(prepared, accumulate=4)).parts(3))
    assert (len(whole), len(parts)) == (1, 4)
    assert whole[0].names == tuple(name for part in parts for name in part.names)
    joined = torch.cat([part.batch.source_image for part in parts])
    assert torch.equal(joined, whole[0].batch.source_image)
    ranks = [next(GanData(tiny_config(prepared), rank, 2).parts(3)) for rank in range(2)]
    assert whole[0].names == ranks[0].names + ranks[1].names


@pytest.mark.slow
def test_accumulation_without_a_discriminator_equals_the_whole_batch(prepared, tmp_path):
    """Instance norm and no adversarial term: then the parts are independent."""
    base = tiny_config(prepared)
    changes = {
        "generator_args": {**base.generator_args, "norm": "instance", "dropout": 0.0},
        "weights": LossWeights(adversarial=0.0, l1=10.0, perceptual=0.0),
        "gan": AdversarialConfig(pool=0),
        "precision": "float32",  # on every processor: half floats differ by more
    }
    for name, accumulate in (("whole", 1), ("parts", 2)):
        train(tiny_config(prepared, accumulate=accumulate, **changes), tmp_path / name, device="cpu")
    whole, parts = (
        checkpoint.latest(tmp_path / name / "checkpoints").groups["generator"] for name in ("whole", "parts")
    )
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("where", ["discriminator_loss", "generator_loss"])
def test_a_loss_that_is_not_finite_stops_before_the_update(prepared, tmp_path, monkeypatch, where):
    real, calls = getattr(gan, where), []

    def poisoned(*args):
        loss, parts = real(*args)
        calls.append(1)
        if len(calls) == 8:
            parts = {**parts, "generator/l1": loss.detach() * float("nan")}
            loss = loss * float("nan")
        return loss, parts

    monkeypatch.setattr(gan, where, poisoned)
    with pytest.raises(NonFiniteStepError) as caught:
        train(tiny_config(prepared), tmp_path, device="cpu")
    assert caught.value.step == 7
    assert len(caught.value.pairs) == 4
    assert all(".png -> " in pair for pair in caught.value.pairs)
    newest = checkpoint.latest(tmp_path / "checkpoints")  # refuses tensors that are not finite
    assert newest.step == 5


def test_a_gradient_that_is_not_finite_stops_before_the_update(prepared, tmp_path, monkeypatch):
    real = state.gradient_norm
    calls = []

    def poisoned(network):
        calls.append(1)
        if len(calls) == 4:
            next(network.parameters()).grad[0, 0, 0, 0] = float("inf")
        return real(network)

    monkeypatch.setattr(state, "gradient_norm", poisoned)
    with pytest.raises(NonFiniteStepError, match="generator/gradient"):
        train(tiny_config(prepared), tmp_path, device="cpu")


def test_sigterm_saves_and_exits_with_143(prepared, uninterrupted, tmp_path, monkeypatch, caplog):
    """The process signals itself inside a step, twice, so that no clock is involved."""
    real, calls = gan.generator_loss, []

    def signalling(*args):
        calls.append(1)
        if len(calls) == 7:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    monkeypatch.setattr(gan, "generator_loss", signalling)
    with pytest.raises(SystemExit) as caught:
        train(tiny_config(prepared), tmp_path, device="cpu")
    assert caught.value.code == 143
    assert "saved step 7" in caplog.text
    assert checkpoint.latest(tmp_path / "checkpoints").step == 7
    train(tiny_config(prepared), tmp_path, device="cpu")
    assert final_hashes(tmp_path) == final_hashes(uninterrupted)


@pytest.mark.slow
def test_a_hangup_within_a_save_ends_cleanly_and_loses_nothing(
    prepared, uninterrupted, tmp_path, monkeypatch
):
    """A terminal that goes away while a checkpoint is written: at three calls of three saves."""
    config, real, calls = (
        tiny_config(prepared),
        {name: getattr(os, name) for name in ("fsync", "replace")},
        [],
    )

    def hanging_up(name):
        def wrapper(*args, **kwargs):
            calls.append(name)
            if len(calls) == at[-1]:
                os.kill(os.getpid(), signal.SIGHUP)
            return real[name](*args, **kwargs)

        return wrapper

    save, saves, at = checkpoint.save, [], []

    def saving(*args, **kwargs):
        calls.clear()
        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(os, name, hanging_up(name))
            made = save(*args, **kwargs)
        saves.append(len(calls))
        return made

    monkeypatch.setattr(checkpoint, "save", saving)
    earlier = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup's would be kept
    try:
        for call, step in ((1, 6), (3, 11), (5, 16)):  # in the save of step 5, 10, 15: the next is the last
            at.append(call)
            with pytest.raises(SystemExit) as caught:
                train(config, tmp_path, device="cpu")
            assert caught.value.code == 143
            newest = checkpoint.latest(tmp_path / "checkpoints")  # reads every byte of it
            assert newest.step == step
    finally:
        signal.signal(signal.SIGHUP, earlier)
    assert min(saves) > 5
    assert final_hashes(tmp_path) == final_hashes(uninterrupted)


@pytest.mark.slow
def test_a_process_that_is_told_to_end_exits_with_143(prepared, tmp_path):
    """As a process of its own: what its parent sees, and what it says."""
    save_config(tiny_config(prepared), tmp_path / "config.json")
    told = (
        "import os, sys; from reposer.training.gan import task as gan; real, calls = gan.generator_loss, []\n"
        "def signalling(*args):\n"
        "    calls.append(1)\n"
        f"    if len(calls) == 7: [os.kill(os.getpid(), {int(signal.SIGTERM)}) for _ in range(2)]\n"
        "    return real(*args)\n"
        "gan.generator_loss = signalling\n"
    )
    command = [sys.executable, "-c", told + TRAIN, str(tmp_path / "config.json"), str(tmp_path / "run")]
    done = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, timeout=600)
    assert done.returncode == 143, done.stderr
    assert "saved step 7" in done.stderr
    assert checkpoint.latest(tmp_path / "run" / "checkpoints").step == 7


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGUSR1, 143), (signal.SIGINT, 130)])
def test_other_signals_save_too(prepared, tmp_path, monkeypatch, signum, code):
    real = gan.generator_loss

    def signalling(*args):
        os.kill(os.getpid(), signum)
        return real(*args)

    monkeypatch.setattr(gan, "generator_loss", signalling)
    with pytest.raises(SystemExit) as caught:
        train(tiny_config(prepared), tmp_path, device="cpu")
    assert caught.value.code == code
    assert checkpoint.latest(tmp_path / "checkpoints").step == 1


def test_training_pairs_must_be_of_training_people(prepared, tmp_path):
    base = tiny_config(prepared)
    with pytest.raises(UserError, match=r"pairs_val\.csv, pair 1: 0007_.* is of the split val"):
        GanData(base.changed(data=base.data.changed(pairs="pairs_val.csv")))


def test_training_pairs_must_show_one_person(prepared):
    base = tiny_config(prepared)
    rows = (prepared / "pairs_train.csv").read_text().splitlines()
    people = PackedPeople.open(prepared / "packed")
    first, other = (
        rows[1].split(",")[0],
        next(
            name
            for name, pid, split in zip(people.names, people.pids, people.splits, strict=True)
            if split == "train" and pid != people.pids[people.index(rows[1].split(",")[0])]
        ),
    )
    (prepared / "mixed.csv").write_text("\n".join([rows[0], rows[1], f"{first},{other}"]) + "\n")
    try:
        with pytest.raises(UserError, match=r"mixed\.csv, pair 2: .* show two people"):
            GanData(base.changed(data=base.data.changed(pairs="mixed.csv")))
    finally:
        (prepared / "mixed.csv").unlink()


def test_a_batch_that_cannot_be_shared_is_refused(prepared):
    with pytest.raises(UserError, match="multiple of 3"):
        GanData(tiny_config(prepared), rank=0, world_size=3)


def test_the_configuration_refuses_what_cannot_be():
    for wrong in ({"batch_size": 4, "accumulate": 3}, {"schedule": {"epochs_const": 0, "epochs_decay": 0}}):
        with pytest.raises(ValueError, match=r"accumulate|schedule"):
            GanConfig(data={"folder": "x"}, **wrong)


# ---- a checkpoint whose hashes are right and whose values are somebody else's


@pytest.fixture(scope="module")
def started(prepared, tmp_path_factory) -> Path:
    """A run of one step."""
    run = tmp_path_factory.mktemp("runs") / "started"
    assert train(tiny_config(prepared), run, device="cpu", max_minutes=0).step == 1
    return run


def _with_meta(run: Path, change) -> None:
    """The newest checkpoint with other entries, sealed anew."""
    _, path = checkpoint.steps(run / "checkpoints")[0]
    document = json.loads((path / "meta.json").read_text())
    change(document["meta"])
    data = json.dumps(document).encode()
    (path / "meta.json").write_bytes(data)
    (path / "meta.sha256").write_text(f"{sha256_bytes(data)}  meta.json\n")


def _with_tensors(run: Path, group: str, change) -> None:
    _, path = checkpoint.steps(run / "checkpoints")[0]
    tensors = safetensors.torch.load_file(path / f"{group}.safetensors")
    change(tensors)
    data = safetensors.torch.save(tensors)
    (path / f"{group}.safetensors").write_bytes(data)
    document = json.loads((path / "meta.json").read_text())
    document["files"][f"{group}.safetensors"] = {"sha256": sha256_bytes(data), "size": len(data)}
    new = json.dumps(document).encode()
    (path / "meta.json").write_bytes(new)
    (path / "meta.sha256").write_text(f"{sha256_bytes(new)}  meta.json\n")


def _set(*place):
    """Puts the last of ``place`` where the others lead."""

    def change(meta):
        *path, key, value = place
        for part in path:
            meta = meta[part]
        meta[key] = value

    return change


_O, _P = "generator_optimizer", "param_groups"
ENTRIES = {
    "rng": [_set("rng", value) for value in ({}, None, [], "x", 3)],
    r"rng\.numpy": [
        *(_set("rng", "numpy", value) for value in (None, [], ["MT19937", 1, 0], ["x", 0, 0, 0.0])),
        *(_set("rng", "numpy", 1, value) for value in (-1, 625, 10**30, "x", None, 1.5, [1])),
        *(_set("rng", "numpy", 2, value) for value in (2, "x", None)),
        *(_set("rng", "numpy", 3, value) for value in ("x", None, 10**400)),
    ],
    r"rng\.python": [
        *(_set("rng", "python", value) for value in ([3, [1], None], {}, None, [3], [2, [], None])),
        *(_set("rng", "python", 1, 5, value) for value in (-1, "x", None, 2**70, 1.5, [1])),
        *(_set("rng", "python", 1, 624, value) for value in (625, -1)),
        *(_set("rng", "python", 2, value) for value in ("x", [1], True)),
    ],
    rf"{_O}\.state": [
        *(_set(_O, value) for value in ({"a": 1}, {}, None, [], "x")),
        *(_set(_O, "state", value) for value in (None, [], "x")),
        *(_set(_O, "state", key, {}) for key in ("x", "-1", "10000", "\u0661")),
        *(_set(_O, "state", "0", value) for value in (None, [], {"step": "x"}, {"step": [1]})),
    ],
    rf"{_O}\.param_groups": [_set(_O, _P, value) for value in (None, {}, "x", [1], [None])],
    rf"{_O}\.param_groups\[0\]\.lr": [
        _set(_O, _P, 0, "lr", value) for value in ("x", None, True, [1], {}, 10**400)
    ],
    rf"{_O}\.param_groups\[0\]\.betas": [
        _set(_O, _P, 0, "betas", value) for value in (0.5, [0.5], ["x", 1], None, [0.5, 0.9, 0.9])
    ],
    rf"{_O}\.param_groups\[0\]\.fused": [_set(_O, _P, 0, "fused", value) for value in (1, "x", [])],
    rf"{_O}\.param_groups\[0\]\.params": [
        *(_set(_O, _P, 0, "params", value) for value in (None, "x", [["x"]], {})),
        _set(_O, _P, 0, "params", 0, 1),
        lambda meta: meta[_O][_P][0].pop("params"),
    ],
    "world_size": [_set("world_size", value) for value in ("x", None, 0, 1.0, True)],
    "ema_updates": [
        *(_set("ema_updates", value) for value in ("x", None, -1, [1])),
        lambda meta: meta.pop("ema_updates"),
    ],
    "torch": [_set("torch", 3), lambda meta: meta.pop("torch")],
    "threads": [_set("threads", value) for value in ("x", None, [])],
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_values_of_another_kind_are_a_damaged_checkpoint(prepared, started, tmp_path, entry):
    for number, change in enumerate(ENTRIES[entry]):
        run = shutil.copytree(started, tmp_path / str(number))
        _with_meta(run, change)
        with pytest.raises(DamagedCheckpointError, match=rf"/meta\.json: '?{entry}.*: delete this") as caught:
            train(tiny_config(prepared), run, device="cpu", max_minutes=0)
        assert "\n" not in str(caught.value)


def _without(name):
    return lambda tensors: tensors.pop(name)


def _as(name, value):
    return lambda tensors: tensors.update({name: value})


TENSORS = {
    "generator_optimizer": [
        _as("10000.exp_avg", torch.zeros(1)),
        _as("x", torch.zeros(1)),
        _as("groupx.lr", torch.zeros(1)),
    ],
    "processes": [
        *(_without(name) for name in ("rng.torch", "rng.numpy", "rng.source.pool")),
        *(_as("rng.torch", value) for value in (torch.zeros(1, 3, dtype=torch.uint8), torch.zeros(1, 5056))),
        *(_as("rng.numpy", value) for value in (torch.zeros(1, 3, dtype=torch.int64), torch.zeros(()))),
        _as("rng.source.pool", torch.zeros(1, 5056, dtype=torch.int64)),
        _as("means.a", torch.zeros(1, 3)),
    ],
}


@pytest.mark.parametrize("group", TENSORS)
def test_tensors_that_are_others_are_a_damaged_checkpoint(prepared, started, tmp_path, group):
    for number, change in enumerate(TENSORS[group]):
        run = shutil.copytree(started, tmp_path / str(number))
        _with_tensors(run, group, change)
        with pytest.raises(
            DamagedCheckpointError, match=rf"/{group}\.safetensors: .*: delete this"
        ) as caught:
            train(tiny_config(prepared), run, device="cpu", max_minutes=0)
        assert "\n" not in str(caught.value)


def test_an_average_of_one_number_is_no_state_of_a_weight(prepared, started, tmp_path):
    run = shutil.copytree(started, tmp_path / "run")
    _with_tensors(run, "generator_optimizer", _as("0.exp_avg", torch.zeros(())))
    with pytest.raises(UserError, match=r"optimizer state 0\.exp_avg has another shape"):
        train(tiny_config(prepared), run, device="cpu", max_minutes=0)


def test_an_older_checkpoint_may_lack_or_hold_settings_of_the_optimizer(prepared, started, tmp_path):
    def older(meta):
        group = meta[_O][_P][0]
        del group["decoupled_weight_decay"], meta["threads"]
        meta["threads"], group["initial_lr"] = 1, 0.1

    run = shutil.copytree(started, tmp_path / "run")
    _with_meta(run, older)
    assert train(tiny_config(prepared), run, device="cpu", max_minutes=0).step == 2
