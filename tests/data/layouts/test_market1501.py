"""Market-1501: labels from file names alone, nothing lost without a line, no effect of the disk's order."""

from __future__ import annotations

import os
import random
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from bad_inputs import jpeg, pixels
from hypothesis import given, settings
from hypothesis import strategies as st

from reposer.data.keypoints import write_keypoints_csv
from reposer.data.layouts.folder_scan import drop_collisions
from reposer.data.layouts.market1501 import MarketName, collisions, parse_name, read_market1501, stem
from reposer.errors import UserError
from reposer.images import encode_jpeg, encode_png
from reposer.storage.paths import RefusedFileError


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("0002_c1s1_000451_03.jpg", (2, 1, 1, 451, 3)),
        ("1500_c6s3_086567_01.jpg", (1500, 6, 3, 86567, 1)),
        ("-1_c1s1_000401_03.jpg", (-1, 1, 1, 401, 3)),
        ("0000_c1s3_022226_03.jpg", (0, 1, 3, 22226, 3)),
        ("1488_c1s6_023021_00.jpg.jpg", (1488, 1, 6, 23021, 0)),
        ("0002_c1s1_000451_03.png", (2, 1, 1, 451, 3)),
        ("0002_C1S1_000451_03.JPG", (2, 1, 1, 451, 3)),
        ("12345_c12s1_000000_00.jpeg", (12345, 12, 1, 0, 0)),
    ],
)
def test_names(name: str, wanted: tuple[int, ...]):
    assert parse_name(name) == MarketName(*wanted)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            ".jpg",
            "Thumbs.db",
            "Thumbs.jpg",
            "readme.txt",
            "cover.jpg",
            ".DS_Store",
            "0002_c1s1_000451_03",
        ),
        *("0002_c1s1_000451_03.jpg.txt", "0002_c1s1_000451_03.jpg\n", " 0002_c1s1_000451_03.jpg"),
        *("x0002_c1s1_000451_03.jpg", "2_c1s1_000451_03.jpg", "-2_c1s1_000451_03.jpg", "-1-1_c1s1_1_1.jpg"),
        *("0002_c0s1_000451_03.jpg", "0002_c123s1_000451_03.jpg", "0002_c1_f0000451.jpg", "0002_c1s1_03.jpg"),
        "\u0660\u0660\u0660\u0662_c1s1_000451_03.jpg",  # digits, but not ASCII
        "0002_c1\u017f1_000451_03.jpg",  # a long s is an s to a careless pattern
        "0000_001_01_0303morning_0015_0.jpg",  # MSMT17
        "9" * 30 + "_c1s1_000451_03.jpg",
    ],
)
def test_other_names_are_refused(name: str):
    with pytest.raises(RefusedFileError) as refusal:
        parse_name(name)
    assert refusal.value.rule == "bad-name"


@settings(max_examples=500, deadline=None)
@given(
    parent=st.text(max_size=30)
    | st.builds("{:04d}_c{}s1_000001_01".format, st.integers(0, 9999), st.integers(1, 9)),
    pid=st.integers(-1, 9999),
    camid=st.integers(1, 6),
)
def test_a_parent_folder_is_never_a_label(parent: str, pid: int, camid: int):
    name = f"{'-1' if pid == -1 else f'{pid:04d}'}_c{camid}s1_000451_03.jpg"
    assert parse_name(f"{parent}/{name}") == parse_name(name) == MarketName(pid, camid, 1, 451, 3)


def test_stem():
    assert stem("1488_c1s6_023021_00.jpg.jpg") == "1488_c1s6_023021_00"
    assert stem("0002_c1s1_000451_03.PNG") == "0002_c1s1_000451_03"
    assert stem("readme.txt") == "readme.txt"


def pose(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 24, (18, 2)).astype(np.float32)


def make_data_set(root: Path, order: random.Random | None = None) -> list[str]:
    """Three people in training, one in query and gallery, junk and a distractor; all annotated."""
    names = {
        "bounding_box_train": [
            f"{pid:04d}_c{cam}s1_{pid:06d}_0{cam}.jpg" for pid in (2, 7, 11) for cam in (1, 2)
        ],
        "query": ["0003_c1s1_000001_00.jpg.jpg"],
        "bounding_box_test": ["0003_c2s1_000002_01.jpg", "-1_c3s1_000003_01.jpg", "0000_c4s1_000004_01.jpg"],
    }
    files = [(folder, name) for folder, group in names.items() for name in group]
    (order or random.Random(0)).shuffle(files)
    for folder in (*names, "parsing", "mask"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for folder, name in files:
        seed = sum(name.encode())
        base = stem(name)
        (root / folder / name).write_bytes(encode_jpeg(pixels(seed)))
        labels = np.full((40, 24), seed % 20, np.uint8)
        labels[0, :2] = 0, 19  # background, a shoe
        (root / "parsing" / f"{base}.png").write_bytes(encode_png(labels))
        (root / "mask" / f"{base}.png").write_bytes(encode_png(pixels(seed)[..., 0] > 100))
    everything = sorted(name for _, name in files)
    write_keypoints_csv(root / "keypoints.csv", {name: pose(sum(name.encode())) for name in everything})
    return everything


def test_a_good_data_set(tmp_path: Path):
    names = make_data_set(tmp_path)
    records, problems = read_market1501(tmp_path, holdout=1)
    assert problems == []
    assert sorted(record.name for record in records) == names
    by_name = {record.name: record for record in records}
    one = by_name["0007_c2s1_000007_02.jpg"]
    assert (one.path, one.pid, one.camid) == ("bounding_box_train/0007_c2s1_000007_02.jpg", 7, 2)
    assert (one.width, one.height, one.split) == (24, 40, "train")
    assert (one.parsing, one.mask) == ("parsing/0007_c2s1_000007_02.png", "mask/0007_c2s1_000007_02.png")
    assert one.keypoints is not None
    np.testing.assert_array_equal(one.keypoints, pose(sum(one.name.encode())))
    assert {r.pid for r in records if r.split == "val"} == {11}
    assert {r.pid for r in records if r.split == "gallery"} == {-1, 0, 3}
    assert by_name["0003_c1s1_000001_00.jpg.jpg"].parsing == "parsing/0003_c1s1_000001_00.png"


def test_a_folder_name_that_looks_like_a_label(tmp_path: Path):
    make_data_set(tmp_path / "run_12_c3s1" / "0009_c5s5_000000_00.jpg")
    records, _ = read_market1501(tmp_path / "run_12_c3s1" / "0009_c5s5_000000_00.jpg")
    assert {(r.pid, r.camid) for r in records if r.split == "train"} == {
        (p, c) for p in (2, 7, 11) for c in (1, 2)
    }


def test_the_order_of_the_disk_is_without_effect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_data_set(tmp_path)
    wanted = [record.name for record in read_market1501(tmp_path)[0]]
    listdir = os.listdir

    def shuffled(path: Path) -> list[str]:
        names = listdir(path)
        random.Random(5).shuffle(names)
        return names

    monkeypatch.setattr(os, "listdir", shuffled)
    assert [record.name for record in read_market1501(tmp_path)[0]] == wanted


def test_clutter_is_listed(tmp_path: Path):
    make_data_set(tmp_path)
    train = tmp_path / "bounding_box_train"
    (train / "Thumbs.db").write_bytes(b"x")
    (train / "0005_c1s1_000001_01.jpg").mkdir()
    (train / "-1_c1s1_000001_01.jpg").write_bytes(jpeg())
    os.mkfifo(train / "0005_c1s1_000002_01.jpg")
    (train / "deeper").symlink_to(train)  # followed, this would show every file again and again
    with open(os.fsencode(train) + b"/0005_c1s1_00\xff_01.jpg", "wb") as file:
        file.write(jpeg())
    records, problems = read_market1501(tmp_path)
    assert len(records) == 10
    assert Counter(p.rule for p in problems) == {"bad-name": 3, "not-a-file": 2, "no-identity": 1}
    for problem in problems:
        str(problem).encode()


def test_names_that_collide_elsewhere(tmp_path: Path):
    make_data_set(tmp_path)
    train = tmp_path / "bounding_box_train"
    (train / "0002_C1s1_000002_01.JPG").write_bytes(jpeg())  # differs by case
    (train / "0002_c1s1_000002_01.png").write_bytes(jpeg())  # would share its parsing map
    (tmp_path / "query" / "0007_c1s1_000007_01.jpg").write_bytes(jpeg())  # the same name in another split
    records, problems = read_market1501(tmp_path)
    assert Counter(p.rule for p in problems)["duplicate-name"] == 2
    names = [unicodedata.normalize("NFC", stem(r.name)).casefold() for r in records]
    assert len(set(names)) == len(names) == 11


def test_missing_and_bad_annotations_cost_only_themselves(tmp_path: Path):
    names = make_data_set(tmp_path)
    (tmp_path / "parsing" / f"{stem(names[3])}.png").unlink()
    (tmp_path / "parsing" / f"{stem(names[4])}.png").write_bytes(encode_png(pixels()))  # RGB
    (tmp_path / "parsing" / f"{stem(names[5])}.png").write_bytes(encode_png(np.zeros((40, 23), np.uint8)))
    (tmp_path / "parsing" / f"{stem(names[6])}.png").write_bytes(encode_png(np.full((40, 24), 77, np.uint8)))
    (tmp_path / "mask" / f"{stem(names[3])}.png").write_bytes(b"")
    (tmp_path / "mask" / f"{stem(names[4])}.png").write_bytes(encode_png(np.zeros((41, 24), bool)))
    rows = (tmp_path / "keypoints.csv").read_text().splitlines()
    rows[1] = rows[1].replace("[", "[99999, ", 1)
    rows[2] = "0099_c1s1_000001_01.jpg" + rows[2][rows[2].index(":") :]
    (tmp_path / "keypoints.csv").write_text("\n".join(rows) + "\n")
    records, problems = read_market1501(tmp_path)
    assert len(records) == 10
    assert Counter(p.rule for p in problems) == {
        **{"missing-parsing": 1, "bad-parsing": 3, "bad-mask": 2},
        **{"bad-keypoints": 1, "unknown-image": 1, "missing-keypoints": 2},
    }
    assert sum(r.parsing is None for r in records) == 4
    assert sum(r.mask is None for r in records) == 2
    assert sum(r.keypoints is None for r in records) == 2


def test_no_annotations_is_no_problem(tmp_path: Path):
    (tmp_path / "query").mkdir()
    (tmp_path / "query" / "0003_c1s1_000001_00.jpg").write_bytes(jpeg())
    records, problems = read_market1501(tmp_path)
    assert problems == []
    assert (records[0].parsing, records[0].mask, records[0].keypoints) == (None, None, None)


def test_annotation_folders_with_other_names(tmp_path: Path):
    make_data_set(tmp_path / "root")
    (tmp_path / "root" / "parsing").rename(tmp_path / "root" / "maps")
    records, _ = read_market1501(tmp_path / "root", parsing=tmp_path / "root" / "maps")
    assert all(r.parsing and r.parsing.startswith("maps/") for r in records)
    (tmp_path / "root" / "maps").rename(tmp_path / "maps")
    with pytest.raises(UserError, match="lies outside"):
        read_market1501(tmp_path / "root", parsing=tmp_path / "maps")
    with pytest.raises(UserError, match="no such folder"):
        read_market1501(tmp_path / "root", mask=tmp_path / "nothing")
    with pytest.raises(UserError, match="no such file"):
        read_market1501(tmp_path / "root", keypoints=tmp_path / "nothing.csv")


def test_folders_that_leave_the_root_are_refused(tmp_path: Path):
    make_data_set(tmp_path / "other")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "query").symlink_to(tmp_path / "other" / "query")
    with pytest.raises(UserError, match="leads outside"):
        read_market1501(tmp_path / "root")


@pytest.mark.parametrize("case", ["nowhere", "a file", "no folders", "empty folder", "only damaged"])
def test_nothing_usable_is_an_error_with_advice(tmp_path: Path, case: str):
    root = tmp_path / "root"
    if case == "a file":
        root.write_bytes(b"")
    elif case != "nowhere":
        root.mkdir()
    if case in ("empty folder", "only damaged"):
        (root / "query").mkdir()
    if case == "only damaged":
        (root / "query" / "0003_c1s1_000001_00.jpg").write_bytes(b"")
    with pytest.raises(UserError) as error:
        read_market1501(root)
    assert str(root) in error.value.problem
    assert error.value.advice


@pytest.mark.parametrize("holdout", [-1, 3, 100])
def test_holding_out_everybody_is_refused(tmp_path: Path, holdout: int):
    make_data_set(tmp_path)
    with pytest.raises(UserError, match="3 people") as error:
        read_market1501(tmp_path, holdout=holdout)
    assert error.value.problem.startswith(f"{tmp_path}: ")
    assert error.value.advice == "hold out 0 to 2"


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("a.jpg", "A.jpg", True),
        ("\u00e9.jpg", "e\u0301.jpg", True),
        ("\u017f\u0301.jpg", "\u015a.jpg", True),  # equal once the folded letters are composed
        ("\u03aa\u0301.jpg", "\u0390.jpg", True),
        ("\u03f5\u0301.jpg", "\u0388.jpg", True),
        ("e.jpg", "\u00e9.jpg", False),
        ("a.jpg", "a.png", False),
    ],
)
def test_names_that_are_one_file_somewhere(first: str, second: str, same: bool):
    assert len(collisions([first, second, "other.jpg"])) == same
    assert len(drop_collisions([("1", first), ("2", second)])[1]) == same
