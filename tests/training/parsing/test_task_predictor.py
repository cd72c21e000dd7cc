"""Whole trainings of a predictor on colored people: it learns, resumes bit for bit, mirrors sides."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import final_hashes

from reposer.data.parsing import FLIP_LABELS
from reposer.losses.segmentation import dice_loss, person_loss
from reposer.storage import checkpoint
from reposer.storage.runs import read_metrics
from reposer.training.gan.data import GanData
from reposer.training.loop import train
from reposer.training.parsing import task as predictor_task
from reposer.training.parsing.config import PredictorConfig


def tiny(folder: Path, **changes) -> PredictorConfig:
    """16 steps of 4 pairs, a checkpoint every 5 steps."""
    values = {
        "data": {"folder": str(folder), "pairs_per_epoch": 32, "flip": True},
        "predictor_args": {"width": 4, "halvings": 2, "res_blocks": 1},
        "optimizer": {"epochs": 2, "warmup_steps": 2},
        "output": {"log_every": 4, "validate_every": 8, "checkpoint_every": 5},
        "batch_size": 4,
        "threads": 1,
    }
    for name, change in changes.items():
        values[name] = values.get(name, {}) | change if isinstance(change, dict) else change
    return PredictorConfig.model_validate_json(json.dumps(values))


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "predictor"
    summary = train(tiny(prepared), run, device="cpu")
    assert (summary.step, summary.total_steps, summary.finished) == (16, 16, True)
    return run


def test_a_run_writes_what_it_promises(whole):
    lines = read_metrics(whole)
    assert [line["step"] for line in lines if "parsing/mask" in line] == [4, 8, 12, 16]
    watched = [line for line in lines if "validation/miou" in line]
    assert [line["step"] for line in watched] == [8, 16]
    assert all(0 <= line["validation/mask_iou"] <= 1 for line in watched)
    assert [line["step"] for line in lines if line.get("pairs_per_second", 0) > 0] == [4, 8, 12, 16]
    assert not any("images_per_second" in line for line in lines)
    assert checkpoint.latest(whole / "checkpoints").meta["size"] == [32, 16]


def test_resuming_gives_the_same_bits(whole, prepared, tmp_path, monkeypatch):
    real, calls = predictor_task.parsing_loss, []

    def failing(*args):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(predictor_task, "parsing_loss", failing)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(prepared), tmp_path / "run", device="cpu")
    train(tiny(prepared), tmp_path / "run", device="cpu")
    assert final_hashes(tmp_path / "run") == final_hashes(whole)


def test_it_learns_the_maps(prepared, tmp_path):
    config = tiny(
        prepared,
        data={"pairs_per_epoch": 64 * 4, "flip": False},
        optimizer={"epochs": 1, "lr": 2e-2},
        output={"log_every": 1, "checkpoint_every": 1000, "validate_every": 1000},
    )
    train(config, tmp_path, device="cpu")
    lines = [line for line in read_metrics(tmp_path) if "parsing/mask" in line]
    for name in ("parsing/cross_entropy", "parsing/mask"):
        assert lines[-1][name] < 0.5 * lines[0][name], name


def test_mirrored_pairs_swap_left_and_right(prepared):
    """The batch of a step with the mirror on equals the one without it, mirrored by hand."""
    data, plain = (GanData(tiny(prepared, data={"flip": flip})) for flip in (True, False))
    seen = set()
    for step in range(4):
        (ours,), (theirs,) = list(data.parts(step)), list(plain.parts(step))
        for row in range(4):
            a, b = ours.batch.target_parsing[row].numpy(), theirs.batch.target_parsing[row].numpy()
            mirrored = not np.array_equal(ours.batch.target_image[row], theirs.batch.target_image[row])
            seen.add(mirrored)
            assert np.array_equal(a, FLIP_LABELS["lip20"][b[:, ::-1]] if mirrored else b)
    assert seen == {True, False}


def test_smoothed_dice_by_hand():
    probabilities = torch.zeros(1, 3, 1, 4)
    probabilities[0, 1] = torch.tensor([0.5, 1.0, 0.0, 0.0])
    probabilities[0, 2] = torch.tensor([0.0, 0.0, 1.0, 0.25])
    probabilities[0, 0] = 1 - probabilities[0, 1] - probabilities[0, 2]
    labels = torch.tensor([[[1, 1, 2, 2]]])
    known = torch.ones(1, 1, 4, dtype=torch.bool)
    first, second = (2 * 1.5 + 1) / (1.5 + 2 + 1), (2 * 1.25 + 1) / (1.25 + 2 + 1)
    assert float(dice_loss(probabilities, labels, known, 1.0)) == pytest.approx(1 - (first + second) / 2)


def test_the_mask_loss_by_hand():
    scores, mask = torch.tensor([[[0.0, 2.0]]]), torch.tensor([[[True, False]]])
    expected = (np.log(2) + np.log1p(np.exp(2.0))) / 2
    assert float(person_loss(scores, mask)) == pytest.approx(expected)
