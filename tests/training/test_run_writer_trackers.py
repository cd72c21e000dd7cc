"""Figures that are sent elsewhere because the user asked for it: every one of them, no picture, no path."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tiny_training import tiny_config, write_prepared

from reposer.errors import UserError
from reposer.storage.runs import read_metrics
from reposer.training import run_writer
from reposer.training.gan.config import ScheduleConfig
from reposer.training.loop import train


class Sent:
    """What a tracker was told."""

    def __init__(self) -> None:
        self.started: dict[str, Any] = {}
        self.rows: dict[int, dict[str, float]] = {}
        self.ended = 0

    def log(self, values: dict[str, float], step: int | None = None, **_: Any) -> None:
        assert step is not None
        self.rows.setdefault(step, {}).update(values)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> dict[str, Sent]:
    """wandb and mlflow, as far as Accelerate's trackers call them."""
    told = {"wandb": Sent(), "mlflow": Sent()}

    def started(name: str) -> Any:
        def start(**how: Any) -> Any:
            told[name].started = how
            return SimpleNamespace(log=told[name].log, finish=lambda: end(name))

        return start

    def end(name: str) -> None:
        told[name].ended += 1

    wandb: Any = ModuleType("wandb")
    wandb.init = started("wandb")
    mlflow: Any = ModuleType("mlflow")
    mlflow.search_experiments = lambda **_: [SimpleNamespace(experiment_id="1")]
    mlflow.start_run = started("mlflow")
    mlflow.log_metrics = told["mlflow"].log
    mlflow.end_run = lambda: end("mlflow")
    for module in (wandb, mlflow):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    real = run_writer.find_spec
    monkeypatch.setattr(run_writer, "find_spec", lambda name: name if name in told else real(name))
    return told


def test_every_figure_is_sent_and_nothing_else(tmp_path, sent) -> None:
    prepared = write_prepared(tmp_path / "a secret place")
    config = tiny_config(prepared, schedule=ScheduleConfig(epochs_const=0.25, epochs_decay=0))
    train(config, tmp_path / "run", device="cpu", trackers=("wandb", "mlflow"))
    lines = read_metrics(tmp_path / "run")
    assert lines
    for tracker in sent.values():
        assert tracker.ended == 1
        assert tracker.started
        for line in lines:
            for name, value in line.items():
                if name != "step" and isinstance(value, float):
                    assert tracker.rows[line["step"]][name] == pytest.approx(value)
        assert "secret" not in repr(tracker.started)
    train(config, tmp_path / "run", device="cpu", trackers=("wandb",))
    assert sent["wandb"].started["resume"] == "allow"


def test_a_tracker_that_is_not_there_is_named_before_any_work(tmp_path) -> None:
    prepared = write_prepared(tmp_path / "prepared")
    config = tiny_config(prepared, schedule=ScheduleConfig(epochs_const=0.25, epochs_decay=0))
    with pytest.raises(UserError, match=r"tracker wandbb: unknown.*wandb"):
        train(config, tmp_path / "run", device="cpu", trackers=("wandbb",))
    if run_writer.find_spec("mlflow") is None:
        with pytest.raises(UserError, match="pip install mlflow"):
            train(config, tmp_path / "run", device="cpu", trackers=("mlflow",))
    assert not (tmp_path / "run").exists()
