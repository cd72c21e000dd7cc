"""Whole trainings of a parser on colored people: it learns, resumes bit for bit, and is exported."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_training import ONE_THREAD, final_hashes

from reposer.annotation.parser import open_parser
from reposer.annotation.segmentation_model import export_parser
from reposer.config import save_config
from reposer.errors import UserError
from reposer.models.backbones import MobileNetV2
from reposer.models.parsing_networks import ParsingNetwork, load_imagenet
from reposer.storage import checkpoint
from reposer.storage.runs import read_metrics
from reposer.trained.networks import PARSER, of_run
from reposer.training.loop import train
from reposer.training.parsing import task as parsing
from reposer.training.parsing.config import ParsingConfig
from reposer.training.parsing.task import ParsingData


def tiny(folder: Path, **changes) -> ParsingConfig:
    """12 steps of 4 images, a checkpoint every 5 steps; two of the six training people are only watched."""
    values = {
        "data": {"folder": str(folder), "tuning_people": 2},
        "parser": {"widths": [8, 8, 8, 8]},
        "optimizer": {"epochs": 3, "warmup_steps": 2},
        "output": {"log_every": 3, "validate_every": 6, "checkpoint_every": 5},
        "initial": "random",
        "batch_size": 4,
        "threads": 1,
    }
    for name, change in changes.items():
        values[name] = values.get(name, {}) | change if isinstance(change, dict) else change
    return ParsingConfig.model_validate_json(json.dumps(values))


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "parser"
    summary = train(tiny(prepared), run, device="cpu")
    assert (summary.step, summary.total_steps, summary.finished) == (12, 12, True)
    return run


def _figures(run: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in read_metrics(run)]


def test_a_run_writes_what_it_promises(whole, prepared):
    lines = read_metrics(whole)
    assert [line["step"] for line in lines if "lr" in line] == [3, 6, 9, 12]
    assert [line["step"] for line in lines if "validation/miou" in line] == [6, 12]
    found = checkpoint.latest(whole / "checkpoints")
    assert found.meta["pids"] == [1, 2, 3, 4]
    assert found.meta["size"] == [32, 16]


def test_resuming_gives_the_same_bits(whole, prepared, tmp_path, monkeypatch):
    real, calls = parsing.parsing_loss, []

    def failing(*args):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(parsing, "parsing_loss", failing)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(prepared), tmp_path / "run", device="cpu")
    train(tiny(prepared), tmp_path / "run", device="cpu")
    assert len(calls) == 8 + 7  # from step 5 on
    assert final_hashes(tmp_path / "run") == final_hashes(whole)
    assert _figures(tmp_path / "run") == _figures(whole)


@pytest.mark.slow
def test_it_learns_the_maps(prepared, tmp_path):
    config = tiny(
        prepared,
        optimizer={"epochs": 30, "lr": 1e-2, "encoder_factor": 1.0},
        augment={"zoom": 0, "shift": 0, "light": 0},
        output={"checkpoint_every": 1000, "validate_every": 1000},
    )
    train(config, tmp_path, device="cpu")
    lines = [line for line in read_metrics(tmp_path) if "parsing/cross_entropy" in line]
    assert lines[-1]["parsing/cross_entropy"] < 0.3 * lines[0]["parsing/cross_entropy"]


def test_the_data_of_the_training(prepared):
    data = ParsingData(tiny(prepared))
    assert data.pids.tolist() == [1, 2, 3, 4]
    assert set(data.people.pids[data.tuning]) == {5, 6}
    assert set(data.people.splits[data.rows]) == {"train"}
    images, maps, names = data.batch(3)
    parts = [ParsingData(tiny(prepared), rank, 2).batch(3) for rank in range(2)]
    assert torch.equal(torch.cat([p[0] for p in parts]), images)
    assert torch.equal(torch.cat([p[1] for p in parts]), maps)
    assert [n for p in parts for n in p[2]] == names
    with pytest.raises(UserError, match="6 people with maps in train, 6 to hold out"):
        ParsingData(tiny(prepared, data={"tuning_people": 6}))
    with pytest.raises(UserError, match="multiple of 3"):
        ParsingData(tiny(prepared), 0, 3)


def test_rates_rise_and_fall(prepared):
    config = tiny(prepared, optimizer={"lr": 1.0, "warmup_steps": 4})
    rates = [config.rate(step, 20) for step in range(20)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[12] == pytest.approx(0.5)
    assert 0 < rates[-1] < 0.02


def test_imagenet_weights_are_taken_or_refused(tmp_path):
    torch.manual_seed(0)
    whole = MobileNetV2(keras=True)
    values = {f"features.{k}": v for k, v in whole.features.state_dict().items()}
    save_file(values, tmp_path / "m.safetensors")
    network = ParsingNetwork(keras=True)
    load_imagenet(network, tmp_path / "m.safetensors")
    image = torch.rand(1, 3, 64, 32) * 2 - 1
    network.eval(), whole.eval()
    assert torch.equal(network._encoded(image)[-1], whole.features[:18](image))
    assert network(image).shape == (1, 20, 64, 32)
    assert network((image * 127.5 + 127.5).to(torch.uint8)).shape == (1, 20, 64, 32)
    with pytest.raises(UserError, match="no official file"):
        load_imagenet(network)
    save_file(dict(list(values.items())[1:]), tmp_path / "m.safetensors")
    with pytest.raises(UserError, match="not the weights"):
        load_imagenet(network, tmp_path / "m.safetensors")


@pytest.mark.slow
def test_the_exported_parser_says_what_the_network_says(whole, tmp_path):
    pytest.importorskip("onnxscript")
    path = export_parser(whole, tmp_path / "my.onnx")
    parser = open_parser(path)
    trained = of_run(PARSER, whole)
    images = torch.randint(0, 256, (5, 3, 32, 16), dtype=torch.uint8)
    with torch.inference_mode():
        expected = trained.network(images).argmax(1).to(torch.uint8)
    assert (parser(images) == expected).float().mean() > 0.999
    assert trained.info.step == 12
    assert parser(images[:, :, :20]).shape == (5, 20, 16)  # another size is fitted
    with pytest.raises(UserError, match=r"\.onnx"):
        export_parser(whole, tmp_path / "my.pt")


def test_what_is_no_run_of_a_parser(whole, tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint|cannot be read"):
        of_run(PARSER, tmp_path)
    (tmp_path / "run").mkdir()
    settings = json.loads((whole / "config.json").read_text())
    del settings["parser"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(settings))
    shutil.copytree(whole / "checkpoints", tmp_path / "run" / "checkpoints")
    with pytest.raises(UserError, match="no run of a parser"):
        of_run(PARSER, tmp_path / "run")


@pytest.mark.slow
def test_two_processes_share_a_batch(prepared, tmp_path):
    """It runs; the numbers differ by BatchNorm, which on CPUs sees each process's own part."""
    save_config(tiny(prepared), tmp_path / "config.json")
    (tmp_path / "script.py").write_text(
        "import sys; from reposer.config import load_config; "
        "from reposer.training.loop import train; "
        "from reposer.training.parsing.config import ParsingConfig; "
        "train(load_config(ParsingConfig, sys.argv[1]), sys.argv[2], device='cpu')"
    )
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command = [sys.executable, *launcher, *(str(tmp_path / n) for n in ("script.py", "config.json", "two"))]
    done = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert np.isfinite(read_metrics(tmp_path / "two")[-1]["validation/miou"])
