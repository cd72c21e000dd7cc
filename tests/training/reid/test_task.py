"""Whole Re-ID trainings of a tiny network: they learn, resume bit for bit, and refuse what they must."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_training import ONE_THREAD, final_hashes

from reposer.config import save_config
from reposer.errors import UserError
from reposer.storage import checkpoint
from reposer.storage.runs import read_metrics
from reposer.trained.networks import EMBEDDING, of_run
from reposer.training.loop import train
from reposer.training.reid import task as reid
from reposer.training.reid.config import (
    AugmentConfig,
    EmbeddingConfig,
    HeadConfig,
    ReidConfig,
    ReidDataConfig,
    ReidLossConfig,
    ReidOptimizerConfig,
    ReidOutputConfig,
    ReidScheduleConfig,
)
from reposer.training.reid.data import ReidData
from reposer.training.reid.task import nearest_is_same, reid_loss
from reposer.training.state import NonFiniteStepError

TRAIN = (  # for a process of its own: arguments are the configuration file and the run folder
    "import sys; from reposer.config import load_config; from reposer.training.loop import train; "
    "from reposer.training.reid.config import ReidConfig; "
    "train(load_config(ReidConfig, sys.argv[1]), sys.argv[2], device='cpu')"
)
RECIPES = {
    "people": {
        "data": {"sampler": "people", "images_per_person": 2},
        "loss": {"triplet": 1.0, "smoothing": 0.1, "center": 0.01},
    },
    "pairs": {
        "data": {"sampler": "pairs"},
        "loss": {"verification": 1.0},
        "head": {"dropout": 0.5},  # the generators of random numbers matter too
        "optimizer": {"kind": "sgd", "lr": 0.01},
        "embedding": {"neck": "none"},
    },
}


def tiny(folder: Path, recipe: str = "people", **changes) -> ReidConfig:
    """16 steps of 8 images, a checkpoint every 5 steps; six people to learn, two held out."""
    parts = {
        "data": {"folder": folder, "images_per_epoch": 32},
        "augment": {"resize": (32, 16), "crop": (32, 16), "pad": 2, "erase": 0.5},
        "embedding": {"backbone": "small", "backbone_args": {"widths": [4, 6, 8]}, "size": (32, 16)},
        "head": {},
        "optimizer": {"kind": "adam", "lr": 2e-3},
        "schedule": {"epochs": 4, "warmup_epochs": 1, "decay": "cosine"},
        "loss": {"identity": 1.0},
        "output": {"log_every": 3, "validate_every": 8, "checkpoint_every": 5},
    }
    kinds = {
        "data": ReidDataConfig,
        "augment": AugmentConfig,
        "embedding": EmbeddingConfig,
        "head": HeadConfig,
        "optimizer": ReidOptimizerConfig,
        "schedule": ReidScheduleConfig,
        "loss": ReidLossConfig,
        "output": ReidOutputConfig,
    }
    values = {
        name: kind(**parts[name] | RECIPES.get(recipe, {}).get(name, {}) | changes.pop(name, {}))
        for name, kind in kinds.items()
    }
    return ReidConfig(**{"batch_size": 8, "threads": 1, **values, **changes})


def _figures(run: Path) -> list[dict]:
    """The log without what depends on the clock."""
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in read_metrics(run)]


def _stop_after(monkeypatch, steps: int) -> None:
    """Raise in the middle of a step, as a crash would, after so many losses."""
    calls: list[int] = []

    def failing(*args):
        calls.append(1)
        if len(calls) > steps:
            raise KeyboardInterrupt
        return reid_loss(*args)

    monkeypatch.setattr(reid, "reid_loss", failing)


@pytest.fixture(scope="module", params=RECIPES)
def whole(request, prepared, tmp_path_factory) -> tuple[str, Path]:
    run = tmp_path_factory.mktemp("runs") / request.param
    summary = train(tiny(prepared, request.param), run, device="cpu")
    assert summary.finished
    assert summary.step == summary.total_steps == 16
    return request.param, run


def test_a_run_writes_what_it_promises(whole):
    recipe, run = whole
    lines = read_metrics(run)
    assert [line["step"] for line in lines if "lr" in line] == [3, 6, 9, 12, 15, 16]
    assert [line["step"] for line in lines if "validation/nearest_is_same" in line] == [8, 16]
    assert [step for step, _ in checkpoint.steps(run / "checkpoints")] == [16, 15]
    named = {"people": "reid/triplet", "pairs": "reid/pair_accuracy"}[recipe]
    assert named in lines[0]
    found = checkpoint.latest(run / "checkpoints")
    assert set(found.groups) == {"network", "optimizer", "processes"}
    assert found.meta["pids"] == [1, 2, 3, 4, 5, 6]
    assert json.loads((run / "environment.json").read_text())["initial"] == "random weights"


def test_held_out_people_need_not_be_looked_at(prepared, tmp_path):
    config = tiny(prepared, schedule={"epochs": 1}, output={"validate_every": 1})
    train(config, tmp_path / "looks", device="cpu")
    train(config.changed(output=config.output.changed(held_out=False)), tmp_path / "does_not", device="cpu")
    told = [
        {name for line in read_metrics(tmp_path / run) for name in line if name.startswith("validation/")}
        for run in ("looks", "does_not")
    ]
    assert told == [{"validation/nearest_is_same"}, set()]
    assert final_hashes(tmp_path / "does_not") == final_hashes(tmp_path / "looks")


def test_resuming_twice_inside_an_epoch_gives_the_same_bits(whole, prepared, tmp_path, monkeypatch):
    recipe, run = whole
    for steps in (7, 4):  # dies at step 7, resumes from 5, dies at 9, resumes from 5 again
        with monkeypatch.context() as patch:
            _stop_after(patch, steps)
            with pytest.raises(KeyboardInterrupt):
                train(tiny(prepared, recipe), tmp_path / "run", device="cpu")
    assert [step for step, _ in checkpoint.steps(tmp_path / "run" / "checkpoints")] == [5]
    train(tiny(prepared, recipe), tmp_path / "run", device="cpu")
    assert final_hashes(tmp_path / "run") == final_hashes(run)
    assert _figures(tmp_path / "run") == _figures(run)


def test_a_budget_of_minutes_stops_after_a_saved_step(prepared, tmp_path):
    steps = [train(tiny(prepared), tmp_path, device="cpu", max_minutes=0).step for _ in range(2)]
    assert steps == [1, 2]


def test_the_embedding_of_a_run_is_the_trained_one(whole):
    _, run = whole
    trained = of_run(EMBEDDING, run)
    embedding, info = trained.network, trained.info
    assert (info.step, len(info.identity_hash)) == (16, 64)
    saved = checkpoint.latest(run / "checkpoints").groups["network"]
    for name, value in embedding.state_dict().items():
        assert torch.equal(value, saved[f"embedding.{name}"])
    assert embedding(torch.zeros(1, 3, 32, 16, dtype=torch.uint8)).shape == (1, embedding.dimension)


@pytest.mark.filterwarnings("ignore:precision bfloat16 is emulated")
def test_bfloat16_trains_float32_weights_and_resumes_bit_for_bit(prepared, tmp_path):
    config = tiny(prepared, precision="bfloat16", schedule={"epochs": 1})
    summary = train(config, tmp_path / "whole", device="cpu")
    for _ in range(summary.total_steps):
        train(config, tmp_path / "parts", device="cpu", max_minutes=0)
    assert final_hashes(tmp_path / "parts") == final_hashes(tmp_path / "whole")
    train(config.changed(precision="float32"), tmp_path / "float32", device="cpu")
    assert final_hashes(tmp_path / "float32") != final_hashes(tmp_path / "whole")
    weights = checkpoint.latest(tmp_path / "whole" / "checkpoints").groups["network"].values()
    assert {w.dtype for w in weights if w.is_floating_point()} == {torch.float32}


def test_class_centers_move_to_the_features(prepared, tmp_path):
    """With every image of a class in each batch and a small network, the loss falls by the centers' steps."""
    still = tiny(prepared, loss={"center": 5e-4, "center_rate": 1e-9}, output={"log_every": 1})
    moving = tiny(prepared, loss={"center": 5e-4}, output={"log_every": 1})
    first, last = [], []
    for name, config in (("still", still), ("moving", moving)):
        train(config, tmp_path / name, device="cpu")
        values = [line["reid/center"] for line in read_metrics(tmp_path / name) if "reid/center" in line]
        first.append(values[0])
        last.append(values[-1])
        centers = checkpoint.latest(tmp_path / name / "checkpoints").groups["network"]["centers"]
        assert centers.shape == (6, 8)
    assert first[0] == first[1]
    assert last[1] < 0.5 * last[0]


def test_it_learns_who_is_who(prepared, tmp_path):
    config = tiny(
        prepared,
        augment={"pad": 0, "erase": 0.0},
        embedding={"backbone_args": {"widths": [8, 12, 16]}, "stripes": 2},
        optimizer={"lr": 1e-2},
        schedule={"epochs": 30},
        output={"validate_every": 1000, "checkpoint_every": 1000},
    )
    train(config, tmp_path, device="cpu")
    lines = [line for line in read_metrics(tmp_path) if "reid/accuracy" in line]
    assert lines[0]["reid/accuracy"] < 0.5
    assert lines[-1]["reid/accuracy"] > 0.95


def test_processes_share_one_batch(prepared):
    for recipe in (*RECIPES, "images"):
        whole, _ = ReidData(tiny(prepared, recipe)).batch(3)
        parts = [ReidData(tiny(prepared, recipe), rank, 2).batch(3)[0] for rank in range(2)]
        if recipe == "pairs":  # two halves each
            joined = [torch.cat([part.image.chunk(2)[half] for part in parts]) for half in (0, 1)]
            assert torch.equal(torch.cat(joined), whole.image)
        else:
            assert torch.equal(torch.cat([part.image for part in parts]), whole.image)


def test_negative_pairs_grow_towards_four(prepared):
    data = ReidData(tiny(prepared, "pairs", data={"images_per_epoch": 8}))  # an epoch is a step
    assert data.positive_share(0) == 0.5
    assert data.positive_share(75) == pytest.approx(1 / (2 * 1.01**75))  # still about 1 : 3.2
    assert data.positive_share(1000) == 0.2


@pytest.mark.slow
@pytest.mark.parametrize("whole", ["people"], indirect=True)
def test_sigterm_saves_and_exits_with_143(whole, prepared, tmp_path):
    """The process signals itself inside a step, so that no clock is involved."""
    recipe, run = whole
    save_config(tiny(prepared, recipe), tmp_path / "config.json")
    told = (
        "import os; from reposer.training.reid import task as reid; real, calls = reid.reid_loss, []\n"
        "def signalling(*args):\n"
        "    calls.append(1)\n"
        f"    if len(calls) == 7: os.kill(os.getpid(), {int(signal.SIGTERM)})\n"
        "    return real(*args)\n"
        "reid.reid_loss = signalling\n"
    )
    command = [sys.executable, "-c", told + TRAIN, str(tmp_path / "config.json"), str(tmp_path / "run")]
    done = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, timeout=300)
    assert done.returncode == 143, done.stderr
    assert checkpoint.latest(tmp_path / "run" / "checkpoints").step == 7
    train(tiny(prepared, recipe), tmp_path / "run", device="cpu")
    assert final_hashes(tmp_path / "run") == final_hashes(run)


def test_a_loss_that_is_not_finite_stops_before_the_update(prepared, tmp_path, monkeypatch):
    calls: list[int] = []

    def poisoned(*args):
        loss, parts = reid_loss(*args)
        calls.append(1)
        return (loss * torch.nan, parts) if len(calls) == 8 else (loss, parts)

    monkeypatch.setattr(reid, "reid_loss", poisoned)
    with pytest.raises(NonFiniteStepError, match="reid/gradient") as caught:
        train(tiny(prepared), tmp_path, device="cpu")
    assert caught.value.step == 7
    assert len(caught.value.pairs) == 8
    assert checkpoint.latest(tmp_path / "checkpoints").step == 5


def test_what_cannot_be_is_refused(whole, prepared):
    recipe, run = whole
    with pytest.raises(UserError, match=r"optimizer\.lr"):
        train(tiny(prepared, recipe, optimizer={"lr": 1.0}), run, device="cpu")
    with pytest.raises(UserError, match="6 training people, a batch wants 7"):
        ReidData(tiny(prepared, batch_size=14))
    with pytest.raises(UserError, match="multiple of 6"):
        ReidData(tiny(prepared), rank=0, world_size=3)
    for wrong in (
        {"loss": {"verification": 1.0}},
        {"recipe": "pairs", "loss": {"triplet": 1.0}},
        {"loss": {"identity": 0.0, "triplet": 0.0}},
        {"augment": {"crop": (64, 16)}},
        {"batch_size": 9},
        {"initial_path": Path("x")},
    ):
        with pytest.raises(ValueError, match=r"needs|every loss|crop|multiple|initial_path"):
            tiny(prepared, **wrong)


def test_validation_counts_the_nearest_of_another_camera():
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(40, 2, generator=rng)
    pids, camids = (torch.randint(0, n, (40,), generator=rng) for n in (6, 3))
    pids[0], camids[pids == 5] = 99, 1  # both without a counterpart in another camera
    hits = []
    for i in range(40):
        others = [j for j in range(40) if camids[j] != camids[i]]
        if any(pids[j] == pids[i] for j in others):
            nearest = min(others, key=lambda j: math.dist(features[i].tolist(), features[j].tolist()))
            hits.append(bool(pids[nearest] == pids[i]))
    assert 0 < sum(hits) < len(hits) < 40
    assert nearest_is_same(features, pids, camids) == pytest.approx(sum(hits) / len(hits))
    assert nearest_is_same(features[:1], pids[:1], camids[:1]) is None


@pytest.mark.slow
def test_two_processes_equal_one(prepared, tmp_path):
    """With frozen norms: BatchNorm on CPUs sees only its own process's part."""
    changes = {"embedding": {"neck": "none", "freeze_norm": True}, "loss": {"center": 0.01}}
    config = tiny(prepared, "images", **changes, precision="float32")  # half floats differ by more
    save_config(config, tmp_path / "config.json")
    (tmp_path / "script.py").write_text(TRAIN)
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    files = [str(tmp_path / name) for name in ("script.py", "config.json", "two")]
    command = [sys.executable, *launcher, *files]
    done = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    train(config, tmp_path / "one", device="cpu")
    one, two = (checkpoint.latest(tmp_path / name / "checkpoints") for name in ("one", "two"))
    assert two.meta["world_size"] == 2
    for name, value in one.groups["network"].items():
        torch.testing.assert_close(two.groups["network"][name], value, rtol=1e-4, atol=1e-6, msg=name)
