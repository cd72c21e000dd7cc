"""`reposer prepare`: everything kept or listed, complete or not there, the same bytes again."""

from __future__ import annotations

import csv
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import time
from collections import Counter
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
from bad_inputs import CORPUS, encoded, exif, file_name, jpeg, picture, pixels

from reposer.data.keypoints import HEADER, write_keypoints_csv
from reposer.data.layouts.market1501 import read_market1501
from reposer.data.packed import PackedPeople
from reposer.data.preparing.prepare import prepare_market1501, prepared_faults
from reposer.data.preparing.report import find_leaks
from reposer.data.records import read_manifest
from reposer.errors import UserError
from reposer.image_rules import ACCEPTED
from reposer.images import decode, encode_jpeg, encode_png

WHOLE = {
    "manifest.parquet",
    "report.json",
    "seal.json",
    "problems.csv",
    "pairs_train.csv",
    "pairs_val.csv",
    "packed",
}


def tree(folder: Path) -> dict[str, str]:
    """sha256 of every regular file below a folder."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.is_symlink()]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def make_data_set(root: Path, people: int = 4, cameras: int = 3, annotated: bool = True) -> None:
    """``people`` people, one image in each camera, each with map, mask and keypoints."""
    for folder in ("bounding_box_train", "parsing", "mask"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    poses = {}
    for number in range(people * cameras):
        stem = f"{number // cameras + 2:04d}_c{number % cameras + 1}s1_{number:06d}_01"
        rng = np.random.default_rng(number)
        (root / "bounding_box_train" / f"{stem}.jpg").write_bytes(encode_jpeg(pixels(number)))
        poses[f"{stem}.jpg"] = rng.integers(0, 24, (18, 2)).astype(np.float32)
        if annotated:
            (root / "parsing" / f"{stem}.png").write_bytes(
                encode_png(rng.integers(0, 20, (40, 24), np.uint8))
            )
            (root / "mask" / f"{stem}.png").write_bytes(encode_png(rng.random((40, 24)) < 0.5))
    if annotated:
        write_keypoints_csv(root / "keypoints.csv", poses)


def listed(out: Path) -> list[dict[str, str]]:
    with (out / "problems.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_good_data_set(tmp_path: Path):
    root, out = tmp_path / "root", tmp_path / "deep" / "out"
    make_data_set(root)
    before = tree(root)
    report = prepare_market1501(root, out, holdout=1, size=(40, 24))
    assert {p.name for p in out.iterdir()} == WHOLE
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    assert tree(root) == before
    records = read_manifest(out / "manifest.parquet")
    assert Counter(record.split for record in records) == {"train": 9, "val": 3}
    assert {record.pid for record in records if record.split == "val"} == {5}
    for record in records:
        assert record.sha256 == before[record.path]
    assert report.splits["train"] == {"images": 9, "people": 3, "cameras": 3, "junk": 0, "distractors": 0}
    assert report.annotations == {"parsing": 12, "mask": 12, "keypoints": 12, "posed": 12}
    assert report.pairs == {"train": 3 * 3 * 2, "val": 3 * 2}  # ordered pairs of three images
    assert report.problems == {}
    assert listed(out) == []
    assert json.loads((out / "report.json").read_bytes())["pairs"] == report.pairs
    pairs = (out / "pairs_train.csv").read_text().splitlines()
    assert pairs[:2] == ["from,to", "0002_c1s1_000000_01.jpg,0002_c2s1_000001_01.jpg"]
    assert len(pairs) == 19
    packed = PackedPeople.open(out / "packed")
    assert packed.names == tuple(record.name for record in records)
    np.testing.assert_array_equal(packed.images[4], decode(root / records[4].path))


def test_of_a_single_camera_each_training_person_keeps_another_and_nobody_else_loses_any(tmp_path: Path):
    root, out = tmp_path / "root", tmp_path / "out"
    make_data_set(root, people=5, cameras=2)
    for name in ("0002_c2s1_000001_02.jpg", "0000_c1s1_000001_01.jpg"):
        (root / "bounding_box_train" / name).write_bytes(encode_jpeg(pixels(len(name) + ord(name[6]))))
    shutil.copytree(root / "bounding_box_train", root / "query")  # tested on the same images: no matter here
    report = prepare_market1501(root, out, holdout=1, single_camera=True)
    kept = [r.name for r in read_manifest(out / "manifest.parquet") if r.split == "train" and r.pid > 0]
    assert kept == [
        "0002_c1s1_000000_01.jpg",
        "0003_c2s1_000003_01.jpg",
        "0004_c1s1_000004_01.jpg",
        "0005_c2s1_000007_01.jpg",
    ]
    assert report.splits["val"]["images"] == 2  # of the person held out
    assert report.splits["query"]["images"] == 12
    assert report.pairs == {"train": 0, "val": 2}
    assert "5 training images of people's other cameras left out" in report.summary()
    with pytest.raises(UserError, match=r"single_camera True \(now None\)"):
        prepare_market1501(root, out, holdout=1)


def test_the_summary_says_what_was_found_and_what_to_do(tmp_path: Path):
    root, out = tmp_path / "root", tmp_path / "out"
    make_data_set(root)
    train = root / "bounding_box_train"
    (train / "0009_c1s1_000001_01.jpg").write_bytes(b"")
    (train / "0009_c1s1_000002_01.jpg").write_bytes(jpeg(exif=exif(6)))
    shutil.copy(train / "0002_c1s1_000000_01.jpg", train / "0003_c9s1_000000_01.jpg")
    text = prepare_market1501(root, out).summary()
    assert "14 images      5 people" in text
    assert "12 of 14 images" in text
    assert "24 for training, 0 for validation" in text
    for rule in ("empty", "exif-rotated", "copy-other-person", "missing-parsing"):
        assert f"1  {rule}: " in text or f"2  {rule}: " in text
    for title in ("Left out", "Used by a rule", "Annotations not used", "Warnings"):
        assert f"{title} (what to do: " in text
    assert f"{out}/problems.csv" in text


def test_without_keypoints_the_summary_says_so(tmp_path: Path):
    make_data_set(tmp_path / "root", annotated=False)
    shutil.rmtree(tmp_path / "root" / "parsing")
    shutil.rmtree(tmp_path / "root" / "mask")
    report = prepare_market1501(tmp_path / "root", tmp_path / "out")
    assert report.pairs == {"train": 0, "val": 0}
    assert "without keypoints no pairs can be made" in report.summary()
    assert "Nothing is wrong." in report.summary()


def test_preparing_again_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root, out = tmp_path / "root", tmp_path / "out"
    make_data_set(root)
    (root / "bounding_box_train" / "Thumbs.db").write_bytes(b"")
    prepare_market1501(root, out, holdout=1)
    before = tree(out)
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: random.Random(1).sample(n := listdir(path), len(n)))
    prepare_market1501(root, out, holdout=1)
    assert tree(out) == before
    prepare_market1501(root, tmp_path / "other", holdout=1)
    assert tree(tmp_path / "other").keys() == before.keys()
    assert (tmp_path / "other" / "manifest.parquet").read_bytes() == (out / "manifest.parquet").read_bytes()


def test_another_configuration_is_refused(tmp_path: Path):
    root, out = tmp_path / "root", tmp_path / "out"
    make_data_set(root)
    prepare_market1501(root, out, holdout=1)
    before = tree(out)
    with pytest.raises(UserError, match=r"holdout 1 \(now 2\), size \[128, 64\] \(now \[64, 32\]\)"):
        prepare_market1501(root, out, holdout=2, size=(64, 32))
    assert tree(out) == before


@pytest.mark.parametrize("place", ["root", "root/out", "."])
def test_writing_into_the_data_set_is_refused(tmp_path: Path, place: str):
    make_data_set(tmp_path / "root")
    before = tree(tmp_path)
    with pytest.raises(UserError, match="overlaps"):
        prepare_market1501(tmp_path / "root", tmp_path / place)
    assert tree(tmp_path) == before


def test_a_foreign_folder_is_never_replaced(tmp_path: Path):
    make_data_set(tmp_path / "root")
    (tmp_path / "out").mkdir()
    prepare_market1501(tmp_path / "root", tmp_path / "out")  # an empty folder is no loss
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("precious")
    (tmp_path / "file").write_text("precious")
    for place in ("thesis", "file"):
        with pytest.raises(UserError, match="no prepared folder"):
            prepare_market1501(tmp_path / "root", tmp_path / place)
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == (tmp_path / "file").read_text() == "precious"


def test_nothing_half_written_stays(tmp_path: Path):
    (tmp_path / "root" / "query").mkdir(parents=True)
    with pytest.raises(UserError):
        prepare_market1501(tmp_path / "root", tmp_path / "out")
    make_data_set(tmp_path / "root")

    def interrupt(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("packing", 5):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_market1501(tmp_path / "root", tmp_path / "out", on_progress=interrupt)
    assert [p.name for p in tmp_path.iterdir()] == ["root"]


def test_progress_counts_both_stages(tmp_path: Path):
    make_data_set(tmp_path / "root")
    seen = []
    prepare_market1501(tmp_path / "root", tmp_path / "out", on_progress=lambda *n: seen.append(n))
    assert seen == [(stage, i, 12) for stage in ("checking", "packing") for i in range(1, 13)]


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path):
    make_data_set(tmp_path / "root")
    prepare_market1501(tmp_path / "root", tmp_path / "out")
    os.rename(tmp_path / "out", tmp_path / ".out.replaced")
    with pytest.raises(UserError, match="other arguments"):
        prepare_market1501(tmp_path / "root", tmp_path / "out", size=(64, 32))
    assert {p.name for p in (tmp_path / "out").iterdir()} == WHOLE


def test_copies_and_leaks_are_found(tmp_path: Path):
    root = tmp_path / "root"
    make_data_set(root)
    for folder in ("query", "bounding_box_test"):
        (root / folder).mkdir()
    train = root / "bounding_box_train"
    shutil.copy(train / "0002_c1s1_000000_01.jpg", train / "0002_c4s1_000090_01.jpg")  # same person
    shutil.copy(train / "0002_c1s1_000000_01.jpg", train / "0003_c4s1_000091_01.jpg")  # another
    shutil.copy(train / "0003_c1s1_000003_01.jpg", root / "query" / "0003_c1s1_000092_00.jpg")  # a leak
    # both
    shutil.copy(train / "0004_c1s1_000006_01.jpg", root / "bounding_box_test" / "0099_c1s1_000093_00.jpg")
    (root / "bounding_box_test" / "-1_c1s1_000094_00.jpg").write_bytes(encode_jpeg(pixels(94)))
    report = prepare_market1501(root, tmp_path / "out")
    assert {rule: n for rule, n in report.problems.items() if not rule.startswith("missing-")} == {
        **{"copy": 1, "copy-other-person": 2, "copy-train-test": 2, "person-train-test": 1},
    }
    assert report.splits["gallery"] == {"images": 2, "people": 1, "cameras": 1, "junk": 1, "distractors": 0}
    assert "person 3 is in the training folder too" in report.summary()


MALFORMED_ROWS = [
    *("", "no colons", "a:b", "a:b:c", ":::", "a: [1]: [1]", "a:[]:[]", "a:null:null", "a:{}:{}", "a:1:2"),
    *("a: [{y}: [{x}]", "a: [{y}]: {x}]", "a: [{y}, 1]: [{x}]", "a: [{y}]: [{x}, 1]", "a: [{y}]: [{x}]: [1]"),
    *("a: ['1'{ys}]: [{x}]", "a: [true{ys}]: [{x}]", "a: [null{ys}]: [{x}]", "a: [NaN{ys}]: [{x}]"),
    *("a: [Infinity{ys}]: [{x}]", "a: [-Infinity{ys}]: [{x}]", "a: [1e999{ys}]: [{x}]", "a: [-2{ys}]: [{x}]"),
    *("a: [-0.5{ys}]: [{x}]", "a: [1_0{ys}]: [{x}]", "a: [0x10{ys}]: [{x}]", "a: [[1]{ys}]: [{x}]"),
    *('a: ["5"{ys}]: [{x}]', "a: [1,,{ys}]: [{x}]", "a: [40{ys}]: [{x}]", "a: [99999{ys}]: [{x}]"),
    *("a: [1e6{ys}]: [{x}]", "a: [-1{ys}]: [{x}]", "a: [" + "9" * 400 + "{ys}]: [{x}]", "a: " + "[" * 20000),
    *("b/../a: [{y}]: [{x}]", "../a: [{y}]: [{x}]", "/etc/passwd: [{y}]: [{x}]", "a\0: [{y}]: [{x}]"),
    *("\\a: [{y}]: [{x}]", ": [{y}]: [{x}]", "a; [{y}]; [{x}]", "a, [{y}], [{x}]"),
    *(
        "\ta\t[{y}]\t[{x}]",
        "a: [{y}] [{x}]",
        "a: ({y}): ({x})",
        "a: {y}: {x}",
        "a:" + " " * 12000 + "[{y}]: [{x}]",
    ),
    *("a: [1 2{ys}]: [{x}]", "a: [1.2.3{ys}]: [{x}]", "a: [--1{ys}]: [{x}]", "a: [1{ys}]: [24{ys}]"),
    *("a: [{y}]: [1e400{ys}]", "a: [{y}]: [nan{ys}]", "a: [{y}]: [inf{ys}]", "a: [{y}]: [+1{ys}]"),
    *(
        "a: [{y}]: [.5{ys}]",
        "a: [{y}]: [1.{ys}]",
        "a: [{y}]: [\u0661{ys}]",
        "a: [{y}]: [{x}]trailing",
        "a: [{y}]: #[{x}]",
    ),
]


def _row(template: str, name: str) -> str:
    numbers = ", ".join(["1"] * 18)
    text = template.replace("{ys}", ", 1" * 17).replace("{y}", numbers).replace("{x}", numbers)
    return name + text[1:] if text.startswith("a") else text


def test_malformed_keypoint_rows_cost_only_themselves(tmp_path: Path):
    """Each malformed row stands for one person of its own; the others keep theirs."""
    root = tmp_path / "root"
    make_data_set(root, people=len(MALFORMED_ROWS), cameras=2)
    names = sorted(p.name for p in (root / "bounding_box_train").iterdir())
    good = (root / "keypoints.csv").read_text().splitlines()[1:]
    victims, rest = names[::2], [row for row in good if row.partition(":")[0] in names[1::2]]
    bad = [_row(template, name) for template, name in zip(MALFORMED_ROWS, victims, strict=True)]
    mixed = [row for pair in zip(bad, rest, strict=True) for row in pair]
    (root / "keypoints.csv").write_bytes(("\ufeff" + "\r\n".join([HEADER, *mixed]) + "\r\n").encode())
    prepare_market1501(root, tmp_path / "out")
    records = {record.name: record for record in read_manifest(tmp_path / "out" / "manifest.parquet")}
    assert len(records) == len(names)
    assert all(records[name].keypoints is not None for name in names[1::2])
    rows = listed(tmp_path / "out")
    bad_rows = {int(row["row"]) for row in rows if row["rule"] == "bad-keypoints"}
    for place, (template, name) in enumerate(zip(MALFORMED_ROWS, victims, strict=True)):
        kept = records[name].keypoints is not None
        blank = not _row(template, name).strip()
        assert not kept, template
        assert blank or 2 + 2 * place in bad_rows, template
    for row in rows:
        assert row["file"]
        assert row["field"]
        assert row["message"]
    assert len(MALFORMED_ROWS) >= 60


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"name,keypoints_y,keypoints_x\n",
        b"name:keypoints_x:keypoints_y\n",
        b"\xff\xfe",
        b"{}",
        bytes(100),
    ],
)
def test_a_keypoint_file_with_another_header_stops_before_anything_is_written(tmp_path: Path, content: bytes):
    make_data_set(tmp_path / "root")
    (tmp_path / "root" / "keypoints.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"keypoints\.csv"):
        prepare_market1501(tmp_path / "root", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_everything_bad_at_once(tmp_path: Path):
    """The whole corpus in one folder, as images, maps and masks: good files kept, the rest listed."""
    root, out = tmp_path / "root", tmp_path / "out"
    make_data_set(root, people=3)
    train = root / "bounding_box_train"
    kept = {p.name for p in train.iterdir()}
    for index, case in enumerate(CORPUS):
        name = file_name(index + 100, case)
        case.make(train / name)
        if case.refused is None:
            kept.add(name)
        base = f"{index + 1001:04d}_c1s1_{index:06d}_00"
        (train / f"{base}.jpg").write_bytes(encode_jpeg(pixels(index + 5000)))
        kept.add(f"{base}.jpg")
        case.make(root / "parsing" / f"{base}.png")
        case.make(root / "mask" / f"{base}.png")
    records_before = tree(train)
    report = prepare_market1501(root, out, size=(40, 24))
    records = read_manifest(out / "manifest.parquet")
    assert {record.name for record in records} == kept
    assert tree(train) == records_before
    rows = listed(out)
    refused = Counter(case.refused for case in CORPUS if case.refused)
    used = Counter(rule for case in CORPUS for rule in case.rules)
    counts = Counter(row["rule"] for row in rows)
    assert {rule: counts[rule] for rule in (*refused, *ACCEPTED)} == {**refused, **used}
    assert Counter(row["rule"] for row in rows) == report.problems
    by_name = {record.name: record for record in records}
    for index, case in enumerate(CORPUS):
        record = by_name[f"{index + 1001:04d}_c1s1_{index:06d}_00.jpg"]
        if case.refused is not None or not {"palette", "gray", "bilevel"} & set(case.rules):
            assert record.parsing is None
            assert record.mask is None
    assert PackedPeople.open(out / "packed").names == tuple(record.name for record in records)


def _start(root: Path, out: Path) -> BaseProcess:
    """A run of its own process, forked: importing torch anew would take longer than the run."""
    process = multiprocessing.get_context("fork").Process(target=prepare_market1501, args=(root, out))
    process.start()
    return process


@pytest.mark.slow
def test_kills_leave_the_old_folder_or_the_new_one(tmp_path: Path):
    """kill -9 at 20 moments of a run: what stands at ``out`` is always whole; the next run cleans up."""
    root, out, calm = tmp_path / "root", tmp_path / "out", tmp_path / "calm"
    make_data_set(root, people=100)
    started = time.monotonic()
    _start(root, calm).join()
    duration = time.monotonic() - started
    wanted = tree(calm)
    same = wanted.keys() - {"report.json", "seal.json"}  # which name their own folder, and its hash
    rng = random.Random(0)
    killed = 0
    for _ in range(20):
        process = _start(root, out)
        process.join(rng.uniform(0.1, 1.1) * duration)
        if process.is_alive():
            process.kill()
            killed += 1
        process.join()
        if out.exists():
            found = tree(out)
            assert found.keys() == wanted.keys()
            assert all(found[name] == wanted[name] for name in same)
    assert killed >= 10
    process = _start(root, out)
    process.join()
    assert process.exitcode == 0
    assert {p.name for p in tmp_path.iterdir()} == {"root", "out", "calm"}
    assert all(tree(out)[name] == wanted[name] for name in same)


def test_odd_sizes_are_packed_to_one(tmp_path: Path):
    train = tmp_path / "root" / "bounding_box_train"
    train.mkdir(parents=True)
    for number, (width, height) in enumerate([(24, 40), (300, 10), (5, 500)]):
        image = encoded(picture(width=width, height=height), "PNG")
        (train / f"0002_c1s1_{number:06d}_01.png").write_bytes(image)
    prepare_market1501(tmp_path / "root", tmp_path / "out", size=(32, 16))
    assert PackedPeople.open(tmp_path / "out" / "packed").images.shape == (3, 32, 16, 3)


@pytest.mark.parametrize(
    ("share", "sides", "rules"),
    [
        (1.0, (40, 24), []),
        (0.5, (40, 24), ["small-keypoints"]),  # as if found in pictures of half the size
        (1.0, (24, 40), ["sides-swapped"]),
    ],
)
def test_a_size_that_is_meant_otherwise_is_said(tmp_path: Path, share: float, sides, rules: list[str]):
    make_data_set(tmp_path / "root", people=8)
    rng = np.random.default_rng(0)
    poses = {
        path.name: (rng.uniform(0.05, share, (18, 2)) * [23, 39]).astype(np.float32)
        for path in (tmp_path / "root" / "bounding_box_train").iterdir()
    }
    write_keypoints_csv(tmp_path / "root" / "keypoints.csv", poses)
    prepare_market1501(tmp_path / "root", tmp_path / "out", size=sides)
    found = listed(tmp_path / "out")
    assert [row["rule"] for row in found] == rules
    if share < 1:
        assert "no joint of 24 poses lies beyond 48 % of the width" in found[0]["message"]
    elif rules:
        assert found[0]["message"].startswith(
            "24 of 24 pictures are higher than wide and are packed at 24x40"
        )
        assert "give --size 40x24" in found[0]["message"]


@pytest.mark.parametrize(
    ("copy", "camids", "words"),
    [
        (
            "0007_c2s1_000001_00.jpg",
            (2, 2, 3),
            "scores leave out its own camera, and so this image; keep both",
        ),
        (
            "0007_c5s1_000001_00.jpg",
            (2, 5, 2),
            "cameras 5 and 2 cannot both be right, and this query finds itself",
        ),
        ("0007_c2s1_000001_00.jpg", (0, 0, 0), "no camera is known, so this query finds itself"),
        ("0007_c2s1_000001_00.jpg", (3, 3, 3), "no camera is known, so this query finds itself"),
    ],
)
def test_a_copy_of_a_query_in_the_gallery_says_what_scores_make_of_it(tmp_path: Path, copy, camids, words):
    for place in ("query/0007_c2s1_000001_00.jpg", f"bounding_box_test/{copy}"):
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).write_bytes(encode_jpeg(pixels(1)))
    records, _ = read_market1501(tmp_path)
    other = replace(records[0], path="bounding_box_test/other.jpg", split="gallery", sha256="other")
    records = [replace(r, camid=camid) for r, camid in zip([*records, other], camids, strict=True)]
    trained = replace(other, path="bounding_box_train/1.jpg", split="train", sha256="trained", camid=9, pid=8)
    (problem,) = find_leaks([*records, trained])  # no training image's camera is compared with
    assert (problem.rule, problem.file) == ("copy", f"bounding_box_test/{copy}")
    assert words in problem.message
    twice = [records[0], replace(records[0], path="query/again.jpg")]
    assert "one of them is enough" in find_leaks(twice)[0].message


def test_verify_names_what_was_added_to_a_prepared_folder(tmp_path: Path):
    root, out = tmp_path / "root", tmp_path / "out"
    make_data_set(root)
    prepare_market1501(root, out)
    assert prepared_faults(out) == []
    (out / "notes.txt").write_text("mine")
    (out / "packed" / "more.npy").write_bytes(b"x")
    (out / "runs" / "san").mkdir(parents=True)
    ending = "does not belong to the prepared folder"
    assert prepared_faults(out) == [
        f"{out / name}: {ending}" for name in ("notes.txt", "packed/more.npy", "runs")
    ]
