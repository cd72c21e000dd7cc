"""The report: one file that holds everything, escapes what it is told, and shows the numbers of the run."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from reposer.errors import UserError
from reposer.report import write_report
from reposer.sections import Picture, Section, Table, write_sections


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / "samples").mkdir()
    (tmp_path / "evaluation").mkdir()
    for step in (1, 2, 3, 4):
        Image.fromarray(np.full((4, 4, 3), step, np.uint8)).save(tmp_path / "samples" / f"step_{step}.png")
    lines = [{"step": s, "l1": 1 / s, "adversarial": 0.7} for s in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 4, "l')
    (tmp_path / "config.json").write_text('{"seed": 12345}')
    note = "not measured: weights for <script>alert(1)</script> not found"
    quality = {
        "settings": {"pairs": 2000},
        "metrics": {
            "l1": {"protocol": "mean |a - b| on [0, 1]", "better": "lower", "reference": ""},
            "fid": {"protocol": "Inception", "better": "lower", "reference": "all training images"},
        },
        "rows": {
            "SAN": {
                "l1": {"value": 0.125, "low": 0.12, "high": 0.13, "note": ""},
                "fid": {"value": None, "low": None, "high": None, "note": note},
            },
            "copy the source": {"l1": {"value": 0.19, "low": None, "high": None, "note": ""}},
        },
    }
    (tmp_path / "evaluation" / "image_quality.json").write_text(json.dumps(quality))
    return tmp_path


def test_page_holds_numbers_pictures_and_settings(run_dir):
    page = write_report(run_dir).read_text()
    assert "0.125\n0.12 to 0.13" in page
    assert "<td>not measured</td>" in page
    assert "fid: not measured: weights" in page
    assert "12345" in page
    assert page.count("data:image/png") == 3  # first, middle and last of the four sample grids
    assert page.count("data:image/svg+xml") == 1  # the curves, of the three whole lines


def test_page_needs_no_other_file_and_runs_no_script(run_dir):
    page = write_report(run_dir).read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert all(source.startswith("data:") for source in re.findall(r'src="([^"]+)"', page))
    assert not re.findall(r"https?://", re.sub(r'"data:[^"]+"', "", page))


def test_told_sections_come_first(run_dir):
    table = Table(["method", "rank-1"], [["real", "81.2"]])
    write_sections(run_dir, [Section("The story", ["It helped."], tables=[table])])
    page = write_report(run_dir).read_text()
    assert page.index("The story") < page.index("Training curves")
    assert "81.2" in page


def test_missing_picture_and_empty_folder_are_named(run_dir, tmp_path_factory):
    write_sections(run_dir, [Section("x", pictures=[Picture("gone", file="gone.png")])])
    with pytest.raises(UserError, match=r"gone\.png"):
        write_report(run_dir)
    with pytest.raises(UserError, match="holds no"):
        write_report(tmp_path_factory.mktemp("empty"))
    with pytest.raises(UserError, match="no such folder"):
        write_report(run_dir / "nowhere")


def test_runs_inside_the_folder_are_shown_too(run_dir):
    """The demo's training lies in a folder of its own; its curve belongs on the page."""
    inner = run_dir / "training"
    inner.mkdir()
    (inner / "metrics.jsonl").write_text('{"step": 1, "l1": 0.5}\n{"step": 2, "l1": 0.4}\n')
    (inner / "config.json").write_text('{"seed": 98765}')
    page = write_report(run_dir).read_text()
    assert "Training curves: training" in page
    assert page.count("data:image/svg+xml") == 2
    assert "98765" in page


def test_re_identification_is_shown_with_its_pictures_protocol_and_notes(tmp_path):
    """Only what the JSON names is shown: a sheet of an earlier evaluation stays out."""
    folder = tmp_path / "reid"
    folder.mkdir()
    for name in ("cmc.png", "ranklist_best.png", "ranklist_failed.png"):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / name)
    numbers = {
        "rank1": 0.8125,
        "rank5": 1.0,
        "rank10": 1.0,
        "mAP_step": 0.7,
        "mAP_trapezoid": 0.69,
        "mINP": 0.3,
    }
    intervals = dict.fromkeys(numbers) | {"rank1": [0.75, 0.875]}
    reid = {
        "methods": {"xqda + re-ranking": numbers | {"intervals": intervals}},
        "missing": {"kissme_reference + re-ranking": "no positive metric"},
        "protocol": "Market-1501 protocol, told in words",
        "notes": ["441 with a valid match", "transductive"],
        "pictures": {"cmc.png": "The curves.", "ranklist_best.png": "The best."},
    }
    (folder / "reidentification.json").write_text(json.dumps(reid))
    page = write_report(tmp_path).read_text()
    assert "Re-identification: reid" in page
    assert "<td>81.25\n75.0 to 87.5</td>" in page
    assert "<td>70.00</td>" in page
    assert page.count("<td>not measured</td>") == 7
    assert page.count("data:image/png") == 2
    for words in ("told in words", "441 with a valid match", "transductive", "The curves.", "The best."):
        assert words in page


@pytest.mark.parametrize(
    ("values", "drawn"),
    [
        (["1.0", "null", "0.5"], [1, np.nan, 0.5]),  # as a training writes NaN and infinity
        (["1.0", "NaN", "0.5"], [1, np.nan, 0.5]),
        (["Infinity", "2", "-Infinity"], [np.nan, 2, np.nan]),
        (["null", "null", "3"], [np.nan, np.nan, 3]),
        (['"text"', "[1, 2]", "4"], [np.nan, np.nan, 4]),
    ],
)
def test_a_value_that_is_no_finite_number_is_a_gap_in_its_curve(tmp_path, monkeypatch, values, drawn):
    seen = []
    monkeypatch.setattr(Axes, "plot", lambda axis, steps, values, **how: seen.append((steps, values)))
    lines = [f'{{"step": {n}, "loss": {value}, "never": null}}\n' for n, value in enumerate(values, start=1)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    assert write_report(tmp_path).is_file()
    ((steps, curve),) = seen
    assert steps == [1, 2, 3]
    assert np.array_equal(curve, drawn, equal_nan=True)


@pytest.mark.parametrize(
    ("place", "title"), [(".", "my run"), ("", "my run"), ("../my run/.", "my run"), ("in/..", "my run")]
)
def test_the_title_is_the_name_of_the_folder_however_it_is_given(
    run_dir, tmp_path, monkeypatch, place, title
):
    run = run_dir / "my run"
    (run / "in").mkdir(parents=True)
    (run / "metrics.jsonl").write_text('{"step": 1, "l1": 0.5}\n')
    monkeypatch.chdir(run)
    assert f"<title>Reposer: {title}</title>" in write_report(Path(place)).read_text()
