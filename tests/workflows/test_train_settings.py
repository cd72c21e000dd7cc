"""``reposer train --config FILE``: the settings of a file are those of the run that wrote it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reposer.config import config_bytes, save_config
from reposer.errors import UserError
from reposer.workflows import train as module
from reposer.workflows.gan_presets import PRESETS
from reposer.workflows.train import PARSING_PRESETS, REID_PRESETS, read_settings, train_settings

EVERY = {**PRESETS, **REID_PRESETS, **PARSING_PRESETS}


@pytest.mark.parametrize("name", EVERY)
def test_a_file_is_read_as_what_wrote_it(name: str, tmp_path: Path) -> None:
    made = EVERY[name]()
    save_config(made, tmp_path / "config.json")
    read = read_settings(tmp_path / "config.json")
    assert type(read) is type(made)
    assert config_bytes(read) == config_bytes(made)  # a tuple in free arguments comes back as a list


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({}, "holds no settings of a training"),
        ({"seed": 1, "batch_size": 3}, "holds no settings of a training"),
        ({"format": "hub"}, "holds no settings of a training"),
        ([1], "no JSON object"),
        ({"embedding": {"backbon": "small"}, "data": {"folder": "x"}}, "did you mean"),
        ({"gan": {}, "generator": "san"}, "data"),
    ],
)
def test_a_file_that_is_none_is_one_line(value: object, words: str, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps(value))
    with pytest.raises(UserError, match=words) as told:
        read_settings(tmp_path / "s.json")
    assert "s.json" in str(told.value)


def test_data_overrides_and_limits_come_on_top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(module, "train", lambda config, out, **how: seen.append((config, out, how)))
    made = REID_PRESETS["reid_demo"]().changed(threads=3)
    train_settings(made, Path("here"), Path("out"), ["batch_size=8"], device="cpu", max_minutes=2.0)
    train_settings(made, Path("here"), Path("out"), threads=5)
    (first, out, how), (second, _, _) = seen
    assert (first.data.folder, first.batch_size, first.threads) == (Path("here"), 8, 3)
    assert (out, how) == (Path("out"), {"device": "cpu", "max_minutes": 2.0, "trackers": ()})
    assert second.threads == 5


def test_the_command_takes_a_preset_or_a_file(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_config(PRESETS["san_demo"](), tmp_path / "config.json")
    trained = []
    monkeypatch.setattr(module, "train", lambda config, out, **how: trained.append(type(config).__name__))
    rest = ("--data", "d", "--out", tmp_path / "run")
    assert run("train", "--config", tmp_path / "config.json", *rest)[0] == 0
    assert trained == ["GanConfig"]
    for arguments in (("train",), ("train", "san_demo", "--config", tmp_path / "config.json")):
        code, _, err = run(*arguments, *rest)
        assert (code, "a preset or --config FILE" in err) == (1, True)
    code, _, err = run("reid", "train", "--config", tmp_path / "config.json", *rest)
    assert (code, "another kind of training" in err) == (1, True)
    assert trained == ["GanConfig"]
