"""`reposer verify` on annotated folders: every kind of fault, injected one at a time, is found and named."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from annotate_runner import cut, draw_folder, edit_rows, flip, stubs, tree
from PIL import Image
from quick import one_in
from typer.testing import CliRunner

from reposer.annotation import journal
from reposer.annotation.annotate import AnnotateOptions, annotate
from reposer.annotation.faults import annotation_faults
from reposer.annotation.makers import CROP_COLUMNS
from reposer.cli.main import app
from reposer.errors import UserError
from reposer.jobs import shards
from reposer.workflows.verify import verify_folder

PART = "annotation/manifest/part-00001.parquet"  # images 0003 (5), 0003 (9) ... of the drawn folder
AGAIN = "run the same `reposer annotate` command again"


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(journal, "SHARD_ITEMS", 5)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """12 images in 3 shards, one of them refused."""
    root = draw_folder(tmp_path_factory.mktemp("finished") / "people", 12, ((40, 24),))
    (root / "0004/broken.png").write_bytes(b"no picture")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "SHARD_ITEMS", 5)
        annotate(root, None, stubs, how=AnnotateOptions(batch_size=2))
    return root


@pytest.fixture
def root(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "people"))


def swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def set_field(field: str, value):
    return edit_rows(PART, CROP_COLUMNS, lambda rows: rows[1].update({field: value}))


def edit_json(name: str, change):
    def inject(root: Path) -> None:
        document = json.loads((root / name).read_text())
        change(document)
        (root / name).write_text(json.dumps(document))

    return inject


def edit_lines(name: str, change):
    def inject(root: Path) -> None:
        lines = (root / name).read_text().splitlines(keepends=True)
        change(lines)
        (root / name).write_text("".join(lines))

    return inject


ROW = r"annotation/manifest/part-0000\d\.parquet: row \d, 000\d/00\d\d_c\d\.png"
FAULTS = {  # name: how, what one line must say, and whether annotating again mends it
    "map changed": (
        lambda r: flip(r / "parsing/0001/0000_c1.png"),
        rf"^parsing/0001/0000_c1\.png: differs from its sha256 \({ROW}, parsing_sha256\)",
        True,
    ),
    "map cut": (lambda r: cut(r / "parsing/0001/0000_c1.png"), r"^parsing/0001/0000_c1\.png: differs", True),
    "map gone": (
        lambda r: (r / "parsing/0002/0001_c2.png").unlink(),
        r"^parsing/0002/0001_c2\.png: is missing",
        True,
    ),
    "mask changed": (
        lambda r: flip(r / "mask/0001/0000_c1.png"),
        rf"^mask/0001/0000_c1\.png: differs from its sha256 \({ROW}, mask_sha256\)",
        True,
    ),
    "mask gone": (
        lambda r: (r / "mask/0001/0000_c1.png").unlink(),
        r"^mask/0001/0000_c1\.png: is missing",
        True,
    ),
    "masks swapped": (
        lambda r: swap(r / "mask/0001/0000_c1.png", r / "mask/0001/0004_c1.png"),
        r"^mask/0001/0004_c1\.png: differs",
        True,
    ),
    "mask a folder": (
        lambda r: ((r / "mask/0001/0000_c1.png").unlink(), (r / "mask/0001/0000_c1.png").mkdir()),
        r"^mask/0001/0000_c1\.png: is missing",
        False,
    ),
    "image changed": (
        lambda r: Image.new("RGB", (24, 40)).save(r / "0001/0000_c1.png"),
        rf"^0001/0000_c1\.png: the image differs from its sha256 \({ROW}, sha256\)",
        True,
    ),
    "image gone": (
        lambda r: (r / "0001/0000_c1.png").unlink(),
        r"^0001/0000_c1\.png: the image is missing",
        True,
    ),
    "refused image mended": (
        lambda r: Image.new("RGB", (24, 40)).save(r / "0004/broken.png"),
        r"^0004/broken\.png: the image differs",
        True,
    ),
    "image new": (
        lambda r: Image.new("RGB", (24, 40)).save(r / "0001/new.png"),
        r"^0001/new\.png: the image is in no row",
        True,
    ),
    "map without row": (
        lambda r: shutil.copy(r / "parsing/0001/0000_c1.png", r / "parsing/0001/x.png"),
        r"^parsing/0001/x\.png: is in no row of the manifest; delete it",
        False,
    ),
    "mask without row": (
        lambda r: (r / "mask/deep/er").mkdir(parents=True) or (r / "mask/deep/er/.x").write_text(""),
        r"^mask/deep/er/\.x: is in no row of the manifest; delete it",
        False,
    ),
    "shard gone": (
        lambda r: [p.unlink() for p in (r / PART, r / "annotation/manifest/_part-00001.sha256")],
        rf"^{PART}: is not there.*describes .* and 4 more",
        True,
    ),
    "seal gone": (
        lambda r: (r / "annotation/manifest/_part-00001.sha256").unlink(),
        rf"^{PART}: is not there, or not its seal",
        True,
    ),
    "part gone, seal there": (lambda r: (r / PART).unlink(), rf"^{PART}: is damaged: .*no such file", True),
    "part cut": (lambda r: cut(r / PART), rf"^{PART}: is damaged: differs from its sha256", True),
    "part changed": (lambda r: flip(r / PART), rf"^{PART}: is damaged", True),
    "seal cut": (
        lambda r: cut(r / "annotation/manifest/_part-00001.sha256"),
        r"00001\.sha256: differs .* in the seal",
        True,
    ),
    "seal empty": (
        lambda r: (r / "annotation/manifest/_part-00001.sha256").write_text(""),
        rf"^{PART}: is damaged",
        True,
    ),
    "seal of another": (
        lambda r: shutil.copy(
            r / "annotation/manifest/_part-00000.sha256", r / "annotation/manifest/_part-00001.sha256"
        ),
        rf"^{PART}: is damaged",
        True,
    ),
    "part of another": (
        lambda r: [
            shutil.copy(r / f"annotation/manifest/{a}0{b}", r / f"annotation/manifest/{a}1{b}")
            for a, b in (("part-0000", ".parquet"), ("_part-0000", ".sha256"))
        ],
        rf"^{PART}: row 1, .*is no image of this part",
        True,
    ),
    "part too many": (
        lambda r: shutil.copy(r / PART, r / "annotation/manifest/part-00009.parquet"),
        r"manifest/part-00009\.parquet: does not belong to the manifest; delete it",
        False,
    ),
    "other columns": (
        edit_rows(PART, CROP_COLUMNS[:-1], lambda rows: None),
        rf"^{PART}: its columns are those of another version",
        True,
    ),
    "row without file": (
        edit_rows(PART, CROP_COLUMNS, lambda rows: [*rows, {**rows[0], "file": "0009/none.png"}]),
        r"row 6, 0009/none\.png: is no image of this part",
        True,
    ),
    "row gone": (
        edit_rows(PART, CROP_COLUMNS, lambda rows: rows[:2] + rows[3:]),
        rf"^{PART}: has no row for 000\d/",
        True,
    ),
    "row doubled": (
        edit_rows(PART, CROP_COLUMNS, lambda rows: [*rows, rows[0]]),
        rf"^{PART}: row 6, .*stands in the manifest twice",
        True,
    ),
    "hash in a row": (
        set_field("mask_sha256", "0" * 64),
        r"^mask/.*differs from its sha256 .*row 2.*mask_sha256",
        True,
    ),
    "image hash in a row": (
        set_field("sha256", "0" * 64),
        r"the image differs from its sha256 .*row 2",
        True,
    ),
    "path that leads out": (
        set_field("mask", "../outside.png"),
        r"row 2, .*, mask: \.\./outside\.png is not the place",
        True,
    ),
    "map of another": (
        set_field("parsing", "parsing/0001/0000_c1.png"),
        r"row 2, .*, parsing: parsing/0001/0000_c1\.png is not the place",
        False,
    ),
    "no map in a row": (set_field("parsing", None), r"row 2, .*, parsing: is empty", False),
    "no mask in a row": (set_field("mask", None), r"row 2, .*, mask: is empty", False),
    "counts in a row": (
        set_field("label_pixels", [1] * 20),
        r"row 2, .*, label_pixels: are not 960 pixels",
        False,
    ),
    "joints in a row": (set_field("joints", 3), r"row 2, .*, joints: 3 is not the number", False),
    "scores in a row": (set_field("joint_scores", [1.0]), r"row 2, .*, keypoints: are not 18 joints", False),
    "area in a row": (set_field("mask_area", 2.0), r"row 2, .*, mask_area: 2\.0 is no share", False),
    "flag in a row": (set_field("flags", ["odd"]), r"row 2, .*, flags: 'odd' is none", False),
    "left out in a row": (set_field("left_out", "format"), r"row 2, .*, mask: the image was left out", False),
    "keypoints changed": (
        edit_lines("keypoints.csv", lambda lines: lines.__setitem__(3, lines[3].replace("0", "1", 1))),
        r"^keypoints\.csv, row 4, 000\d/.*: is not what the manifest says",
        True,
    ),
    "keypoints' row gone": (
        edit_lines("keypoints.csv", lambda lines: lines.pop(2)),
        r"^keypoints\.csv, row 3, ",
        True,
    ),
    "keypoints' row too many": (
        edit_lines("keypoints.csv", lambda lines: lines.append("x.png: [1]: [1]\n")),
        r"^keypoints\.csv, row 14, ",
        True,
    ),
    "keypoints cut": (lambda r: cut(r / "keypoints.csv"), r"^keypoints\.csv, row 13, ", True),
    "keypoints gone": (lambda r: (r / "keypoints.csv").unlink(), r"^keypoints\.csv: no such file", True),
    "problems' line gone": (
        edit_lines("annotation/problems.csv", lambda lines: lines.pop()),
        r"problems\.csv: has no line for 0004/broken\.png, format",
        True,
    ),
    "problems gone": (
        lambda r: (r / "annotation/problems.csv").unlink(),
        r"problems\.csv: no such file",
        True,
    ),
    "problems empty": (
        lambda r: (r / "annotation/problems.csv").write_text(""),
        r"problems\.csv, row 1: is not its header",
        True,
    ),
    "report changed": (
        edit_json("annotation/report.json", lambda d: d.update(annotated=99)),
        r"^annotation/report\.json, annotated: is not that",
        True,
    ),
    "report cut": (
        lambda r: cut(r / "annotation/report.json"),
        r"^annotation/report\.json: is not valid JSON",
        True,
    ),
    "plan cut": (
        lambda r: cut(r / "annotation/plan.json"),
        r"^annotation: .*plan\.json: is not valid JSON.*put it back, or delete",
        False,
    ),
    "plan gone": (
        lambda r: (r / "annotation/plan.json").unlink(),
        r"^annotation: .*plan\.json: cannot be read",
        True,
    ),
    "plan empty": (
        lambda r: (r / "annotation/plan.json").write_text('{"shards": [[]]}'),
        r"plan\.json: holds no plan",
        False,
    ),
    "plan short": (
        edit_json("annotation/plan.json", lambda d: d["shards"].pop()),
        r"part-00002\.parquet: does not belong|is in no row of the manifest",
        True,
    ),
    "job cut": (
        lambda r: cut(r / "annotation/job.json"),
        r"^annotation: .*job\.json: is not valid JSON",
        False,
    ),
    "job gone": (
        lambda r: (r / "annotation/job.json").unlink(),
        r"^annotation: .*job\.json: cannot be read",
        False,
    ),
    "job of another kind": (
        edit_json("annotation/job.json", lambda d: d["settings"].update(kind="x")),
        r"job\.json: kind is not that of an annotation",
        False,
    ),
    "left-over staging": (
        lambda r: (r / "annotation/.staging").mkdir(),
        r"\.staging: is left of a call that was stopped",
        True,
    ),
}


def test_a_finished_folder_has_no_fault(root):
    assert annotation_faults(root) == []
    assert verify_folder(root)[0] == "annotated people, every file and row"
    annotate(root, None, stubs, how=AnnotateOptions(batch_size=2, sample=3))
    assert annotation_faults(root / "annotation/sample") == annotation_faults(root) == []


@pytest.mark.parametrize("name", one_in(5, FAULTS))  # the quick ones are of every part of the folder
def test_every_fault_is_found_and_named(root, name):
    inject, told, mends = FAULTS[name]
    whole = tree(root)
    inject(root)
    assert tree(root) != whole
    faults = verify_folder(root)[1]
    assert any(re.search(told, fault) for fault in faults), faults
    assert all(fault.endswith((AGAIN, "delete it", "start again")) for fault in faults), faults
    if mends:
        annotate(root, None, stubs, how=AnnotateOptions(batch_size=2))
        assert [f for f in annotation_faults(root) if not f.endswith("delete it")] == []


def test_an_unfinished_job_is_refused_as_everywhere(root, tmp_path, monkeypatch):
    (root / "annotation/report.json").unlink()
    with pytest.raises(UserError, match=r"there is no report\.json: run the same"):
        verify_folder(root)
    (root / "annotation/manifest/_part-00002.sha256").unlink()
    with pytest.raises(UserError, match=r"1 of 3 shards are not there: run the same .* to go on"):
        verify_folder(root)
    # stopped for real: the second shard cannot be written
    fresh = draw_folder(tmp_path / "fresh", 12)
    monkeypatch.setattr(shards, "_commit", fail_at(2, shards._commit))
    with pytest.raises(RuntimeError, match="stopped"):
        annotate(fresh, None, stubs)
    with pytest.raises(UserError, match=r"[12] of 3 shards are not there"):
        verify_folder(fresh)


def fail_at(call: int, function):
    calls = iter(range(1, 100))

    def wrapped(*arguments):
        if next(calls) == call:
            raise RuntimeError("stopped")
        return function(*arguments)

    return wrapped


def test_copies(tmp_path):
    people = draw_folder(tmp_path / "people", 6)
    copies = tmp_path / "copies"
    annotate(people, copies, stubs)
    shutil.rmtree(people)  # what was copied is whole without it
    assert annotation_faults(copies) == []
    (copies / "0001/0000_c1.png").unlink()
    assert "0001/0000_c1.png: the copy is missing" in annotation_faults(copies)[0]


def test_the_command_says_it_as_for_the_other_folders(root):
    runner = CliRunner()
    done = runner.invoke(app, ["verify", str(root)])
    assert (done.exit_code, done.output.split(": ", 1)[1]) == (
        0,
        "annotated people, every file and row: nothing is wrong\n",
    )
    flip(root / "mask/0001/0000_c1.png")
    (root / "parsing/0001/0000_c1.png").unlink()
    done = runner.invoke(app, ["verify", str(root)])
    assert done.exit_code == 1
    assert len(done.output.splitlines()) == 2
    assert "2 faults" in str(done.exception)


def test_an_empty_annotation_folder_is_nobodys(tmp_path):
    (tmp_path / "annotation").mkdir()
    with pytest.raises(UserError, match="annotated or generated folder"):
        verify_folder(tmp_path)
    assert np.array_equal(list(tmp_path.iterdir()), [tmp_path / "annotation"])
