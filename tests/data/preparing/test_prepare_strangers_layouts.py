"""Folders as people of this field have them: thirty small trees, each with the labels a person reads off it.

Every tree is also looked at by a dry run, which must tell the same people, and no file of it may be silent:
it is used, listed by its path, or lies in a folder that is listed.
"""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from reposer.data.layouts.folder_scan import walk_files
from reposer.data.packed import PackedPeople
from reposer.data.pairs import read_pairs_csv
from reposer.data.preparing.prepare import look_at_people, prepare_people
from reposer.data.records import AnnotationProblem, read_manifest
from reposer.errors import UserError
from reposer.evaluation.reidentification import evaluate_reid
from reposer.rendered.dataset import write_rendered_dataset
from reposer.structures import FeatureSet

RNG = np.random.default_rng(7)
Labels = dict[str, tuple[int, int, str]]


def picture(path: Path, kind: str = "") -> None:
    """A random picture, JPEG unless its suffix or ``kind`` says otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    formats = {".png": "PNG", ".bmp": "BMP", ".webp": "WEBP", ".tif": "TIFF", ".gif": "GIF"}
    image = Image.fromarray(RNG.integers(0, 256, (16, 8, 3), np.uint8))
    image.save(path, format=kind or formats.get(path.suffix.lower(), "JPEG"))


def mask(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.pad(np.full((12, 4), 255, np.uint8), 2)).save(path, format="PNG")


def tree(root: Path, paths) -> None:
    for path in paths:
        picture(root / path)


def market(root: Path) -> Labels:
    labels = {
        "bounding_box_train/0002_c1s1_000451_03.jpg": (2, 1, "train"),
        "bounding_box_train/0007_c3s1_000001_01.JPG": (7, 3, "train"),
        "query/0003_c2s1_000001_00.jpg": (3, 2, "query"),
        "bounding_box_test/0003_c5s2_000001_00.jpg.jpg": (3, 5, "gallery"),
        "bounding_box_test/-1_c1s1_000001_00.jpg": (-1, 1, "gallery"),
        "bounding_box_test/0000_c1s1_000001_00.jpg": (0, 1, "gallery"),
    }
    tree(root, [*labels, "gt_bbox/0003_c5s2_000001_00.jpg"])
    (root / "readme.txt").write_text("x")
    return labels


def market_queries_in_gallery(root: Path) -> Labels:
    labels = {
        "bounding_box_train/0002_c1s1_000451_03.jpg": (2, 1, "train"),
        "query/0003_c2s1_000001_00.jpg": (3, 2, "query"),
        "bounding_box_test/0003_c2s1_000001_00.jpg": (3, 2, "gallery"),
        "bounding_box_test/0003_c5s2_000001_00.jpg": (3, 5, "gallery"),
    }
    tree(root, labels)
    return labels


def duke(root: Path) -> Labels:
    labels = {
        "bounding_box_train/0001_c2_f0046182.JPG": (1, 2, "train"),
        "bounding_box_train/0001_c3_f0046182.jpeg": (1, 3, "train"),
        "query/0002_c8_f1.jpg": (2, 8, "query"),
        "bounding_box_test/7140_c6_f0125000.png": (7140, 6, "gallery"),
    }
    tree(root, labels)
    return labels


def _msmt(root: Path, train: str, test: str, suffix: str, lists: str, val: bool) -> Labels:
    name = "{0:04d}/{0:04d}_000_{1:02d}_0303morning_0008_0" + suffix
    labels, lines = {}, {"train": [], "query": [], "gallery": []} | ({"val": []} if val else {})
    for kind, folder, pid, camid, split, number in (
        *(("train", train, 0, 1, "train", 1), ("val", train, 1, 15, "train", 2)),
        *(("query", test, 0, 1, "query", 1042), ("gallery", test, 0, 12, "gallery", 1042)),
    ):
        if kind in lines:
            place = name.format(pid, camid)
            lines[kind].append(f"{place} {pid}")
            labels[f"{folder}/{place}"] = (number, camid, split)
    tree(root, labels)
    for kind, rows in lines.items():
        (root / f"list_{kind}{lists}").write_text("\n".join(rows) + "\n")
    return labels


def msmt_v1(root: Path) -> Labels:
    return _msmt(root, "train", "test", ".jpg", ".txt", True)


def msmt_v2(root: Path) -> Labels:
    return _msmt(root, "mask_train_v2", "mask_test_v2", ".jpg", ".txt", True)


def msmt_v2_strange(root: Path) -> Labels:
    return _msmt(root, "mask_train_v2", "mask_test_v2", ".jpeg", "", False)


def msmt_as_market(root: Path) -> Labels:
    labels = {
        "bounding_box_train/0000_c1_0030.jpg": (1, 1, "train"),
        "bounding_box_train/0001_c15_0031.jpg": (2, 15, "train"),
        "query/0000_c3_0000.jpg": (1042, 3, "query"),
        "bounding_box_test/0000_c4_0001.jpg": (1042, 4, "gallery"),
    }
    tree(root, labels)
    return labels


def _cuhk(root: Path, suffix: str) -> Labels:
    labels = {
        f"images_detected/1_001_1_01{suffix}": (1001, 1, "train"),
        f"images_detected/2_001_1_01{suffix}": (2001, 1, "query"),
        f"images_detected/2_001_2_06{suffix}": (2001, 2, "gallery"),
    }
    tree(root, labels)
    return labels


def cuhk_new(root: Path) -> Labels:
    labels = _cuhk(root, ".png")
    cells = np.empty((3, 1), object)
    cells[:, 0] = [path.rpartition("/")[2] for path in labels]
    index = {"train_idx": [[1]], "query_idx": [[2]], "gallery_idx": [[3]]}
    scipy.io.savemat(root / "cuhk03_new_protocol_config_detected.mat", {"filelist": cells, **index})
    return labels


def cuhk_classic(root: Path) -> Labels:
    labels = _cuhk(root, ".jpg")
    names = [[path.rpartition("/")[2], 0, 0] for path in labels]
    splits = [{"train": names[:1], "query": names[1:2], "gallery": names[2:]}]
    (root / "splits_classic_detected.json").write_text(json.dumps(splits))
    return labels


def cuhk_folders(root: Path) -> Labels:
    labels = {
        "bounding_box_train/0003_c1_21.png": (3, 1, "train"),
        "query/0004_c2_1.PNG": (4, 2, "query"),
        "bounding_box_test/0004_c1_9.jpg": (4, 1, "gallery"),
    }
    tree(root, labels)
    return labels


def viper(root: Path) -> Labels:
    labels = {"cam_a/000_45.bmp": (1, 1, "train"), "cam_b/000_90.BMP": (1, 2, "train")}
    labels |= {"cam_a/001_00.bmp": (2, 1, "query"), "cam_b/001_90.bmp": (2, 2, "gallery")}
    tree(root, labels)
    return labels


def veri(root: Path) -> Labels:
    labels = {
        "image_train/0001_c001_00016450_0.jpg": (1, 1, "train"),
        "image_query/0002_c014_00016450_0.jpg": (2, 14, "query"),
        "image_test/0002_c002_00016450_0.jpg": (2, 2, "gallery"),
    }
    tree(root, labels)
    return labels


def ltcc(root: Path) -> Labels:
    labels = {
        "train/000_1_c9_015833.png": (1, 9, "train"),
        "train/000_2_c12_015834.png": (1, 12, "train"),
        "query/094_1_c1_015833.png": (95, 1, "query"),
        "test/094_3_c2_015833.png": (95, 2, "gallery"),
    }
    tree(root, labels)
    (root / "info").mkdir()
    (root / "info" / "cloth-change_id_train.txt").write_text("0\n")
    return labels


def ltcc_from_zero(root: Path) -> Labels:
    """Outfits counted from 0."""
    labels = {
        "train/001_0_c9_015833.png": (1, 9, "train"),
        "train/001_1_c12_015834.png": (1, 12, "train"),
        "query/094_0_c1_015833.png": (94, 1, "query"),
        "test/094_2_c2_015833.png": (94, 2, "gallery"),
    }
    tree(root, labels)
    return labels


def ltcc_as_folder(root: Path) -> Labels:
    labels = {
        "train/014_1_c9_015833.png": (14, 9, "train"),
        "query/094_1_c1_015833.png": (94, 1, "query"),
        "test/094_3_c2_015833.png": (94, 2, "gallery"),
    }
    tree(root, labels)
    return labels


def _prcc(root: Path, base: str) -> Labels:
    labels = {
        f"{base}train/001/A_cropped_rgb001.jpg": (1, 1, "train"),
        f"{base}train/001/C_cropped_rgb001.jpg": (1, 3, "train"),
        f"{base}test/A/002/cropped_rgb001.jpg": (2, 1, "gallery"),
        f"{base}test/B/002/cropped_rgb001.jpg": (2, 2, "query"),
        f"{base}test/C/002/cropped_rgb001.jpg": (2, 3, "query"),
    }
    tree(root, [*labels, f"{base}val/001/A_cropped_rgb009.jpg"])
    return labels


def prcc(root: Path) -> Labels:
    return _prcc(root, "rgb/")


def prcc_itself(root: Path) -> Labels:
    return _prcc(root, "")


def prcc_as_folder(root: Path) -> Labels:
    labels = {
        f"train/00{p}/{c}_cropped_rgb001.jpg": (p, n, "train")
        for p in (1, 2)
        for n, c in ((1, "A"), (3, "C"))
    }
    tree(root, labels)
    return labels


def prid(root: Path) -> Labels:
    labels = {
        f"cam_{c}/person_{p:04d}/0001.png": (p, n, "train") for p in (1, 2) for n, c in ((1, "a"), (2, "b"))
    }
    tree(root, labels)
    return labels


def camera_in_person(root: Path) -> Labels:
    labels = {f"{p}/cam{c}/{i}.jpg": (p, c, "train") for p in (3, 4) for c in (1, 2) for i in (1, 2)}
    tree(root, labels)
    return labels


def train_valid(root: Path) -> Labels:
    labels = {"train/anna/1_c1.jpg": (1, 1, "train"), "valid/bert/1_c1.jpg": (2, 1, "val")}
    tree(root, labels)
    return labels


def train_validation_probe_gallery(root: Path) -> Labels:
    labels = {
        "Train/1/1_c1.jpg": (1, 1, "train"),
        "validation/2/1_c1.jpg": (2, 1, "val"),
        "probe/3/1_c1.jpg": (3, 1, "query"),
        "gallery/3/1_c2.jpg": (3, 2, "gallery"),
    }
    tree(root, labels)
    return labels


def train_val_test_gallery(root: Path) -> Labels:
    """Nobody knows what "test" is beside a gallery and no queries: it is listed."""
    labels = {"train/1/1_c1.jpg": (1, 1, "train"), "val/2/1_c1.jpg": (2, 1, "val")}
    labels["gallery/3/1_c2.jpg"] = (3, 2, "gallery")
    tree(root, [*labels, "test/3/1_c1.jpg"])
    return labels


def train_all(root: Path) -> Labels:
    """As the pytorch baseline prepares Market-1501: train_all is train and val once more."""
    labels = {"train/1/0001_c1s1_1.jpg": (1, 1, "train"), "val/2/0002_c1s1_1.jpg": (2, 1, "val")}
    labels |= {"query/3/0003_c1s1_1.jpg": (3, 1, "query"), "gallery/3/0003_c2s1_1.jpg": (3, 2, "gallery")}
    tree(root, [*labels, "train_all/1/0001_c1s1_1.jpg", "multi-query/3/0003_c1s1_2.jpg"])
    return labels


def mixed_suffixes(root: Path) -> Labels:
    """JPEG inside counts whatever the name is; TIFF and GIF are listed."""
    kinds = {"1/a_c1.jfif": "JPEG", "1/b_c1": "JPEG", "1/c_c1.heic": "JPEG", "1/d_c1.jpg": "JPEG"}
    kinds |= {"2/e_c1.webp": "WEBP", "2/f_c1.tif": "PNG", "2/g_c1.tif": "TIFF", "2/h_c1.gif": "GIF"}
    for path, kind in kinds.items():
        picture(root / path, kind)
    return {path: (int(path[0]), 1, "train") for path in kinds if path[2] < "g"}


def linked_person(root: Path) -> Labels:
    tree(root, ["anna/1_c1.jpg", ".store/b/1_c1.jpg"])
    os.symlink(".store/b", root / "bert", target_is_directory=True)
    picture(root.parent / "outside" / "1_c1.jpg")
    os.symlink(root.parent / "outside", root / "carl", target_is_directory=True)
    os.symlink(root, root / "dora", target_is_directory=True)
    return {"anna/1_c1.jpg": (1, 1, "train"), "bert/1_c1.jpg": (2, 1, "train")}


def nfd_names(root: Path) -> Labels:
    path = unicodedata.normalize("NFD", "Renée/élan_c2.jpg")
    tree(root, [path])
    return {path: (1, 2, "train")}


def nfd_labels(root: Path) -> Labels:
    path = unicodedata.normalize("NFD", "Renée/élan_c2.jpg")
    tree(root, [path])
    (root / "who.csv").write_text(
        "Path;PID\n.\\" + unicodedata.normalize("NFC", path).replace("/", "\\") + ";5.0\n"
    )
    return {path: (5, 2, "train")}


def masks_beside(root: Path) -> Labels:
    labels = {
        f"{person}/{i}_c1.jpg": (n, 1, "train") for n, person in ((1, "anna"), (2, "bert")) for i in (1, 2)
    }
    tree(root, labels)
    for path in labels:
        for folder in ("masks", "schp"):
            mask(root / folder / f"{path[:-4]}.png")
    return labels


def masks_in_splits(root: Path) -> Labels:
    labels = {"train/1/1_c1.jpg": (1, 1, "train"), "query/2/1_c1.jpg": (2, 1, "query")}
    labels["test/2/1_c2.jpg"] = (2, 2, "gallery")
    tree(root, labels)
    for folder in ("train/masks", "query/schp", "test/OpenPose", "masks"):
        mask(root / folder / "1_c1.png")
    return labels


def plain_masks(root: Path) -> Labels:
    return masks_beside(root)


def counted_from_zero(root: Path) -> Labels:
    labels = {f"train/{p}/1_c1.jpg": (p + 1, 1, "train") for p in range(3)}
    labels |= {"query/3/1_c1.jpg": (4, 1, "query"), "test/3/1_c2.jpg": (4, 2, "gallery")}
    tree(root, labels)
    return labels


def comma_names(root: Path) -> Labels:
    labels = {f"Doe, Jane/{i}_c1.jpg": (1, 1, "train") for i in (1, 2)} | {'"Q"/1_c1.jpg': (2, 1, "train")}
    labels = {p: (2 if p[0] == "D" else 1, c, s) for p, (_, c, s) in labels.items()}  # '"' sorts before D
    tree(root, labels)
    for path in labels:
        mask(root / "mask" / f"{path[:-4]}.png")
    return labels


def windows_table(root: Path) -> Labels:
    labels = {"a/1.jpg": (1, 1, "train"), "b/1.jpg": (2, 1, "query"), "b/2.jpg": (2, 2, "gallery")}
    tree(root, labels)
    rows = [("PATH", "Pid", "CamID", "Split")]
    rows += [
        (".\\" + p.replace("/", "\\"), f"{n}.0", f"{c}.0", s.replace("gallery", "Test"))
        for p, (n, c, s) in labels.items()
    ]
    (root / "list.csv").write_text("\r\n".join("\t".join(row) for row in rows), encoding="utf-8-sig")
    return labels


FOLDER = "folders"
LAYOUTS: dict[str, tuple[Callable[[Path], Labels], str, dict, dict[str, int]]] = {
    # make, layout, options, rules of problems (official-count and no-camera aside)
    "market": (market, "market1501", {}, {"unread-folder": 1, "unread-file": 1}),
    "market, queries in the gallery": (market_queries_in_gallery, "market1501", {}, {}),
    "duke": (duke, "dukemtmc", {}, {}),
    "msmt v1": (msmt_v1, "msmt17", {}, {}),
    "msmt v2": (msmt_v2, "msmt17", {}, {}),
    "msmt v2, strange": (msmt_v2_strange, "msmt17", {}, {"missing-list": 1}),
    "msmt as market": (msmt_as_market, "msmt17", {}, {}),
    "cuhk03 new": (cuhk_new, "cuhk03", {}, {}),
    "cuhk03 classic": (cuhk_classic, "cuhk03", {"protocol": "classic"}, {}),
    "cuhk03 folders": (cuhk_folders, "cuhk03_np", {}, {}),
    "viper": (viper, "viper", {"split": 0}, {}),
    "veri": (veri, "veri", {}, {}),
    "veri as a folder": (veri, FOLDER, {"identity": "^([0-9]+)_"}, {}),
    "ltcc": (ltcc, "ltcc", {}, {"unread-folder": 1}),
    "ltcc from 0": (ltcc_from_zero, "ltcc", {}, {}),
    "ltcc as a folder": (ltcc_as_folder, FOLDER, {"identity": "^([0-9]+)_"}, {}),
    "prcc": (prcc, "prcc", {}, {"unread-folder": 1}),
    "prcc, rgb itself": (prcc_itself, "prcc", {}, {"unread-folder": 1}),
    "prcc as a folder": (prcc_as_folder, FOLDER, {"camera": "^([ABC])_"}, {}),
    "prid": (prid, FOLDER, {"identity": "/person_([0-9]+)", "camera": "cam_([ab])/"}, {}),
    "cameras in people": (camera_in_person, FOLDER, {"identity": "^([0-9]+)/", "camera": "/cam([0-9])/"}, {}),
    "train, valid": (train_valid, FOLDER, {}, {}),
    "Train, validation, probe, gallery": (train_validation_probe_gallery, FOLDER, {}, {}),
    "train, val, test, gallery": (train_val_test_gallery, FOLDER, {}, {"unread-folder": 1}),
    "train_all": (train_all, FOLDER, {}, {"unread-folder": 2}),
    "mixed suffixes": (mixed_suffixes, FOLDER, {}, {"wrong-extension": 4, "format": 2}),
    "linked person": (linked_person, FOLDER, {}, {"link-outside": 1, "link-loop": 1, "hidden": 1}),
    "NFD names": (nfd_names, FOLDER, {}, {}),
    "NFD names, NFC labels": (nfd_labels, FOLDER, {"labels": "who.csv"}, {}),
    "plain masks": (plain_masks, FOLDER, {}, {"unread-folder": 2}),
    "masks in splits": (masks_in_splits, FOLDER, {}, {"unread-folder": 4}),
    "counted from 0": (counted_from_zero, FOLDER, {"zero_based": True}, {}),
    "commas and quotes": (comma_names, FOLDER, {}, {}),
    "Windows table": (windows_table, "table", {"table": "list.csv"}, {}),
}
_ASIDE = {"official-count", "no-camera", "copy"}


def rules(report) -> dict[str, int]:
    return {rule: count for rule, count in report.problems.items() if rule not in _ASIDE}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_labels_that_a_person_reads_off(tmp_path: Path, name: str):
    make, layout, options, expected = LAYOUTS[name]
    root = tmp_path / "root"
    root.mkdir()
    labels = make(root)
    options = {k: str(root / v) if k in ("labels", "table") else v for k, v in options.items()}
    before = sorted(os.listdir(tmp_path))
    dry = look_at_people(layout, root, options=options)
    assert sorted(os.listdir(tmp_path)) == before
    report = prepare_people(layout, root, tmp_path / "out", options=options, size=(16, 8))
    records = read_manifest(tmp_path / "out" / "manifest.parquet")
    assert {r.path: (r.pid, r.camid, r.split) for r in records} == labels
    assert rules(report) == expected
    assert dry.splits == report.splits
    assert rules(dry) == {rule: n for rule, n in expected.items() if rule != "wrong-extension"}
    listed = {line.split(",")[0] for line in (tmp_path / "out" / "problems.csv").read_text().splitlines()}
    known = {
        "who.csv",
        "list.csv",
        "mask",
        *(f for f in os.listdir(root) if "list_" in f or "cuhk03_" in f or "splits_" in f),
    }
    for folder, _, files in os.walk(root):
        for file in files:
            path = (Path(folder) / file).relative_to(root).as_posix()
            silent = (
                path not in labels
                and path not in listed
                and not any(path.startswith(f"{place}/") for place in {*listed, *known})
            )
            assert not silent or path in known or path.startswith("."), path


@pytest.mark.parametrize(
    ("links", "found", "loops"),
    [
        # two that lead to each other
        (
            {"a/x": "../b", "b/y": "../a"},
            ["a/1.jpg", "a/x/2.jpg", "b/2.jpg", "b/y/1.jpg"],
            ["a/x/y", "b/y/x"],
        ),
        # a round of three
        (
            {"a/x": "../b", "b/y": "../c", "c/z": "../a"},
            [
                *("a/1.jpg", "a/x/2.jpg", "a/x/y/3.jpg", "b/2.jpg", "b/y/3.jpg", "b/y/z/1.jpg"),
                *("c/3.jpg", "c/z/1.jpg", "c/z/x/2.jpg"),
            ],
            ["a/x/y/z", "b/y/z/x", "c/z/x/y"],
        ),
        # by way of a folder of the other
        (
            {"a/x": "../b/in", "b/in/y": "../../a"},
            ["a/1.jpg", "a/x/4.jpg", "b/2.jpg", "b/in/4.jpg", "b/in/y/1.jpg"],
            ["a/x/y", "b/in/y/x"],
        ),
        # back to what holds the folder that was passed
        ({"a/in/x": "../../b", "b/y": "../a"}, None, ["a/in/x/y", "b/y/in/x"]),
        # no loop: the same folder by two ways
        ({"a/x": "../b", "c/x": "../b"}, ["a/1.jpg", "a/x/2.jpg", "b/2.jpg", "c/3.jpg", "c/x/2.jpg"], []),
    ],
)
def test_links_that_lead_to_each_other_are_followed_once(tmp_path: Path, links, found, loops):
    tree(tmp_path, ["a/1.jpg", "b/2.jpg", *(["c/3.jpg"] if "c" in str(links) else [])])
    for link, target in links.items():
        for folder in (link.rpartition("/")[0], target.removeprefix("../") if target.endswith("in") else ""):
            (tmp_path / folder).mkdir(exist_ok=True)
        os.symlink(target, tmp_path / link, target_is_directory=True)
    if (tmp_path / "b" / "in").exists():
        picture(tmp_path / "b" / "in" / "4.jpg")
    problems: list[AnnotationProblem] = []
    paths = walk_files(tmp_path, problems)
    assert found is None or paths == found
    assert sorted((p.file, p.rule) for p in problems) == [(place, "link-loop") for place in loops]


def test_outfits_of_cloth_changing_sets(tmp_path: Path):
    sets = (
        ("ltcc", ltcc, [0, 1, 0, 2]),
        ("prcc", prcc, [0, 1, 0, 0, 1]),
        ("ltcc", ltcc_from_zero, [0, 1, 0, 2]),
    )
    for place, (name, make, expected) in enumerate(sets):
        root, out = tmp_path / f"{place}", tmp_path / f"{place}.out"
        make(root)
        prepare_people(name, root, out, size=(16, 8))
        people = PackedPeople.open(out / "packed")
        order = np.argsort(people.camids, kind="stable") if name == "prcc" else np.arange(4)
        found = dict(zip(people.names, people.clothes.tolist(), strict=True))
        assert sorted(found.values()) == sorted(expected)
        assert (people.clothes[order] >= 0).all()


def test_masks_given_by_option_are_no_people(tmp_path: Path):
    root = tmp_path / "root"
    labels = masks_beside(root)
    report = prepare_people(
        FOLDER, root, tmp_path / "out", size=(16, 8), mask=root / "masks", parsing=root / "schp"
    )
    assert report.splits["train"]["images"] == len(labels)
    assert report.annotations["mask"] == len(labels)
    assert look_at_people(FOLDER, root, mask=root / "masks").annotations["mask"] == len(labels)


def test_people_counted_from_zero_are_said(tmp_path: Path):
    counted_from_zero(tmp_path)
    report = look_at_people(FOLDER, tmp_path)
    assert report.problems == {"no-identity": 1, "person-zero": 1}
    assert "1 of train" in report.examples["person-zero"]
    assert "--zero-based" in report.examples["person-zero"]


def test_a_dry_run_counts_rows_of_key_points(tmp_path: Path):
    root = tmp_path / "root"
    tree(root, ["anna/1_c1.jpg", "anna/2_c1.jpg"])
    row = f"{[1] * 18}:{[1] * 18}"
    rows = ["name:keypoints_y:keypoints_x", f"anna_1_c1.jpg:{row}", f"other.jpg:{row}"]
    (root / "keypoints.csv").write_text("\n".join(rows) + "\n")
    report = look_at_people(FOLDER, root)
    assert report.annotations["keypoints"] == 1
    assert report.problems == {"missing-keypoints": 1, "unknown-image": 1}
    assert "other.jpg" in report.examples["unknown-image"]
    prepared = prepare_people(FOLDER, root, tmp_path / "out", size=(16, 8))
    assert (prepared.problems, prepared.annotations) == (report.problems, report.annotations)


def test_folder_names_that_disagree_with_the_numbers_of_their_files(tmp_path: Path):
    tree(tmp_path, [f"part{n % 2}/{n:04d}_c001_0001_0.jpg" for n in range(1, 7)])
    report = look_at_people(FOLDER, tmp_path)
    assert report.problems == {"names-disagree": 2}
    assert "3 numbers (0002, 0006)" in report.examples["names-disagree"]


def test_numbers_that_only_count_the_files_of_a_person_say_nothing(tmp_path: Path):
    tree(tmp_path, [f"{person}/{n:02d}_c1.jpg" for person in ("anna", "ben") for n in range(4)])
    assert look_at_people(FOLDER, tmp_path).problems == {}


@pytest.mark.parametrize(
    ("paths", "options", "words"),
    [
        (["image_train/0001_c001_00016450_0.jpg"], {}, r"lie in no folder.*--identity '\^\(\[0-9\]\+\)_'"),
        (["cam_a/person_1/1.png"], {}, "deeper than a person's folder.*with a /"),
        (["cam_a/person_1/1.png"], {"identity": "person_([0-9])"}, "matches the path"),
    ],
)
def test_what_to_do_is_said(tmp_path: Path, paths, options, words: str):
    tree(tmp_path, paths)
    with pytest.raises(UserError, match=words):
        look_at_people(FOLDER, tmp_path, options=options)


def test_a_camera_that_is_no_number_is_said(tmp_path: Path):
    tree(tmp_path, ["anna/front_1.jpg", "anna/back_1.jpg"])
    report = look_at_people(FOLDER, tmp_path, options={"camera": "^([a-z]+)_"})
    assert "matched 'back', neither a number nor a letter" in report.examples["no-camera"]


def test_copies_of_queries_share_their_annotations(tmp_path: Path):
    """Kept in the gallery, a query keeps its own mask; another picture of that name does not get it."""
    root = tmp_path / "root"
    market_queries_in_gallery(root)
    query, twin = "query/0003_c2s1_000001_00.jpg", "bounding_box_test/0003_c2s1_000001_00.jpg"
    mask(root / "mask" / "0003_c2s1_000001_00.png")
    assert prepare_people("market1501", root, tmp_path / "a", size=(16, 8)).annotations["mask"] == 1
    (root / twin).write_bytes((root / query).read_bytes())
    report = prepare_people("market1501", root, tmp_path / "b", size=(16, 8))
    assert report.annotations["mask"] == 2
    assert report.splits["gallery"]["images"] == 2


def test_a_comma_in_a_folder_fits_the_pair_list(tmp_path: Path):
    root = tmp_path / "root"
    comma_names(root)
    for path in (root / "mask").rglob("*.png"):
        other = root / "parsing" / path.relative_to(root / "mask")
        other.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 8), 5, np.uint8)).save(other)
    report = prepare_people(FOLDER, root, tmp_path / "out", size=(16, 8), pairs="parsing")
    assert report.pairs["train"] == 2
    people = PackedPeople.open(tmp_path / "out" / "packed")
    pairs, problems = read_pairs_csv(tmp_path / "out" / "pairs_train.csv", set(people.names))
    assert (len(pairs), problems) == (2, [])
    assert len({*people.names}) == 3


def test_a_test_split_without_queries_is_refused_by_row(tmp_path: Path):
    tree(tmp_path, ["1.jpg", "2.jpg"])
    (tmp_path / "t.csv").write_text("path,pid,camid,split\n1.jpg,1,1,train\n2.jpg,2,1,test\n")
    report = look_at_people("table", tmp_path, options={"table": str(tmp_path / "t.csv")})
    assert Counter(report.problems)["bad-label"] == 1
    assert "write gallery, or val" in report.examples["bad-label"]


def test_both_layouts_score_queries_that_stand_in_the_gallery_alike(tmp_path: Path):
    """Benchmarks keep their queries in the gallery: nobody is dropped, every reader scores alike."""
    root = tmp_path / "root"
    write_rendered_dataset(
        root, identities=6, test_identities=4, images_per_identity=6, size=(32, 16), seed=5
    )
    before = len(os.listdir(root / "bounding_box_test"))
    for path in (root / "query").glob("*.jpg"):
        shutil.copy(path, root / "bounding_box_test")
    prepare_people("market1501", root, tmp_path / "market", size=(32, 16))
    options = {"identity": "^(-?[0-9]+)_"}
    prepare_people(FOLDER, root, tmp_path / "folder", size=(32, 16), options=options)
    queries = len(os.listdir(root / "query"))
    found = {}
    for name in ("market", "folder"):
        people = PackedPeople.open(tmp_path / name / "packed")
        sets = []
        for split in ("query", "gallery"):
            rows = np.flatnonzero(people.splits == split)
            pixels = np.asarray(people.images[rows], np.float32).reshape(len(rows), -1)
            order = np.lexsort((pixels.sum(1), people.camids[rows], people.pids[rows]))
            names = tuple(people.names[row] for row in rows[order])
            sets.append(
                FeatureSet(pixels[order], people.pids[rows][order], people.camids[rows][order], names)
            )
        assert [len(one) for one in sets] == [queries, before + queries]
        found[name] = sets
    for market, folder in zip(*found.values(), strict=True):
        np.testing.assert_array_equal(market.features, folder.features)
        np.testing.assert_array_equal(market.pids, folder.pids)
        np.testing.assert_array_equal(market.camids, folder.camids)
    scores = {name: evaluate_reid(*sets) for name, sets in found.items()}
    assert scores["market"].values == scores["folder"].values
    # by hand: of one person and camera nothing counts, the query's copy neither
    query, gallery = found["market"]
    q, g = (x.features / np.linalg.norm(x.features, axis=1, keepdims=True) for x in (query, gallery))
    first = []
    for i, feature in enumerate(q):
        same = (gallery.pids == query.pids[i]) & (gallery.camids == query.camids[i])
        order = np.argsort(np.where(same, np.inf, 2 - 2 * g @ feature), kind="stable")
        first.append(gallery.pids[order[0]] == query.pids[i])
    assert scores["market"].values.rank1 == pytest.approx(np.mean(first))


@pytest.mark.parametrize(
    ("trained", "tested", "queries", "rule"),
    [
        ("train", "val", False, "person-train-test"),
        ("train", "val", True, "person-train-val"),
        ("train", "query", False, "person-train-test"),
        ("train", "gallery", True, "person-train-test"),
        ("val", "query", False, "person-train-test"),
    ],
)
def test_people_on_both_sides_of_any_two_splits_are_listed(tmp_path, trained, tested, queries, rule):
    """Every third image of six people lies on the other side; the seventh is on one side only."""
    root = tmp_path / "in"
    for person in range(1, 7):
        for image in range(6):
            picture(root / (trained if image % 3 else tested) / f"{person}" / f"{person}_{image}.jpg")
    picture(root / trained / "7" / "7_0.jpg")
    if queries:
        picture(root / "query" / "90" / "90_0.jpg")
    report = prepare_people("folders", root, tmp_path / "out", size=(16, 8))
    found = {r: n for r, n in report.problems.items() if r.startswith("person-train")}
    assert found == {rule: 6}
    looked = look_at_people("folders", root).problems
    assert {r: n for r, n in looked.items() if r.startswith("person-train")} == {rule: 6}


@pytest.mark.parametrize("cameras", [True, False, "one number"])
def test_queries_that_can_find_nobody_are_said(tmp_path, cameras):
    """Person 1 is in the gallery by another camera, 2 by the query's alone, 3 not at all."""
    root = tmp_path / "in"
    seen = {"query": {1: 1, 2: 2, 3: 1}, "gallery": {1: 2, 2: 2, 4: 1}}
    for split, people in seen.items():
        for person, camera in people.items():
            tail = f"_c{3 if cameras == 'one number' else camera}" if cameras else ""
            picture(root / split / f"{person}" / f"{split[0]}{person}{tail}.jpg")
    told = [
        "1 of 3 queries are of people whom the gallery does not show",
        "1 of 3 queries are of people whom the gallery shows in the query's camera alone",
    ]
    for report in (
        prepare_people("folders", root, tmp_path / "out", size=(16, 8)),
        look_at_people("folders", root),
    ):
        notes = [note for note in report.notes if "queries are of people" in note]
        assert [note.partition(":")[0] for note in notes] == (told if cameras is True else told[:1])
        assert "query/3/q3" in notes[0]
        assert all(note in str(report) for note in notes)
    more = {True: "_c4", False: "", "one number": "_c3"}[cameras]
    for person in (2, 3):
        picture(root / "gallery" / f"{person}" / f"more{person}{more}.jpg")
    assert not any("queries are" in note for note in look_at_people("folders", root).notes)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("set.zip", r"set\.zip: is a packed file, not a folder: unpack it and give the folder"),
        ("set.tar.gz", "is a packed file"),
        ("a.jpg", r"a\.jpg: is a file, not a folder: give the folder that holds it"),
        ("nowhere", r"nowhere: no such folder: check the path"),
    ],
)
def test_a_file_where_a_folder_is_wanted_says_what_it_is(tmp_path, name, told):
    if name != "nowhere":
        (tmp_path / name).write_bytes(b"PK")
    picture(tmp_path / "root/0001/a.png")
    for layout in ("market1501", "folders"):
        with pytest.raises(UserError, match=told):
            look_at_people(layout, tmp_path / name)
    with pytest.raises(UserError, match=told):
        look_at_people("folders", tmp_path / "root", mask=tmp_path / name)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "is a folder, no table of keypoints: .*`reposer annotate --keypoints openpose:.*`"),
        ('[{"image_id": "a.jpg"}]', "`reposer annotate --keypoints alphapose:FILE` reads this one"),
        ("file_id,img_h,img_w\n", "`reposer annotate --keypoints comma:FILE` reads this one"),
        ("x,y\n", r"the first line must be name:keypoints_y:keypoints_x$"),
    ],
)
def test_keypoints_of_another_program_say_which_command_reads_them(tmp_path, content, told):
    picture(tmp_path / "root/0001/a.png")
    place = tmp_path / "poses"
    place.mkdir() if content is None else place.write_text(content)
    with pytest.raises(UserError, match=told):
        look_at_people("folders", tmp_path / "root", keypoints=place)


@pytest.mark.parametrize("end", ["gif", "tif"])
def test_a_map_of_another_format_is_not_sent_to_jpeg(tmp_path, end):
    picture(tmp_path / "root/0001/a.png")
    picture(tmp_path / f"root/parsing/0001/a.{end}")
    prepare_people("folders", tmp_path / "root", tmp_path / "out", size=(16, 8))
    text = (tmp_path / "out/problems.csv").read_text()
    assert "save it as a gray PNG or as NPY" in text
    assert "JPEG, PNG, WebP or BMP, or get it again" not in text
