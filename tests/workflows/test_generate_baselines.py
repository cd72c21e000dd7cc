"""The re-built baselines go the general ways: trained, resumed, exported, and their pictures written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_training import final_hashes
from typer.testing import CliRunner

from reposer.cli.main import app
from reposer.data.preparing.prepare import prepare_market1501
from reposer.errors import UserError
from reposer.rendered.dataset import write_rendered_dataset
from reposer.storage.runs import read_metrics
from reposer.trained.networks import GENERATOR, open_network
from reposer.training.gan.config import DataConfig, GanOutputConfig, LossWeights
from reposer.training.loop import train
from reposer.workflows.gan_presets import find_preset

SIZE = (64, 32)
CASES = {  # name -> arguments of a tiny one, of its discriminator, what it logs
    "vunet": ({"size": SIZE, "width": 4, "cap": 8, "scales": 4}, {}, {"l1", "kl"}),
    "pg2": (
        {"size": SIZE, "width": 4, "levels": 3, "fine_levels": 2, "code": 8},
        {"kind": "dcgan", "size": SIZE, "widths": (4, 8)},
        {"adversarial", "masked_l1"},
    ),
    "dpig": (
        {"size": SIZE, "width": 4, "levels": 3, "crop": 8, "part_levels": 2, "code": 8},
        {"kind": "dcgan", "size": SIZE, "widths": (4, 8)},
        {"adversarial", "l1"},
    ),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A few rendered people, one of them held out."""
    root = tmp_path_factory.mktemp("people")
    counts = {"identities": 5, "test_identities": 1, "images_per_identity": 3}
    write_rendered_dataset(root / "raw", **counts, size=SIZE, samples=1, workers=1)
    prepare_market1501(root / "raw", root / "prepared", size=SIZE, holdout=1)
    return root / "prepared"


def tiny(name: str, prepared: Path):
    """The small preset at a tiny size, four steps, without outside weights."""
    preset = find_preset(f"{name}_market_small")
    args, judge, _ = CASES[name]
    return preset.changed(
        data=DataConfig(folder=prepared),
        generator_args=args,
        discriminator_args=judge,
        weights=LossWeights(**{**preset.weights.model_dump(), "perceptual": 0.0}),
        output=GanOutputConfig(log_every=1, validate_every=4, checkpoint_every=2),
        batch_size=4,
        threads=1,
    ).with_steps(4)


def invoke(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_baseline_is_trained_stopped_resumed_and_used(name, prepared, tmp_path):
    config, run = tiny(name, prepared), tmp_path / "run"
    for _ in range(3):
        train(config, run, device="cpu", max_minutes=0)
    train(config, run, device="cpu")
    train(config, tmp_path / "whole", device="cpu")
    assert final_hashes(run) == final_hashes(tmp_path / "whole")
    lines = [line for line in read_metrics(run) if "lr" in line]
    assert {key.split("/")[1] for key in lines[-1] if key.startswith("generator/")} - {"loss"} == CASES[name][
        2
    ]

    plain = ("--device", "cpu", "--threads", 1)
    pictures, pairs = tmp_path / "pictures", prepared / "pairs_val.csv"
    invoke("generate", run, "--data", prepared, "--pairs", pairs, "--out", pictures, *plain[2:])
    assert "nothing is wrong" in invoke("verify", pictures)
    found = invoke("evaluate", run, "--data", prepared, "--out", tmp_path / "evaluation", *plain[2:])
    assert "copy the source" in found
    augmented = tmp_path / "augmented"
    invoke("augment", run, "--data", prepared, "--out", augmented, "--real", "none", *plain)
    assert "nothing is wrong" in invoke("verify", augmented)

    words = ("--license", "research only", "--trained-on", "rendered people")
    invoke("export-run", run, "--out", tmp_path / "shared", *words)
    ours, theirs = (open_network(GENERATOR, tmp_path / place) for place in ("run", "shared"))
    for name_, tensor in ours.network.state_dict().items():
        assert torch.equal(tensor, theirs.network.state_dict()[name_])
    assert "It differs" in (tmp_path / "shared" / "README.md").read_text()


def test_a_run_of_another_generator_is_refused_by_name(prepared, tmp_path):
    train(tiny("pg2", prepared).with_steps(2), tmp_path / "run", device="cpu")
    with pytest.raises(UserError, match="generator"):
        train(tiny("dpig", prepared), tmp_path / "run", device="cpu")
    with pytest.raises(UserError, match="its generator is pg2, and this one is dpig"):
        train(tiny("dpig", prepared).changed(start_from=tmp_path / "run"), tmp_path / "new", device="cpu")
