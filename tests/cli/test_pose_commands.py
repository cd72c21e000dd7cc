"""`reposer train predictor_demo`, `evaluate` and `generate --target` on a few rendered people."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from reposer.cli import main as cli
from reposer.data.packed import PackedPeople
from reposer.data.preparing.prepare import prepare_market1501
from reposer.data.rendered.dataset import write_rendered_dataset
from reposer.generation.export import GeneratorConfig
from reposer.generation.pose_transfer import PoseTransfer
from reposer.images import read_picture
from reposer.models.generators import build_generator
from reposer.runtime import setup

SIZE = (64, 32)
SAN = {"ngf": 4, "enc_strides": [2, 2, 1], "blocks": 1, "n_convs": 1, "deep_channels": [8]}


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line in this process; gives exit code, standard output, standard error."""

    def _run(*arguments):
        monkeypatch.setattr(sys, "argv", ["reposer", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return _run


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("people")
    write_rendered_dataset(
        root / "raw",
        identities=4,
        test_identities=1,
        images_per_identity=3,
        size=SIZE,
        samples=1,
        workers=1,
    )
    prepare_market1501(root / "raw", root / "prepared", size=SIZE, holdout=1)
    return root / "prepared"


@pytest.fixture(scope="module")
def san(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "san"
    config = GeneratorConfig(generator="san", generator_args=SAN, size=SIZE)
    PoseTransfer(build_generator("san", **SAN), config, setup("cpu", "float32")).save_pretrained(folder)
    return folder


def test_a_predictor_from_training_to_pictures(run, prepared, san, tmp_path):
    """Two steps of the preset, its table, and a held-out person in two canonical poses."""
    maps = tmp_path / "maps"
    changes = ["data.pairs_per_epoch=32", "predictor_args.width=4", "optimizer.warmup_steps=1"]
    sets = [word for change in changes for word in ("--set", change)]
    code, said, err = run("train", "predictor_demo", "--data", prepared, "--out", maps, "--threads", 1, *sets)
    assert code == 0, err
    assert "step 2 of 2" in said
    code, said, err = run("evaluate", maps, "--data", prepared, "--out", tmp_path / "table", "--limit", 4)
    assert code == 0, err
    table = json.loads((tmp_path / "table" / "map_quality.json").read_text())
    assert list(table["rows"]) == ["predictor", "source's map", "donor's map"]
    assert (tmp_path / "table" / "maps.png").is_file()

    people = PackedPeople.open(prepared / "packed")
    name = people.names[int(np.flatnonzero(people.splits == "val")[0])]
    asked = ["generate", san, "--data", prepared, "--source", name, "--out", tmp_path / "out"]
    code, _, err = run(*asked, "--target", "canonical:front,left")
    assert code == 1
    assert "name a predictor" in err
    code, said, err = run(*asked, "--target", "canonical:front,left", "--predictor", maps)
    assert code == 0, err
    assert "target maps are predicted" in said
    stem = name.rpartition(".")[0]
    pictures = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert pictures == [f"{stem}___canonical-front.png", f"{stem}___canonical-left.png"]
    assert read_picture(tmp_path / "out" / pictures[0]).pixels.shape == (*SIZE, 3)
    code, _, err = run(*asked, "--target", "canonical:lft")
    assert (code, "did you mean left" in err) == (1, True)
    code, _, err = run(*asked, "--target", people.names[0], "--donor", "x.png")
    assert (code, "give one of them" in err) == (1, True)
    table = tmp_path / "images"
    code, said, err = run(
        "evaluate", san, "--data", prepared, "--out", table, "--limit", 4, "--predictor", maps
    )
    assert code == 0, err
    assert "| model, predicted maps |" in said
    out = tmp_path / "set"
    code, said, err = run(
        "augment", san, "--data", prepared, "--out", out, "--predictor", maps, "--threads", 1
    )
    assert code == 0, err
    assert json.loads((out / "job.json").read_text())["settings"]["maps"] == "predicted"
