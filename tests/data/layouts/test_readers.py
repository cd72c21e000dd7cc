"""Readers of Re-ID layouts: folders as their makers describe them, against labels known by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io

from reposer.data.layouts.readers import check_counts, read_people
from reposer.data.packed import PackedPeople
from reposer.data.preparing.prepare import prepare_people
from reposer.errors import UserError
from reposer.images import encode_jpeg, encode_png

RNG = np.random.default_rng(0)


def write(root: Path, *paths: str) -> None:
    """A small random picture at each path, JPEG or PNG by its ending."""
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = RNG.integers(0, 256, (16, 8, 3), dtype=np.uint8)
        file.write_bytes(encode_jpeg(pixels) if path.endswith(".jpg") else encode_png(pixels))


def labels(records) -> dict[str, tuple[int, int, str]]:
    return {r.path: (r.pid, r.camid, r.split) for r in records}


def rules(problems) -> list[str]:
    return sorted(p.rule for p in problems if p.rule != "official-count")


def test_dukemtmc(tmp_path):
    train = [f"bounding_box_train/{n}.jpg" for n in ("0001_c2_f0046182", "0001_c3_f0000001", "0005_c8_f1")]
    test = ["query/0002_c1_f0044158.jpg", "bounding_box_test/7140_c6_f0125000.jpg"]
    write(tmp_path, *train, *test, "query/0002_c9_f0044158.jpg", "query/0002c1_f0044158.jpg")
    records, problems = read_people("dukemtmc", tmp_path, holdout=1)
    assert labels(records) == {
        train[0]: (1, 2, "train"),
        train[1]: (1, 3, "train"),
        train[2]: (5, 8, "val"),
        test[0]: (2, 1, "query"),
        test[1]: (7140, 6, "gallery"),
    }
    assert [r.name for r in records] == [path.rpartition("/")[2] for path in (*train, *test)]
    assert rules(problems) == ["bad-name", "bad-name"]
    counts = [p for p in problems if p.rule == "official-count"]
    assert str(counts[0]).endswith("train: 3 images, 16,522 are published for dukemtmc")
    assert len(counts) == 3


def test_msmt17_people_of_training_and_test_are_different_people(tmp_path):
    name = "0000/0000_000_01_0303morning_0008_0.jpg"
    other = "0001/0001_012_15_0302noon_0123_1.jpg"
    write(tmp_path, f"mask_train_v2/{name}", f"mask_train_v2/{other}", f"mask_test_v2/{name}")
    write(tmp_path, f"mask_test_v2/{other}")
    lists = {"train": f"{name} 0\n", "val": f"{other} 1\n\n", "query": f"{name} 0\n"}
    lists["gallery"] = f"{other} 1\nnonsense\n../{other} 1\n0002/0002_000_01_x.jpg 2\n"
    for kind, text in lists.items():
        (tmp_path / f"list_{kind}.txt").write_text(text)
    records, problems = read_people("msmt17", tmp_path)
    assert labels(records) == {
        f"mask_train_v2/{name}": (1, 1, "train"),
        f"mask_train_v2/{other}": (2, 15, "train"),
        f"mask_test_v2/{name}": (1042, 1, "query"),
        f"mask_test_v2/{other}": (1043, 15, "gallery"),
    }
    assert records[0].name == "0001_c1_mask_train_v2_0000_0000_000_01_0303morning_0008_0.jpg"
    assert rules(problems) == ["bad-name", "bad-name", "missing"]
    assert {p.row for p in problems if p.rule == "bad-name"} == {2, 3}
    (tmp_path / "list_query.txt").unlink()
    with pytest.raises(UserError, match=r"list_query\.txt"):
        read_people("msmt17", tmp_path)


def test_viper_halves(tmp_path):
    paths = [f"cam_{c}/{p:03d}_{a}.png" for p in range(6) for c, a in (("a", 0), ("b", 90))]
    write(tmp_path, *paths)
    halves = []
    for split in range(8):
        records, problems = read_people("viper", tmp_path, options={"split": split})
        assert rules(problems) == []
        found = labels(records)
        train = {pid for pid, _, s in found.values() if s == "train"}
        assert len(train) == 3
        for path, (pid, camid, kind) in found.items():
            assert pid == int(path[6:9]) + 1
            assert camid == {"a": 1, "b": 2}[path[4]]
            assert kind == ("train" if pid in train else {1: "query", 2: "gallery"}[camid])
        halves.append(frozenset(train))
    assert len(set(halves)) > 4
    again, _ = read_people("viper", tmp_path, options={"split": 0})
    assert {r.pid for r in again if r.split == "train"} == halves[0]


CUHK03 = [
    f"{pair}_{person:03d}_{view}_{1 + 5 * (view - 1):02d}.png"
    for pair in (1, 2)
    for person in (1, 2)
    for view in (1, 2)
]


def test_cuhk03_new_protocol(tmp_path):
    write(tmp_path, *(f"images_labeled/{name}" for name in CUHK03), "images_labeled/x.png")
    cells = np.empty((8, 1), object)
    cells[:, 0] = CUHK03
    scipy.io.savemat(
        tmp_path / "cuhk03_new_protocol_config_labeled.mat",
        {"filelist": cells, "train_idx": [[1], [2], [3]], "query_idx": [[5]], "gallery_idx": [[6], [8]]},
    )
    records, problems = read_people("cuhk03", tmp_path, options={"kind": "labeled"})
    assert labels(records) == {
        "images_labeled/1_001_1_01.png": (1001, 1, "train"),
        "images_labeled/1_001_2_06.png": (1001, 2, "train"),
        "images_labeled/1_002_1_01.png": (1002, 1, "train"),
        "images_labeled/2_001_1_01.png": (2001, 1, "query"),
        "images_labeled/2_001_2_06.png": (2001, 2, "gallery"),
        "images_labeled/2_002_2_06.png": (2002, 2, "gallery"),
    }
    assert rules(problems) == ["bad-name", "unread-file", "unread-file"]  # the protocol leaves two images out
    assert any("7,368 are published for cuhk03 new labeled" in str(problem) for problem in problems)


def test_cuhk03_classic_protocol(tmp_path):
    write(tmp_path, *(f"images_detected/{name}" for name in CUHK03))
    test = [[f"/elsewhere/images_detected/{name}", 0, 0] for name in CUHK03[4:6]]
    splits = [{"train": [], "query": [], "gallery": []}, {"train": [], "query": test, "gallery": test}]
    (tmp_path / "splits_classic_detected.json").write_text(json.dumps(splits))
    records, _ = read_people("cuhk03", tmp_path, options={"protocol": "classic", "split": 1})
    by_split = {s: [r.path[-14:] for r in records if r.split == s] for s in ("train", "query", "gallery")}
    assert by_split == {"train": [*CUHK03[:4], *CUHK03[6:]], "query": CUHK03[4:5], "gallery": CUHK03[5:6]}
    with pytest.raises(UserError, match="holds 2 splits"):
        read_people("cuhk03", tmp_path, options={"protocol": "classic", "split": 2})


def test_cuhk03_damaged_lists(tmp_path):
    write(tmp_path, *(f"images_detected/{name}" for name in CUHK03))
    (tmp_path / "cuhk03_new_protocol_config_detected.mat").write_bytes(b"MATLAB 5.0 and then nothing")
    (tmp_path / "splits_classic_detected.json").write_text("[{}]")
    with pytest.raises(UserError, match="not CUHK03's new protocol"):
        read_people("cuhk03", tmp_path)
    with pytest.raises(UserError, match="not a list of splits"):
        read_people("cuhk03", tmp_path, options={"protocol": "classic"})
    with pytest.raises(UserError, match="unknown"):
        read_people("cuhk03", tmp_path, options={"kind": "drawn"})


def test_cuhk03_in_folders(tmp_path):
    write(
        tmp_path,
        "bounding_box_train/0001_c1_1.png",
        "query/0003_c1_21.png",
        "bounding_box_test/0003_c2_22.png",
    )
    records, problems = read_people("cuhk03_np", tmp_path)
    assert [(r.pid, r.camid, r.split) for r in records] == [
        (1, 1, "train"),
        (3, 1, "query"),
        (3, 2, "gallery"),
    ]
    assert rules(problems) == []


def test_identity_folders(tmp_path):
    paths = ["0007/a_c3.png", "0007/b_c1.png", "0012/a_c3.png", "0012/z.png"]
    write(tmp_path, *paths)
    (tmp_path / "0012" / "notes.txt").write_text("no image")
    records, problems = read_people("folders", tmp_path)
    assert labels(records) == {
        paths[0]: (7, 3, "train"),
        paths[1]: (7, 1, "train"),
        paths[2]: (12, 3, "train"),
        paths[3]: (12, 0, "train"),
    }
    assert len({r.name for r in records}) == 4
    assert rules(problems) == ["no-camera", "unread-file"]


def test_identity_folders_with_splits_and_names(tmp_path):
    paths = ["train/bob/cam2-1.png", "train/amy/cam1-1.png", "query/eve/cam1-1.png", "gallery/eve/cam2-1.png"]
    write(tmp_path, *paths)
    records, problems = read_people("folders", tmp_path, options={"camera": r"cam(\d+)"})
    assert labels(records) == {
        paths[0]: (2, 2, "train"),
        paths[1]: (1, 1, "train"),
        paths[2]: (3, 1, "query"),
        paths[3]: (3, 2, "gallery"),
    }
    assert problems == []
    for camera in ("(", "cam"):
        with pytest.raises(UserError, match="camera"):
            read_people("folders", tmp_path, options={"camera": camera})


TABLE = [
    ("a/1.png", 1, 1, "train"),
    ("b/1.png", 1, 2, "train"),
    ("q.png", 2, 1, "query"),
    ("j.png", -1, 2, "gallery"),
    ("d.png", 0, 2, "gallery"),
]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table(tmp_path, suffix):
    write(tmp_path, *(row[0] for row in TABLE))
    bad = [("a/1.png", 3, 1, "train"), ("../x.png", 1, 1, "train"), ("q.png", 2, 1, "test")]
    bad += [("x.png", -1, 1, "train")] if suffix == "csv" else []  # junk is nobody to train on
    table = tmp_path / f"list.{suffix}"
    rows = [*TABLE[:2], bad[0], *TABLE[2:], *bad[1:]]
    if suffix == "csv":
        lines = [f"{s},extra,{c},{pid},{p}" for p, pid, c, s in rows]
        table.write_text("split,note,camid,pid,path\r\n" + "\r\n".join(lines) + "\r\n", encoding="utf-8-sig")
    else:
        columns = dict(zip(("path", "pid", "camid", "split"), zip(*rows, strict=True), strict=True))
        pq.write_table(pa.table({k: list(v) for k, v in columns.items()}), table)
    records, problems = read_people("table", tmp_path, options={"table": str(table)})
    assert labels(records) == {path: tuple(rest) for path, *rest in TABLE}
    first = 2 if suffix == "csv" else 1
    found = [(p.row - first, p.field, p.rule) for p in problems if p.row]
    assert found == [(2, "path", "repeated-path"), (6, "path", "bad-path"), (7, "split", "bad-label")]
    assert [p.rule for p in problems if not p.row] == (["no-identity"] if suffix == "csv" else [])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"path,pid,camid\n", "no column split"),
        ("t.csv", b"path,pid,pid,camid,split\n", "more than one column pid"),
        ("t.csv", b"path,pid,camid,split\n\xff,1,1,train\n", "UTF-8"),
        ("t.csv", b"", "no column path"),
        ("t.csv", b"path,pid,camid,split\nx.png,one,1,train\n", r"no usable image.*row 2, pid"),
        ("t.parquet", b"PAR1 and then nothing PAR1", "damaged"),
        ("t.xlsx", b"", "unknown kind of table"),
    ],
)
def test_bad_tables_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_people("table", tmp_path, options={"table": str(tmp_path / name)})


def test_what_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(UserError, match="market1501"):
        read_people("giraffes", tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        read_people("viper", tmp_path / "nowhere")
    with pytest.raises(UserError, match="no usable image"):
        read_people("viper", tmp_path)
    with pytest.raises(UserError, match=r"layout viper: option giraffe: unknown: did you mean split"):
        read_people("viper", tmp_path, options={"giraffe": 1})
    write(tmp_path, "1/a_c1.png", "2/a_c1.png")
    with pytest.raises(UserError, match="has 2 people to train on, 2 cannot be held out"):
        read_people("folders", tmp_path, holdout=2)


def test_annotations_are_found_by_the_records_name(tmp_path):
    write(tmp_path, "1/a_c1.png", "2/a_c1.png")
    (tmp_path / "mask").mkdir()
    mask = np.zeros((16, 8), np.uint8)
    (tmp_path / "mask" / "0002_c1_2_a_c1.png").write_bytes(encode_png(mask))
    (tmp_path / "keypoints.csv").write_text(
        "name:keypoints_y:keypoints_x\n0001_c1_1_a_c1.png: " + str([3] * 18) + ": " + str([2] * 18) + "\n"
    )
    records, problems = read_people("folders", tmp_path)
    by_pid = {r.pid: r for r in records}
    assert len(records) == 2  # the folder mask is no person
    assert by_pid[2].mask == "mask/0002_c1_2_a_c1.png"
    assert by_pid[1].mask is None
    assert by_pid[1].keypoints[0].tolist() == [2, 3]
    assert {"missing-mask", "missing-keypoints"} <= set(rules(problems))


def test_a_person_on_both_sides_and_counts_are_reported(tmp_path):
    root = tmp_path / "root"
    write(root, "train/1/a_c1.png", "train/2/b_c1.png", "query/2/c_c1.png", "gallery/2/d_c2.png")
    report = prepare_people("folders", root, tmp_path / "out", size=(16, 8), options={})
    assert report.splits["query"]["people"] == 1
    assert report.problems == {"person-train-test": 1}
    assert "person 2 is in the training folder too" in report.examples["person-train-test"]
    assert "Market-1501" not in report.summary()
    people = PackedPeople.open(tmp_path / "out" / "packed")
    assert sorted(zip(people.pids.tolist(), people.splits.tolist(), strict=True)) == [
        (1, "train"),
        (2, "gallery"),
        (2, "query"),
        (2, "train"),
    ]
    with pytest.raises(UserError, match="layout folders"):
        prepare_people("viper", root, tmp_path / "out", size=(16, 8))


def test_official_counts_are_compared(tmp_path):
    write(tmp_path, "1/a_c1.png")
    records, _ = read_people("folders", tmp_path)
    assert check_counts("folders", records, "x") == []
    assert [p.field for p in check_counts("viper", records * 632, "x")] == ["query", "gallery"]
