"""The whole way by the command line, as the README walks it: from rendered people to a report."""

import json
import sys

import pyarrow.parquet as pq
import pytest

from reposer.cli import main as cli


@pytest.fixture
def run(monkeypatch, capsys):
    def _run(*arguments):
        monkeypatch.setattr(sys, "argv", ["reposer", "--debug", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 0
        return capsys.readouterr().out

    return _run


def test_from_rendered_people_to_a_report(run, tmp_path):
    people, data, model, out = (tmp_path / name for name in ("people", "data", "run", "generated"))
    run("render", people, "--identities", 4, "--test-identities", 1, "--images", 4)
    assert "pairs" in run("prepare", "market1501", people, "--out", data, "--holdout", 1)

    one_step = ["--set", "schedule.epochs_const=0.001", "--set", "schedule.epochs_decay=0", "--threads", 1]
    said = run("train", "san_demo", "--data", data, "--out", model, *one_step)
    assert "step 1 of 1" in said
    assert "finished" in said

    said = run(
        "evaluate", model, "--data", data, "--out", model / "evaluation", "--backgrounds", "generated,donor"
    )
    assert "copy the source" in said
    rows = json.loads((model / "evaluation" / "image_quality.json").read_text())["rows"]
    assert list(rows) == ["model", "model, donor's background", "copy the source", "nearest pose"]
    per_image = pq.read_table(model / "evaluation" / "image_quality.parquet").to_pylist()
    copied = [row["l1"] for row in per_image if row["method"] == "copy the source"]
    assert sum(copied) / len(copied) == pytest.approx(rows["copy the source"]["l1"]["value"])

    pairs = (data / "pairs_val.csv").read_text().split()
    run("generate", model, "--data", data, "--pairs", data / "pairs_val.csv", "--out", out, "--jpeg")
    assert len(list((out / "images").glob("*.jpg"))) == len(pairs) - 1
    assert "nothing is wrong" in run("verify", out)
    assert "nothing is wrong" in run("verify", model)

    run("report", model)
    page = (model / "report.html").read_text()
    for words in ("Training curves", "Image metrics", "How the pictures grew", "Configuration"):
        assert words in page


@pytest.mark.slow
def test_recognition_of_generated_people(run, tmp_path):
    """A Re-ID network is trained by the same command and measures whether identity is kept."""
    people, data, reid = tmp_path / "people", tmp_path / "data", tmp_path / "reid"
    run("render", people, "--identities", 6, "--test-identities", 3, "--images", 6)
    run("prepare", "market1501", people, "--out", data, "--holdout", 1)
    short = ["--set", "data.images_per_epoch=32", "--set", "schedule.epochs=1", "--set", "batch_size=16"]
    run("train", "reid_demo", "--data", data, "--out", reid, "--threads", 1, *short)
    said = run("evaluate", "shipped", "--data", data, "--out", tmp_path / "ev", "--reid", reid, "--limit", 4)
    assert "real queries" in said
    rows = json.loads((tmp_path / "ev" / "identity.json").read_text())["rows"]
    assert all(0 <= row["rank1"] <= 1 for row in rows.values())
    generated = ("generated, own pose", "generated, another person's pose")
    assert [row for row in rows if row.count(",") < 2] == ["real queries", *generated]
    assert {row for row in rows if row.count(",") == 2} <= {
        f"{generated[0]}, {how}" for how in ("facing alike", "turned")
    }
