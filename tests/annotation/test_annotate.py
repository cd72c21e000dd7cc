"""Annotating folders: against the models called one by one, by prepare, over kills, changes and bad files."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from annotate_runner import StubParser, draw_folder, stubs, tree
from bad_inputs import CORPUS, file_name
from PIL import Image
from typer.testing import CliRunner

from reposer.annotation import journal
from reposer.annotation.annotate import AnnotateOptions, annotate
from reposer.annotation.annotators import AnnotatorChoice, Annotators
from reposer.annotation.faults import annotation_faults
from reposer.annotation.parser import open_parser
from reposer.cli.main import app
from reposer.data.keypoints import read_keypoints_csv
from reposer.data.preparing.prepare import prepare_people
from reposer.errors import UserError
from reposer.jobs.workers import Step
from reposer.storage.files import DiskError
from reposer.storage.outputs import OUTPUTS

RUNNER = Path(__file__).parents[1] / "helpers" / "annotate_runner.py"
SIZES = ((40, 24), (32, 32))


@pytest.fixture
def folder(tmp_path) -> Path:
    return draw_folder(tmp_path / "people", 12, SIZES)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(journal, "SHARD_ITEMS", 5)


def rows_of(book: Path) -> dict[str, dict]:
    return {row["file"]: row for row in pq.read_table(book / "manifest", use_threads=False).to_pylist()}


def test_a_real_parser_through_the_whole_way(folder, tmp_path, exported, described):
    _, file = exported()
    model = described(file, size=[33, 33], labels="lip20")
    before = tree(folder)
    report = annotate(
        folder,
        None,
        AnnotatorChoice(str(model), "parsing", "none").open,
        how=AnnotateOptions(batch_size=2),
    )
    assert (report.images, report.annotated, report.left_out) == (12, 12, 0)
    assert {name: digest for name, digest in tree(folder).items() if name in before} == before
    parser = open_parser(model)
    for path in sorted(folder.glob("0*/*.png")):
        pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None]
        name = path.relative_to(folder)
        written = Image.open(folder / "parsing" / name)
        assert written.mode == "P"
        assert (np.array(written) == parser(pixels)[0].numpy()).mean() > 0.99  # a batch of one, not of two
        mask = np.array(Image.open(folder / "mask" / name))
        assert np.array_equal(mask, np.array(written) != 0) or mask.all()
    settings = json.loads((folder / "annotation" / "job.json").read_text())["settings"]
    assert settings["parser"]["sha256"] == rows_sha(model)
    prepared = prepare_people("folders", folder, tmp_path / "prepared", pairs="parsing")
    assert (prepared.annotations["parsing"], prepared.annotations["mask"]) == (12, 12)


def rows_sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.slow
def test_processes_give_the_same_bytes_and_a_second_call_makes_nothing(folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    first = annotate(folder, None, stubs, how=AnnotateOptions(batch_size=2))
    annotate(other, None, stubs, how=AnnotateOptions(batch_size=2, processes=2))
    assert tree(folder) == tree(other)
    again = annotate(folder, None, stubs, how=AnnotateOptions(batch_size=2))
    assert (first.work.written, again.work.written, again.work.kept, again.work.notes) == (12, 0, 12, [])
    assert tree(folder) == tree(other)
    assert [path.name for path in folder.rglob(".*")] == [OUTPUTS]


def test_what_changed_is_annotated_again(folder):
    annotate(folder, None, stubs)
    parsing = folder / "parsing/0001/0000_c1.png"
    whole = parsing.read_bytes()
    parsing.write_bytes(whole[:-9])
    Image.fromarray(np.full((40, 24, 3), 120, np.uint8)).save(folder / "0002/0009_c2.png")
    draw_folder(folder, 14, SIZES)  # rewrites all with the same bytes, the changed one too, and adds two
    Image.fromarray(np.full((40, 24, 3), 120, np.uint8)).save(folder / "0002/0009_c2.png")
    report = annotate(folder, None, stubs)
    assert report.images == 14
    assert (
        report.work.written == 5 + 5 + 2 or report.work.written == 5 + 2 + 2
    )  # two shards and the new images
    assert parsing.read_bytes() == whole
    assert set(np.unique(np.array(Image.open(folder / "parsing/0002/0009_c2.png")))) == {120 * 3 * 20 // 766}
    notes = " ".join(report.work.notes)
    assert "0000_c1.png is missing or differs" in notes or "has changed" in notes
    assert "2 images are new" in notes
    (folder / "0002/0009_c2.png").unlink()
    gone = annotate(folder, None, stubs)
    assert (gone.left_out, gone.rules) == (1, {"missing": 1})


def test_results_by_hand(folder):
    report = annotate(folder, None, stubs)
    poses, problems = read_keypoints_csv(folder / "keypoints.csv", {})
    assert not problems
    assert len(poses) == 12
    name = "0001/0000_c1.png"
    expected = np.array([1e-4, *np.linspace(0, 0.9, 18)[1:17]])
    assert np.allclose(poses[name][:17], np.stack([expected * 24, expected * 40], 1), atol=1e-4)
    assert np.isnan(poses[name][17]).all()
    row = rows_of(folder / "annotation")[name]
    pixels = np.array(Image.open(folder / name)).astype(int)
    labels = pixels.sum(2) * 20 // 766
    assert row["mask_area"] == (labels != 0).mean()
    assert row["label_pixels"] == np.bincount(labels.ravel(), minlength=20).tolist()
    assert (row["joints"], row["agreement"], row["mask_source"]) == (17, None, "parsing")
    assert row["people"] == pixels[0, 0, 0] % 3
    several = [r for r in rows_of(folder / "annotation").values() if "several-people" in r["flags"]]
    assert report.flags["several-people"] == len(several)
    assert {r["people"] for r in several} <= {2}
    page = json.loads((folder / "annotation/sections.json").read_text())
    assert "Contact sheet" in [section["title"] for section in page]


def test_another_folder_gets_copies(folder, tmp_path):
    out = tmp_path / "out"
    before = tree(folder)
    annotate(folder, out, stubs)
    assert tree(folder) == before
    assert {k: v for k, v in tree(out).items() if k in before} == before
    (out / "0001/0000_c1.png").unlink()
    assert annotate(folder, out, stubs).work.written > 0
    assert (out / "0001/0000_c1.png").is_file()
    prepare_people("folders", out, tmp_path / "prepared", pairs="parsing")


@pytest.mark.parametrize("fate", ["gone", "broken"])
@pytest.mark.parametrize("where", ["in place", "apart"])
def test_what_was_made_of_an_image_that_is_left_out_now_goes(folder, tmp_path, where, fate):
    out, name, stem = (tmp_path / "out" if where == "apart" else None), "0002/0009_c2.png", "0002/0009_c2"
    root = out or folder
    annotate(folder, out, stubs)
    before = tree(root)
    source = folder / name
    source.unlink() if fate == "gone" else source.write_bytes(b"no picture")
    report = annotate(folder, out, stubs)
    assert (report.annotated, report.left_out) == (11, 1)
    made = {f"{kind}/{stem}.png" for kind in ("parsing", "mask")} | ({name} if out else set())
    lost = {place for place in before if not (root / place).exists()}
    assert lost == made | ({name} if fate == "gone" else set())
    assert annotation_faults(root) == []
    prepared = prepare_people("folders", root, tmp_path / "prepared", pairs="parsing")
    assert prepared.annotations["parsing"] == 11
    if out:
        shutil.copy(root / "0001/0000_c1.png", root / name)  # as earlier versions left it
        (fault,) = annotation_faults(root)
        assert fault == f"{name}: the copy of an image that was left out; delete it"


def test_only_what_was_made_goes_with_its_row(folder, tmp_path):
    out, name, mine = tmp_path / "out", "0002/0009_c2.png", b"a file of the user's own"
    annotate(folder, out, stubs)
    (folder / name).unlink()
    (out / name).write_bytes(mine)
    annotate(folder, out, stubs)
    assert (out / name).read_bytes() == mine
    assert not (out / "parsing" / name).exists()


def test_an_image_that_is_renamed_and_back_keeps_its_map(folder):
    first, second = folder / "0001/0000_c1.png", folder / "0001/0000_c1.bmp"
    Image.open(first).save(second)
    pixels = second.read_bytes()
    second.unlink()
    annotate(folder, None, stubs)
    whole, data = tree(folder / "parsing"), first.read_bytes()
    first.unlink()
    second.write_bytes(pixels)  # the same map, of another part
    annotate(folder, None, stubs)
    assert tree(folder / "parsing") == whole
    second.unlink()
    first.write_bytes(data)
    annotate(folder, None, stubs)
    assert tree(folder / "parsing") == whole
    assert annotation_faults(folder) == []


def test_a_stop_between_a_commit_and_the_end_loses_no_note(folder, monkeypatch):
    annotate(folder, None, stubs)
    name = "0002/0009_c2.png"
    (folder / name).unlink()
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(journal.AnnotationJob, "drop_stale", lambda job: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                annotate(folder, None, stubs)
    assert (folder / "parsing" / name).exists()
    annotate(folder, None, stubs)
    assert not (folder / "parsing" / name).exists()
    assert not (folder / "mask" / name).exists()
    assert [path.name for path in folder.rglob(".*")] == [OUTPUTS]


@pytest.mark.parametrize("inner", ["x.png/p.png", "x.png/deep/p.png", "X.PNG/p.png"])
@pytest.mark.parametrize("apart", [False, True])
def test_an_image_whose_map_is_called_as_a_folder_is_left_out(folder, tmp_path, inner, apart):
    (folder / inner).parent.mkdir(parents=True)
    shutil.copy(folder / "0001/0000_c1.png", folder / inner)
    shutil.copy(folder / "0001/0000_c1.png", folder / "x.bmp")
    out = tmp_path / "out" if apart else folder
    report = annotate(folder, out, stubs)
    assert (report.annotated, report.unread, report.rules) == (13, 1, {"duplicate-name": 1})
    assert (out / "parsing" / inner).is_file()
    listed = (out / "annotation/problems.csv").read_text()
    folder_name = inner.split("/")[0]
    assert f"x.bmp,,name,duplicate-name,its map would have the name of the folder {folder_name};" in listed
    assert annotation_faults(out) == []


def test_the_page_of_the_present_folder_has_its_name(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    (tmp_path / "masks").mkdir()
    options = ("--parser", "none", "--mask", str(tmp_path / "masks"), "--keypoints", "none")
    done = CliRunner().invoke(app, ["annotate", ".", *options])
    assert (done.exit_code, done.exception) == (0, None)
    assert "<title>Annotations of people</title>" in (folder / "annotation/report.html").read_text()


def test_refusals(folder, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        annotate(tmp_path / "nothing", None, stubs)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no image"):
        annotate(tmp_path / "empty", None, stubs)
    with pytest.raises(UserError, match="overlaps with"):
        annotate(folder, folder / "inside", stubs)
    (folder / "mask").mkdir()
    before = tree(folder)
    with pytest.raises(UserError, match="mask: is there already, and was not made by this job: give another"):
        annotate(folder, None, stubs)
    assert {k: v for k, v in tree(folder).items() if not k.startswith("annotation")} == before
    (folder / "mask").rmdir()
    annotate(folder, None, stubs)
    whole = tree(folder)
    with pytest.raises(UserError, match=r"belongs to another job.*batch_size"):
        annotate(folder, None, stubs, how=AnnotateOptions(batch_size=7))

    def other() -> Annotators:
        return Annotators(StubParser(), None, None)

    with pytest.raises(UserError, match=r"belongs to another job.*mask"):
        annotate(folder, None, other)
    assert tree(folder) == whole
    with pytest.raises(UserError, match="choose at least one"):
        AnnotatorChoice("none", "none", "none").open()
    with pytest.raises(UserError, match="there is no parser"):
        AnnotatorChoice("none", "parsing", "none").open()


def test_a_link_that_leads_out_is_not_written_through(folder, tmp_path):
    annotate(folder, None, stubs)
    outside = tmp_path / "outside"
    shutil.move(folder / "mask", outside)
    (folder / "mask").symlink_to(outside)
    before = tree(outside)
    Image.fromarray(np.full((40, 24, 3), 120, np.uint8)).save(folder / "0001/0000_c1.png")
    with pytest.raises(UserError, match="is a link or lies behind one"):
        annotate(folder, None, stubs)
    assert tree(outside) == before


def test_a_first_look_touches_nothing_else(folder):
    before = tree(folder)
    report = annotate(folder, None, stubs, how=AnnotateOptions(sample=5))
    assert report.images == 5
    made = tree(folder)
    assert {k: v for k, v in made.items() if not k.startswith("annotation")} == before
    files = sorted(path.name for path in (folder / "annotation/sample").glob("0*/*.png"))
    assert (
        files == ["0000_c1.png", "0001_c2.png", "0004_c1.png", "0005_c2.png", "0009_c2.png"]
        or len(files) == 5
    )
    annotate(folder, None, stubs, how=AnnotateOptions(sample=5))
    assert tree(folder) == made
    assert annotate(folder, None, stubs).images == 12


@pytest.mark.parametrize("broken", [0, 3])
@pytest.mark.parametrize("unread", [0, 2])
def test_the_counts_of_the_summary_add_up(folder, tmp_path, broken, unread):
    """Twelve good images, some that a rule refuses, some that are passed over for name or format."""
    for number in range(broken):
        (folder / f"broken{number}.jpg").write_bytes(b"no picture")
    for number in range(unread):
        (folder / f"old{number}").write_bytes(b"GIF89a" + bytes(20))
        (folder / f"back\\slash{number}.png").write_bytes(b"")
    (folder / "masks").mkdir()  # no image: a folder that is passed over
    passed_over, looked_at = 2 * unread, 12 + broken
    reports = [annotate(folder, tmp_path / "out", stubs) for _ in range(2)]
    first, again = (str(report).splitlines() for report in reports)
    if broken:
        assert re.search(rf": {looked_at} images looked at( \(\S+ a second\))?: 12 annotated$", first[0])
        assert again[0].endswith(f": 0 images looked at, {looked_at} were done before: 12 annotated")
    else:
        assert ": 12 images annotated" in first[0]
        assert again[0].endswith(": 0 images annotated, 12 were done before")
    left_out, whole = broken + passed_over, looked_at + passed_over
    some = f" ({passed_over} of them for name or format)" if unread else ""
    for report, lines in zip(reports, (first, again), strict=True):
        told = [line for line in lines if "images left out" in line]
        assert len(told) == bool(left_out)
        if left_out:
            assert told[0].startswith(f"{left_out} of {whole} images left out{some}, see ")
        rules = {rule: count for rule, count in report.rules.items() if rule != "unread-folder"}
        assert sum(rules.values()) == left_out == whole - report.annotated


def test_every_bad_image_has_its_rule_and_the_others_are_done(tmp_path):
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    cases = {}
    for index, case in enumerate(CORPUS):
        if case.label != "folder":  # it is walked through, as every folder is
            case.make(root / "a" / file_name(index, case))
            cases[f"a/{file_name(index, case)}"] = case
        for helper in root.glob("target_of_*"):
            cases[helper.name] = replace(CORPUS[-1], rules=())  # what a link leads to, a good picture
    report = annotate(root, None, stubs, how=AnnotateOptions(batch_size=4))
    rows = rows_of(root / "annotation")
    assert rows.keys() == cases.keys()
    for name, case in cases.items():
        assert rows[name]["left_out"] == case.refused, case.label
        told = [problem["rule"] for problem in rows[name]["problems"]]
        assert told == ([case.refused] if case.refused else list(case.rules)), case.label
        assert (root / "parsing" / name).with_suffix(".png").is_file() == (case.refused is None)
    refused = sum(case.refused is not None for case in cases.values())
    assert (report.left_out, report.annotated) == (refused, len(cases) - refused)
    assert sum(report.rules.values()) == refused
    again = annotate(root, None, stubs, how=AnnotateOptions(batch_size=4))
    assert again.work.written == 0
    apart = annotate(root, tmp_path / "apart", stubs, how=AnnotateOptions(batch_size=4))
    assert apart.annotated == report.annotated, "whatever is read can be copied without metadata"


def test_copies_apart_bear_no_metadata(tmp_path):
    """GPS, serial number and comment stay where they were; pixels, turn and profile come along."""
    root, out = tmp_path / "people", tmp_path / "out"
    root.mkdir()
    told = Image.Exif()
    told[0x0112], told[0x010E] = 6, "SECRET"
    told.get_ifd(0x8769)[0xA431] = "SECRET"
    pixels = np.random.default_rng(0).integers(0, 255, (24, 40, 3), np.uint8)
    Image.fromarray(pixels).save(root / "x.jpg", exif=told.tobytes(), comment=b"SECRET")
    Image.fromarray(pixels).save(root / "plain.png")
    before = tree(root)
    annotate(root, out, stubs)
    assert tree(root) == before
    data = (out / "x.jpg").read_bytes()
    assert b"SECRET" not in data
    assert dict(Image.open(out / "x.jpg").getexif()) == {0x0112: 6}
    np.testing.assert_array_equal(np.array(Image.open(out / "x.jpg")), np.array(Image.open(root / "x.jpg")))
    assert (out / "plain.png").read_bytes() == (root / "plain.png").read_bytes()
    rows = rows_of(out / "annotation")
    assert rows["x.jpg"]["sha256"] == hashlib.sha256(data).hexdigest()
    assert (rows["x.jpg"]["height"], rows["x.jpg"]["width"]) == (40, 24)
    made = {path: path.stat().st_mtime_ns for path in out.rglob("*.jpg")}
    assert annotate(root, out, stubs).work.written == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.jpg")} == made
    Image.fromarray(255 - pixels).save(root / "x.jpg", exif=told.tobytes())
    assert annotate(root, out, stubs).work.written > 0


@pytest.mark.parametrize("apart", [False, True])
def test_a_name_that_no_copy_can_bear_costs_only_itself(folder, tmp_path, apart):
    shutil.copy(folder / "0001/0000_c1.png", folder / "c:x.png")
    report = annotate(folder, tmp_path / "out" if apart else None, stubs)
    assert (report.annotated, report.rules) == (12, {"bad-path": 1})
    assert "c:x.png,,name,bad-path" in (report.root / "annotation/problems.csv").read_text()


def test_a_photo_is_no_crop(tmp_path):
    Image.new("RGB", (2001, 2000)).save(tmp_path / "photo.png")
    Image.new("RGB", (24, 40), (90, 0, 0)).save(tmp_path / "crop.png")
    report = annotate(tmp_path, None, stubs)
    assert report.rules == {"photo-size": 1}
    text = (tmp_path / "annotation/problems.csv").read_text()
    assert 'photo.png,,image,photo-size,"2001x2000 pixels: a photo, not a crop' in text
    assert "--detect" in text


@pytest.mark.parametrize(
    ("count", "kills", "processes"),
    [
        pytest.param(40, 2, 1, marks=pytest.mark.slow),
        pytest.param(200, 20, 1, marks=pytest.mark.slow),
        pytest.param(200, 20, 2, marks=pytest.mark.slow),
    ],
)
def test_killed_jobs_end_with_the_same_bytes(tmp_path, count, kills, processes):
    whole, cut = (draw_folder(tmp_path / name, count, SIZES) for name in ("whole", "cut"))
    done = subprocess.run(
        [sys.executable, RUNNER, str(whole), str(cut), str(kills), str(processes)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) == kills
    assert tree(whole) == tree(cut)
    assert len(list((cut / "mask").rglob("*.png"))) == count


@pytest.mark.slow
def test_memory_does_not_grow_with_the_folder(tmp_path):
    """1,800 images more: their pixels alone, if they were kept, are 24 KiB each; a row needs far less."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); import torch; torch.set_num_threads(1)\n"
        "from annotate_runner import stubs; from reposer.annotation.annotate import annotate\n"
        "annotate(sys.argv[1], None, stubs)\n"
        "print([l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')][0])"
    )
    peaks = []
    for count in (300, 2100):
        folder = draw_folder(tmp_path / str(count), count, ((128, 64),))
        command = [sys.executable, "-c", code, str(folder), str(RUNNER.parent)]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert peaks[1] - peaks[0] < 1800 * 12, peaks  # KiB


@pytest.mark.parametrize(
    "call", [20, *(pytest.param(call, marks=pytest.mark.slow) for call in (0, 7, 40, 60))]
)
def test_a_full_disk_is_one_clear_line_and_loses_nothing(folder, tmp_path, monkeypatch, call):
    whole = tmp_path / "whole"
    shutil.copytree(folder, whole)
    annotate(whole, None, stubs, how=AnnotateOptions(batch_size=2))
    count, fsync = itertools.count(), os.fsync

    def failing(descriptor):
        if next(count) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(DiskError, match="No space left"):
            annotate(folder, None, stubs, how=AnnotateOptions(batch_size=2))
    assert not (folder / "annotation/.staging").exists()
    annotate(folder, None, stubs, how=AnnotateOptions(batch_size=2))
    assert tree(folder) == tree(whole)


def test_the_command_makes_a_page(folder, exported, described):
    _, file = exported()
    model = described(file, size=[33, 33], labels="lip20")
    arguments = ["annotate", str(folder), "--parser", str(model), "--mask", "parsing", "--keypoints", "none"]
    arguments += ["--sample", "4", "--batch-size", "2"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    page = (folder / "annotation/sample/annotation/report.html").read_text()
    assert "Contact sheet" in page
    assert page.count("data:image/") >= 3
    assert "http://" not in page.replace("http://www.w3.org", "")
    whole = [part for part in arguments if part not in ("--sample", "4")]
    less = [part for part in whole if part not in ("--mask", "parsing", "--keypoints", "none")]
    for line, said in ((whole, "12 images annotated"), (less, ": 0 images annotated")):
        done = CliRunner().invoke(app, line)  # what is not said again is as the folder was begun
        assert done.exit_code == 0, done.output
        assert said in done.output


def test_workers_annotate_what_one_process_does(folder, tmp_path):
    whole = Path(shutil.copytree(folder, tmp_path / "whole"))
    annotate(whole, None, stubs)

    def step(name, i=0):
        how = AnnotateOptions(step=Step(name, (i, 3) if name == "work" else None, lease=1))
        return str(annotate(folder, None, stubs, how=how))

    assert "is planned: 3 of 3 shards are to be made" in step("plan")
    Image.new("RGB", (24, 40)).save(folder / "new.png")  # too late for this plan
    with pytest.raises(UserError, match=r"annotation: 3 of 3 shards are missing: 0-2: let workers"):
        step("finish")
    assert "12 images made here" in step("work", 1)
    assert "0 images made here" in step("work", 2)
    step("finish")
    (folder / "new.png").unlink()
    assert tree(folder) == tree(whole)
    with pytest.raises(UserError, match="holds no plan for workers"):
        step("work")
