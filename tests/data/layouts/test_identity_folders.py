"""Any folder of people: identities from folders, names, a table or nowhere; annotations by path; masks."""

from __future__ import annotations

import csv
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from reposer.data.keypoints import write_keypoints_csv
from reposer.data.label_files import read_mask
from reposer.data.layouts.readers import read_people
from reposer.data.packed import PackedPeople
from reposer.data.preparing.prepare import look_at_people, prepare_people
from reposer.data.records import read_manifest
from reposer.errors import UserError
from reposer.images import ImageError, encode_png

RNG = np.random.default_rng(0)


def write(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(encode_png(RNG.integers(0, 256, (16, 8, 3), np.uint8)))


def labels(root: Path, **options) -> tuple[dict[str, tuple[int, int, str]], Counter]:
    records, problems = read_people("folders", root, options=options)
    return {r.path: (r.pid, r.camid, r.split) for r in records}, Counter(p.rule for p in problems)


def test_identities_in_names(tmp_path: Path):
    write(tmp_path, "anna-cam1-1.png", "trip/anna-cam2-1.png", "bert-cam1-1.png", "stray.png", ".hidden.png")
    write(tmp_path, "parsing/anna-cam1-1.png", "trip/.git/anna-cam1-1.png")
    found, rules = labels(tmp_path, identity="^([a-z]+)-", camera=r"cam(\d)")
    assert found == {
        **{"anna-cam1-1.png": (1, 1, "train"), "trip/anna-cam2-1.png": (1, 2, "train")},
        **{"bert-cam1-1.png": (2, 1, "train")},
    }
    assert rules["bad-name"] == 1


def test_numbers_in_names_stay_numbers(tmp_path: Path):
    write(tmp_path, "train/p007_1.png", "train/p012_1.png", "query/p30_1.png", "gallery/-1_1.png")
    found, _ = labels(tmp_path, identity="^p?(-?[0-9]+)_")
    assert {path: value[0] for path, value in found.items()} == {
        **{"train/p007_1.png": 7, "train/p012_1.png": 12, "query/p30_1.png": 30, "gallery/-1_1.png": -1}
    }
    assert [found[p][2] for p in ("query/p30_1.png", "gallery/-1_1.png")] == ["query", "gallery"]


def test_one_number_in_two_spellings_is_said(tmp_path: Path):
    root = tmp_path / "root"
    write(root, "7/a.png", "0007/b.png", "8/c.png")
    report = prepare_people("folders", root, tmp_path / "out", size=(16, 8))
    assert report.splits["train"]["people"] == 2
    assert report.problems == {"names-disagree": 1, "no-camera": 1}
    assert "7/a.png, pid: 0007 and 7 count as one person, 7" in report.examples["names-disagree"]
    assert "Warnings" in report.summary()


@pytest.mark.parametrize("names", [("1.png", "2.png"), ("1.png", "1.png")])
def test_people_whose_names_differ_in_case_alone_are_said(tmp_path: Path, names: tuple[str, str]):
    """By the table, since the folders of this test may lie on a disk that ignores case."""
    root = tmp_path / "root"
    write(root, f"x/{names[0]}", f"y/{names[1]}", "z/3.png")
    table = tmp_path / "labels.csv"
    table.write_text(f"path,pid\nx/{names[0]},Anna\ny/{names[1]},anna\nz/3.png,bert\n")
    look = look_at_people("folders", root, options={"labels": str(table)})
    report = prepare_people("folders", root, tmp_path / "out", size=(16, 8), options={"labels": str(table)})
    for told in (look, report):
        assert told.splits["train"]["people"] == 3
        assert told.problems["names-disagree"] == 1
        assert "Anna and anna differ in letter case alone and count as 2 people" in told.summary()


def test_folders_that_differ_in_case_alone_are_said(tmp_path: Path):
    write(tmp_path, "Anna/1.png", "anna/2.png")
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("this disk ignores case")
    assert labels(tmp_path)[1]["names-disagree"] == 1


def test_a_person_in_two_unicode_forms_is_one(tmp_path: Path):
    root, name = tmp_path / "root", "zo\u00eb"
    apart = unicodedata.normalize("NFD", name)
    assert apart != name
    write(root, f"train/{name}/1.png", f"query/{apart}/2.png", "gallery/anna/3.png")
    found, _ = labels(root)
    assert {path: pid for path, (pid, _, _) in found.items()} == {
        **{f"train/{name}/1.png": 2, f"query/{apart}/2.png": 2, "gallery/anna/3.png": 1}
    }
    report = prepare_people("folders", root, tmp_path / "out", size=(16, 8))
    assert report.problems["person-train-test"] == 1


def test_paths_that_become_one_name_stay_several_images(tmp_path: Path):
    """x/y_z_p5, x_y/z_p5 and x_y_z/p5 are all 0005_c0_x_y_z_p5; maps are found for each by its path."""
    root, out = tmp_path / "root", tmp_path / "out"
    paths = ["x/y_z_p5.png", "x_y/z_p5.png", "x_y_z/p5.png", "x/p6.png"]
    write(root, *paths)
    for number, path in enumerate(paths):
        (root / "parsing" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "parsing" / path).write_bytes(encode_png(np.full((16, 8), number + 2, np.uint8)))
    report = prepare_people("folders", root, out, options={"identity": "p([0-9])"}, size=(16, 8))
    assert report.problems == {"no-camera": 1}
    packed = PackedPeople.open(out / "packed")
    assert len(set(packed.names)) == 4
    found = {record.path: record.name for record in read_manifest(out / "manifest.parquet")}
    for number, path in enumerate(paths):
        assert (packed.parsing[packed.index(found[path])] == number + 2).all()


def test_a_folder_that_no_path_can_name_costs_only_itself(tmp_path: Path):
    """Windows would read a drive in the first, a device in the second, and change the others."""
    root = tmp_path / "root"
    odd = ["a:b", "CON", "blank ", "dot."]
    write(root, "1/a.png", "2/b.png", *(f"{name}/c.png" for name in odd))
    for dry in (True, False):
        if dry:
            report = look_at_people("folders", root)
        else:
            report = prepare_people("folders", root, tmp_path / "out", size=(16, 8))
        assert report.splits["train"]["people"] == 2
        assert report.problems == {"bad-path": 4, "no-camera": 1}
        assert "left out: rename the folder" in report.examples["bad-path"]
    rows = csv.DictReader((tmp_path / "out/problems.csv").read_text().splitlines())
    assert {row["file"] for row in rows if row["rule"] == "bad-path"} == set(odd)


def test_blank_lines_of_a_table_are_no_rows(tmp_path: Path):
    root = tmp_path / "root"
    write(root, "a.png", "b.png")
    table = tmp_path / "who.csv"
    table.write_text("path,pid,camid,split\r\na.png,1,1,train\r\n\r\n,,,\r\nb.png,x,1,train\r\n\r\n \r\n")
    records, problems = read_people("folders", root, options={"labels": str(table)})
    assert [r.path for r in records] == ["a.png", "b.png"]
    assert [p.rule for p in problems] == ["renumbered"]
    records, problems = read_people("table", root, options={"table": str(table)})
    assert [r.path for r in records] == ["a.png"]
    listed = [(p.row, p.field, p.rule) for p in problems if p.file == "who.csv"]
    assert listed == [(5, "pid", "bad-label")]


def test_identities_in_a_table(tmp_path: Path):
    write(tmp_path, "a.png", "b/b.png", "c_c4.png", "d.png", "e.png")
    table = tmp_path / "who.csv"
    rows = ["pid,path,camid,note", "Anna,a.png,2,x", "Bert,b/b.png,,", "Anna,c_c4.png", "Eve,nowhere.png,1"]
    rows += ["Anna,a.png,2", ",d.png,2", "Eve,d.png,two", "Eve,../d.png,1"]
    table.write_text("\n".join(rows) + "\n")
    records, problems = read_people("folders", tmp_path, options={"labels": str(table)})
    assert {r.path: (r.pid, r.camid) for r in records} == {
        "a.png": (1, 2),
        "b/b.png": (2, 0),
        "c_c4.png": (1, 4),
    }
    found = sorted((p.row, p.field, p.rule) for p in problems if p.file == "who.csv")
    assert found == [
        *((6, "path", "repeated-path"), (7, "pid", "bad-label")),
        *((8, "camid", "bad-label"), (9, "path", "bad-path")),
    ]
    assert {"missing", "no-camera"} <= {p.rule for p in problems}
    assert [p.file for p in problems if p.rule == "unlabeled"] == ["e.png"]  # d.png stands in a bad row


def table_of(tmp_path: Path, text: str) -> dict[str, str]:
    (tmp_path / "who.csv").write_text(text)
    return {"labels": str(tmp_path / "who.csv")}


SPLIT_FOLDERS = ("train/a.png", "query/b.png", "gallery/c.png")


def test_a_table_without_splits_leaves_them_to_the_folders(tmp_path: Path):
    write(tmp_path / "root", *SPLIT_FOLDERS)
    rows = [f"{path},7,{n}" for n, path in enumerate(SPLIT_FOLDERS)]
    options = table_of(tmp_path, "\n".join(["path,pid,camid", *rows]))
    found, _ = labels(tmp_path / "root", **options)
    assert {path: split for path, (_, _, split) in found.items()} == {
        path: path.partition("/")[0] for path in SPLIT_FOLDERS
    }


def test_a_table_s_splits_go_before_those_of_the_folders(tmp_path: Path):
    write(tmp_path / "root", *SPLIT_FOLDERS)
    text = "path,pid,camid,split\ntrain/a.png,7,1,gallery\nquery/b.png,7,2,\ngallery/c.png,7,3,gallery\n"
    records, problems = read_people("folders", tmp_path / "root", options=table_of(tmp_path, text))
    assert {r.path: r.split for r in records} == {
        **{"train/a.png": "gallery", "query/b.png": "query", "gallery/c.png": "gallery"}
    }
    (found,) = [p for p in problems if p.rule == "splits-disagree"]
    assert (found.row, found.field) == (2, "split")
    assert "train/a.png is gallery here and lies in the folder of train (1 such rows)" in found.message


def test_a_blank_split_is_no_training_image(tmp_path: Path):
    write(tmp_path / "root", "a.png", "b.png")
    text = "path,pid,camid,split\na.png,7,1,query\nb.png,7,2,\n"
    records, problems = read_people("folders", tmp_path / "root", options=table_of(tmp_path, text))
    assert [r.path for r in records] == ["a.png"]
    assert [(p.row, p.field, p.rule) for p in problems if p.file == "who.csv"] == [(3, "split", "bad-label")]


@pytest.mark.parametrize("nobody", ["nan", "NaN", "null", "None", "<NA>", "-2", "-17"])
def test_what_programs_write_for_no_person_is_none(tmp_path: Path, nobody: str):
    write(tmp_path / "root", "a.png", "b.png", "c.png")
    options = table_of(tmp_path, f"path,pid,camid\na.png,7,1\nb.png,{nobody},1\nc.png,-1,1\n")
    records, problems = read_people("folders", tmp_path / "root", options=options)
    assert [(r.path, r.pid) for r in records if r.pid > 0] == [("a.png", 7)]
    assert [(p.row, p.field, p.rule) for p in problems if p.file == "who.csv"] == [(3, "pid", "bad-label")]


def test_a_row_with_more_cells_than_the_header_is_not_read_shifted(tmp_path: Path):
    write(tmp_path / "root", "a.png", "b.png")
    text = "path,score,pid,camid\na.png,0,93,1,1\nb.png,0.93,7,2,,\n"
    records, problems = read_people("folders", tmp_path / "root", options=table_of(tmp_path, text))
    assert [(r.path, r.pid, r.camid) for r in records] == [("b.png", 7, 2)]
    (found,) = [p for p in problems if p.file == "who.csv"]
    assert (found.row, found.rule) == (2, "bad-label")
    assert "has 5 cells, the header 4" in found.message
    text = "path,pid,camid,split\na.png,0,93,1,train\nb.png,7,2,train,\n"
    (tmp_path / "who.csv").write_text(text)
    records, problems = read_people("table", tmp_path / "root", options={"table": str(tmp_path / "who.csv")})
    assert [(r.path, r.pid) for r in records] == [("b.png", 7)]
    assert [(p.row, p.field) for p in problems if p.file == "who.csv"] == [(2, "row")]


def test_junk_and_distractors_stay_when_somebody_has_a_name(tmp_path: Path):
    write(tmp_path, "train/0001/a.png", "train/new_guy/a.png", "query/0001/b.png")
    write(tmp_path, *(f"gallery/{person}/c.png" for person in ("0001", "0000", "-1", "00-1")))
    records, problems = read_people("folders", tmp_path)
    assert {r.path.split("/")[1]: r.pid for r in records} == {
        **{"0001": 1, "new_guy": 2, "0000": 0, "-1": -1, "00-1": -1}
    }
    (found,) = [p for p in problems if p.rule == "renumbered"]
    assert found.message.startswith("new_guy is no number: all people are numbered anew")


@pytest.mark.parametrize(
    ("train", "query", "gallery"),
    [
        ("train_set", "query_set", "test_set"),
        ("Training-Images", "probe images", "gallery_imgs"),
        ("bbox_train", "query", "bbox_test"),
        ("training_set", "probe_set", "gallery_set"),
    ],
)
def test_splits_are_known_by_the_word_in_their_folders_names(
    tmp_path: Path, train: str, query: str, gallery: str
):
    write(tmp_path, f"{train}/0001/a.png", f"{query}/0001/b.png", f"{gallery}/0001/c.png")
    found, _ = labels(tmp_path)
    assert [split for _, _, split in (found[path] for path in sorted(found))] == [
        {train: "train", query: "query", gallery: "gallery"}[path.split("/")[0]] for path in sorted(found)
    ]


def test_exact_names_of_splits_go_before_others(tmp_path: Path):
    write(tmp_path, "train/0001/a.png", "train_data/0001/b.png", "train_all/0001/c.png")
    found, _ = labels(tmp_path)
    assert list(found) == ["train/0001/a.png"]


@pytest.mark.parametrize("options", [{"identity": "^([0-9]+)_"}, {"anonymous": True}, {}])
def test_splits_one_folder_deeper_are_not_all_trained_on(tmp_path: Path, options: dict):
    write(tmp_path, *(f"Market/{folder}/0001_c1.png" for folder in ("bounding_box_train", "query")))
    with pytest.raises(
        UserError, match=r"Market holds the splits \(bounding_box_train, query\).*give .*Market"
    ):
        read_people("folders", tmp_path, options=options)
    (tmp_path / "who.csv").write_text("path,pid\nMarket/query/0001_c1.png,1\n")
    with pytest.raises(UserError, match="Market holds the splits"):
        read_people("folders", tmp_path, options={"labels": str(tmp_path / "who.csv")})
    (tmp_path / "who.csv").write_text("path,pid,split\nMarket/query/0001_c1.png,1,gallery\n")
    found, _ = labels(tmp_path, labels=str(tmp_path / "who.csv"))
    assert {split for _, _, split in found.values()} == {"gallery"}


@pytest.mark.parametrize("name", ["@eaDir", "lost+found", "$RECYCLE.BIN", "__MACOSX"])
def test_a_folder_of_the_system_s_is_no_person(tmp_path: Path, name: str):
    write(tmp_path, "0001/a.png", f"{name}/b.png")
    found, rules = labels(tmp_path)
    assert list(found) == ["0001/a.png"]
    assert rules["unread-folder"] == 1


def test_anonymous_people(tmp_path: Path):
    root = tmp_path / "root"
    write(root, "b.png", "deep/er/a.png")
    report = prepare_people("folders", root, tmp_path / "out", options={"anonymous": True}, size=(16, 8))
    assert report.splits["train"] == {"images": 2, "people": 2, "cameras": 1, "junk": 0, "distractors": 0}
    assert report.pairs["train"] == 0
    summary = report.summary()
    assert "identities    unknown" in summary
    assert "cameras       unknown: every image has camera 0" in summary
    assert report.problems == {"no-camera": 1}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"identity": "("}, r"identity '\(': no regular expression"),
        ({"identity": "p[0-9]+"}, "identity 'p.*has no group"),
        ({"identity": "(a)", "anonymous": True}, "identity and anonymous: two sources"),
        ({"identity": "(zebra)"}, "no usable image.*finds no identity"),
        ({"camera": "cam"}, "camera 'cam': has no group"),
        ({}, "lie in no folder of a person.*--anonymous"),
        ({"labels": "LATIN"}, "is not UTF-8"),
        ({"labels": "COLUMNS"}, "no column path.*path, pid are wanted"),
        ({"labels": "TWICE"}, "more than one column pid"),
        ({"labels": "who.txt"}, r"who\.txt: no such file"),
        ({"labels": "EMPTY"}, "no column path"),
        ({"giraffe": 1}, "giraffe"),
    ],
)
def test_what_cannot_be_used_is_one_line(tmp_path: Path, options: dict, words: str):
    write(tmp_path, "a.png", "b.png")
    tables = {"LATIN": b"path,pid\na.png,Ren\xe9\n", "COLUMNS": b"file;pid\na.png;1\n", "EMPTY": b""}
    tables["TWICE"] = b"path,pid,pid\na.png,1,2\n"
    for name, content in tables.items():
        (tmp_path / f"{name}.csv").write_bytes(content)
    if options.get("labels") in tables:
        options = {"labels": str(tmp_path / f"{options['labels']}.csv")}
    elif "labels" in options:
        options = {"labels": str(tmp_path / options["labels"])}
    with pytest.raises(UserError, match=words) as error:
        read_people("folders", tmp_path, options=options)
    assert "\n" not in str(error.value)


def test_images_that_belong_to_no_folder_are_listed(tmp_path: Path):
    write(tmp_path, "1/a_c1.png", "1/deep/b_c1.png", "loose_c1.png")
    found, rules = labels(tmp_path)
    assert list(found) == ["1/a_c1.png"]
    assert rules == {"no-folder": 2}


def test_annotations_beside_the_images_are_found_by_path(tmp_path: Path):
    """As a tool that knows no identities writes them: mirrored, flattened, or under the data set's name."""
    root = tmp_path / "root"
    write(root, "anna/a.png", "anna/b.png", "bert/a.png", "bert/b.png")
    places = {"anna/a": 1, "anna_b": 2, "0002_c0_bert_a": 3, "bert/b": 4}
    for place, label in places.items():
        (root / "parsing" / place).parent.mkdir(parents=True, exist_ok=True)
        (root / "parsing" / f"{place}.png").write_bytes(encode_png(np.full((16, 8), label, np.uint8)))
    names = ("anna/a.png", "anna_b.png", "0002_c0_bert_a.png", "bert/b.png")
    poses = {name: np.full((18, 2), n, np.float32) for n, name in enumerate(names, start=1)}
    write_keypoints_csv(root / "keypoints.csv", poses)
    report = prepare_people("folders", root, tmp_path / "out", size=(16, 8))
    assert report.annotations == {"parsing": 4, "mask": 0, "keypoints": 4, "posed": 4}
    assert report.pairs["train"] == 4
    people = PackedPeople.open(tmp_path / "out" / "packed")
    assert people.parsing.reshape(4, -1).mean(axis=1).tolist() == [1, 2, 3, 4]
    assert people.keypoints[:, 0, 0].tolist() == [1, 2, 3, 4]


def test_two_rows_for_one_image(tmp_path: Path):
    write(tmp_path, "anna/a.png")
    poses = {name: np.full((18, 2), 1, np.float32) for name in ("anna/a.png", "anna_a.png", "x/y.png")}
    write_keypoints_csv(tmp_path / "keypoints.csv", poses)
    records, problems = read_people("folders", tmp_path)
    assert records[0].keypoints is not None
    found = Counter(p.rule for p in problems)
    assert found == {"no-camera": 1, "bad-keypoints": 1, "unknown-image": 1}


def test_pairs_of_images_that_have_maps(tmp_path: Path):
    root = tmp_path / "root"
    write(root, "1/a_c1.png", "1/b_c1.png", "1/c_c1.png", "2/a_c1.png")
    for name in ("1_a_c1", "1_b_c1", "2_a_c1"):
        (root / "parsing").mkdir(exist_ok=True)
        (root / "parsing" / f"{name}.png").write_bytes(encode_png(np.full((16, 8), 5, np.uint8)))
    assert prepare_people("folders", root, tmp_path / "a", size=(16, 8)).pairs["train"] == 0
    report = prepare_people("folders", root, tmp_path / "b", size=(16, 8), pairs="parsing")
    assert report.pairs["train"] == 2
    with pytest.raises(UserError, match="torso, parsing"):
        prepare_people("folders", root, tmp_path / "c", pairs="none")


def masks(tmp_path: Path, **arguments) -> tuple[PackedPeople, dict[str, int]]:
    """Three people: mask and map, map only, neither; the mask is the left half, the map the upper half."""
    root = tmp_path / "root"
    if not root.is_dir():
        write(root, "1/a_c1.png", "1/b_c1.png", "2/a_c1.png")
        upper, left = np.zeros((16, 8), np.uint8), np.zeros((16, 8), bool)
        upper[:8], left[:, :4] = 5, True
        for folder, name, array in (
            *(("parsing", "1_a_c1", upper), ("parsing", "1_b_c1", upper)),
            *(("mask", "1_a_c1", left),),
        ):
            (root / folder).mkdir(exist_ok=True)
            (root / folder / f"{name}.png").write_bytes(encode_png(array))
    out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
    prepare_people("folders", root, out, size=(16, 8), **arguments)
    people = PackedPeople.open(out / "packed")
    return people, people.header["mask_sources"]


def test_what_a_mask_is_made_of(tmp_path: Path):
    people, sources = masks(tmp_path)
    assert sources == {"mask": 1, "ones": 1, "parsing": 1}
    assert people.mask.reshape(3, -1).mean(axis=1).tolist() == [0.5, 0.5, 1]
    people, sources = masks(tmp_path, mask_source="parsing")
    assert sources == {"ones": 1, "parsing": 2}
    assert people.mask[0, :8].all()
    assert not people.mask[0, 8:].any()
    people, sources = masks(tmp_path, mask_source="union")
    assert sources == {"ones": 1, "parsing": 1, "union": 1}
    assert people.mask[0].mean() == 0.75
    with pytest.raises(UserError, match="mask, parsing, union"):
        masks(tmp_path, mask_source="guess")


def test_soft_masks_are_cut_at_half(tmp_path: Path):
    soft = np.array([[0, 127, 128, 255]], np.uint8).repeat(4, 0)
    (tmp_path / "soft.png").write_bytes(encode_png(soft))
    np.save(tmp_path / "soft.npy", soft)
    (tmp_path / "two.png").write_bytes(encode_png(soft // 128))  # 0 and 1 stay what they are
    with pytest.raises(ImageError, match="more than two values"):
        read_mask(tmp_path / "soft.png")
    for name in ("soft.png", "soft.npy", "two.png"):
        assert read_mask(tmp_path / name, soft=True)[0].tolist() == [False, False, True, True]


def test_a_folder_with_soft_masks(tmp_path: Path):
    root = tmp_path / "root"
    write(root, "1/a_c1.png")
    (root / "mask").mkdir()
    (root / "mask" / "1_a_c1.png").write_bytes(encode_png(np.arange(128, dtype=np.uint8).reshape(16, 8) * 2))
    assert prepare_people("folders", root, tmp_path / "a", size=(16, 8)).problems == {"bad-mask": 1}
    assert prepare_people("folders", root, tmp_path / "b", size=(16, 8), soft_masks=True).problems == {}
    assert PackedPeople.open(tmp_path / "b" / "packed").mask.mean() == 0.5
