"""Commands at bad moments: nothing usable, names that are no text, a folder in use, feature files gone wrong.

Each ends with exit code 1 and one line that says what to mend, and leaves nothing half-written.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from reposer.cli import main as cli
from reposer.storage.lock import locked
from reposer.storage.tables import parquet_bytes
from reposer.trained.networks import GeneratorConfig


def features(path: Path, **changes: Any) -> Path:
    """Four crops of two people by two cameras; ``changes`` replace a column, None drops it."""
    columns: dict[str, Any] = {
        "features": np.eye(4, dtype=np.float32),
        "pid": np.array([1, 2, 1, 2]),
        "camid": np.array([1, 1, 2, 2]),
        "split": np.array(["query", "query", "gallery", "gallery"]),
    } | changes
    np.savez(path, **{name: value for name, value in columns.items() if value is not None})
    return path


def refused(answer: tuple[int, str, str], *words: str) -> None:
    code, _, error = answer
    assert code == 1, error
    *progress, last = error.splitlines()
    assert last.startswith("error: ")
    assert not any(line.startswith("error") for line in progress)
    assert "fault of ours" not in error
    for word in words:
        assert word in last


def test_nothing_usable_is_no_success(run, prepared, san, tmp_path):
    """Every command that makes or measures something, on data that leaves nothing to do."""
    out = tmp_path / "out"
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("from,to\n")
    refused(run("generate", san, "--data", prepared, "--pairs", pairs, "--out", out), "no pair")
    refused(
        run("evaluate", san, "--data", prepared, "--pairs", pairs, "--out", out), "pairs.csv: holds no pairs"
    )
    pairs.write_text("from,to\nnobody.png,no one.png\n")
    refused(run("generate", san, "--data", prepared, "--pairs", pairs, "--out", out), "nobody.png")
    refused(run("evaluate", san, "--data", prepared, "--pairs", pairs, "--out", out), "nobody.png")
    refused(run("augment", san, "--data", prepared, "--out", out, "--budget", "0"), "budget")
    refused(run("augment", san, "--data", tmp_path / "no", "--out", out), "no")
    folder = tmp_path / "people" / "0001"
    folder.mkdir(parents=True)
    for shot in range(3):
        (folder / f"0001_c1_{shot}.jpg").write_bytes(b"no picture at all")
    refused(run("prepare", "folder", tmp_path / "people", "--out", out), "people")
    masks = tmp_path / "people" / "masks"
    masks.mkdir()
    annotate = ("annotate", tmp_path / "people", "--parser", "none", "--keypoints", "none")
    annotate += ("--mask", masks)
    told = run(*annotate)
    refused(told, "none of 3 images could be annotated", "problems.csv")
    assert "format: 3" in told[1]
    refused(run("reid", "score", features(tmp_path / "f.npz", pid=np.array([1, 1, 2, 2]))), "valid match")
    assert not out.exists()


def test_an_unknown_split_is_not_left_out_in_silence(run, tmp_path):
    split = np.array(["query", "query", "galery", "gallery"])
    refused(
        run("reid", "score", features(tmp_path / "f.npz", split=split)),
        "split galery: unknown: did you mean gallery",
    )


def test_two_evaluations_of_one_folder_do_not_mix(run, prepared, tmp_path):
    from reposer.models.embedding import Embedding

    small = {"backbone": "small", "backbone_args": {"widths": [4, 6, 8]}, "size": (64, 32)}
    Embedding(**small).save_pretrained(tmp_path / "x")
    out = tmp_path / "out"
    out.mkdir()
    again = ("reid", "evaluate", tmp_path / "x", "--data", prepared, "--out", out, "--threads", 1)
    again = (*again, "--methods", "cosine")
    with locked(out):
        refused(run(*again), "another process is writing there")
    assert list(out.iterdir()) == []
    code, _, error = run(*again)
    assert code == 0, error


def test_names_that_are_no_text_cost_no_line_on_a_strict_output(prepared, tmp_path, monkeypatch):
    """A folder and a file in it of names that UTF-8 does not hold: every line is told, escaped."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/pr\xe9pared"))
    shutil.copytree(prepared, folder)

    def verified() -> tuple[int, str]:
        told = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict")
        monkeypatch.setattr(sys, "stdout", told)
        monkeypatch.setattr(sys, "argv", ["reposer", "verify", str(folder)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        told.flush()
        return int(str(stop.value.code)), told.buffer.getvalue().decode()  # type: ignore[attr-defined]

    code, said = verified()
    assert code == 0
    assert "nothing is wrong" in said
    assert "xe9pared: prepared data set" in said
    for name in ("pairs_val.csv", "manifest.parquet"):
        (folder / name).unlink()
    code, said = verified()
    assert code == 1
    assert [line.split("/")[-1] for line in said.splitlines()] == [
        "manifest.parquet: is missing",
        "pairs_val.csv: is missing",
    ]
    assert said.count(r"pr\xe9pared") == 2


@pytest.fixture
def unreadable(tmp_path) -> Path:
    """A folder whose name is no text."""
    folder = tmp_path / os.fsdecode(b"n\xffme")
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    "words",
    [
        ("train", "san_demo", "--data", "THERE", "--out", "OUT"),
        ("train", "predictor_demo", "--data", "THERE", "--out", "OUT"),
        ("reid", "train", "reid_demo", "--data", "THERE", "--out", "OUT"),
        ("study", "augmentation", "--data", "THERE", "--out", "OUT"),
        ("study", "ablations", "--data", "THERE", "--out", "OUT"),
        ("study", "paper_table", "--data", "PREPARED", "--out", "OUT", "--runs", "mine=THERE"),
    ],
)
def test_a_setting_that_no_config_can_hold_is_one_line(words, unreadable, prepared, run, tmp_path):
    places = {"THERE": unreadable / "p", "PREPARED": prepared, "OUT": tmp_path / "out"}
    line = []
    for word in words:
        for name, place in places.items():
            word = word.replace(name, str(place))
        line.append(word)
    answer = run(*line)
    refused(answer, r"n\xffme/p holds a NUL or an undecodable character: correct the text")
    assert answer[2].count("\n") == 1
    assert "pydantic" not in answer[2]


@pytest.mark.parametrize("name", ["run", "r\udcffn"])
def test_a_run_where_tensorboard_cannot_write_is_refused_before_it_is_begun(name, unreadable, prepared, run):
    out = unreadable / name
    answer = run("train", "predictor_demo", "--data", prepared, "--out", out, "--max-minutes", 0)
    refused(answer, "n\\xffme", "TensorBoard", "choose another --out")
    assert not out.exists()


def test_a_fault_in_a_setting_of_ours_stays_a_fault_of_ours(run, monkeypatch, tmp_path):
    """What pydantic itself refuses was not said by anybody on the command line."""

    def broken(*_: object, **__: object) -> None:
        GeneratorConfig(generator=3, size=(1, 1))  # type: ignore[arg-type]

    monkeypatch.setattr("reposer.workflows.verify.verify_folder", broken)
    code, _, error = run("verify", tmp_path)
    assert (code, "fault of ours" in error) == (1, True)


def test_sets_lie_in_folders_of_any_name(unreadable, prepared, san, run):
    """Tables there are written and read again, by each command that does."""
    data, pairs = unreadable / "prepared", unreadable / "pairs.csv"
    shutil.copytree(prepared, data)
    shutil.copytree(prepared.parent / "raw", unreadable / "raw")
    shutil.copytree(san, unreadable / "san")
    shutil.copy(prepared / "pairs_val.csv", pairs)
    made = unreadable / "set"
    lines: list[tuple[Any, ...]] = [
        ("prepare", "market1501", unreadable / "raw", "--out", unreadable / "again", "--size", "64x32"),
        ("generate", unreadable / "san", "--data", data, "--pairs", pairs, "--out", unreadable / "pictures"),
        ("augment", unreadable / "san", "--data", data, "--images", unreadable / "raw", "--out", made),
    ]
    for layout in ("market", "list", "parquet", "webdataset"):
        lines.append(("export-set", made, "--layout", layout, "--out", unreadable / layout))
    for layout in ("parquet", "webdataset"):
        lines.append(("unpack-set", unreadable / layout, "--out", unreadable / f"un{layout}"))
    for line in lines:
        code, _, error = run(*line)
        assert code == 0, (line, error)
    counts = {len(list((unreadable / f"un{layout}").rglob("*.jpg"))) for layout in ("parquet", "webdataset")}
    assert len(counts) == 1
    assert min(counts) > 0


@pytest.mark.parametrize("name", [b"f\xff", "é".encode(), b"plain"])
def test_features_are_read_from_files_of_any_name(name, tmp_path, run):
    said = set()
    for kind in ("npz", "parquet"):
        file = tmp_path / f"{os.fsdecode(name)}.{kind}"
        if kind == "npz":
            features(file)
        else:
            columns = dict(np.load(tmp_path / f"{os.fsdecode(name)}.npz"))
            columns["features"] = list(columns["features"])
            file.write_bytes(parquet_bytes(pa.table({key: list(value) for key, value in columns.items()})))
        code, out, error = run(
            "reid", "score", file, "--methods", "euclidean", "--out", tmp_path / f"s{kind}"
        )
        assert code == 0, error
        said.add(next(line for line in out.splitlines() if line.startswith("| euclidean")))
        assert (tmp_path / f"s{kind}" / "reidentification.md").is_file()
    assert len(said) == 1
