"""kill -9 at random moments of a training: it goes on and ends with the bits of an undisturbed run."""

from __future__ import annotations

import multiprocessing
import random
import time
from pathlib import Path

import pytest
from tiny_training import final_hashes, tiny_config

from reposer.storage import checkpoint
from reposer.training.gan.config import GanConfig, GanOutputConfig
from reposer.training.loop import train


@pytest.fixture
def processes(monkeypatch):
    """Fresh processes that have torch imported already, so that a start costs milliseconds."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["reposer.training.loop"])
    return context


def _lines(run: Path) -> int:
    log = run / "metrics.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def _run_and_kill(context, config: GanConfig, run: Path, steps: int, pause: float) -> int | None:
    """Start or go on, kill -9 some time after so many more steps; returns the exit code."""
    process = context.Process(target=train, args=(config, run), kwargs={"device": "cpu"})
    before = _lines(run)
    process.start()
    while process.is_alive() and _lines(run) < before + steps:
        time.sleep(0.001)
    time.sleep(pause)
    process.kill()
    process.join()
    return process.exitcode


def _check_kills(context, prepared: Path, tmp_path: Path, kills: int, steps: int) -> None:
    config = tiny_config(
        prepared,
        data=tiny_config(prepared).data.changed(pairs_per_epoch=4 * steps // 2),
        output=GanOutputConfig(log_every=1, sample_every=7, validate_every=1000, checkpoint_every=3),
    )
    assert train(config, tmp_path / "whole", device="cpu").step == steps
    rng, run = random.Random(0), tmp_path / "killed"
    for kill in range(kills):
        # a step with its checkpoint takes about 50 ms, the start of a run some more
        code = _run_and_kill(context, config, run, rng.randrange(steps // (kills + 2)), rng.random() * 0.1)
        assert code == -9, f"ended with {code} before kill {kill + 1}: the test needs more steps"
    assert train(config, run, device="cpu").finished
    assert final_hashes(run) == final_hashes(tmp_path / "whole")
    assert checkpoint.latest(run / "checkpoints").step == steps


@pytest.mark.slow
def test_a_kill(processes, prepared, tmp_path):
    _check_kills(processes, prepared, tmp_path, kills=1, steps=10)


@pytest.mark.slow
def test_three_kills(processes, prepared, tmp_path):
    _check_kills(processes, prepared, tmp_path, kills=3, steps=20)


@pytest.mark.slow
def test_twenty_kills(processes, prepared, tmp_path):
    _check_kills(processes, prepared, tmp_path, kills=20, steps=300)
