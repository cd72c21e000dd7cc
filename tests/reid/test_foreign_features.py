"""Feature files of other Re-ID code: the same scores as in .npz, every hostile one refused in a line."""

from __future__ import annotations

import io
import pickle
import re
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
import torch
from hostile_models import MARKER, STATES, Evil, evil, torch_file

from reposer.errors import UserError
from reposer.evaluation.reid_protocols import find_protocol
from reposer.evaluation.reidentification import Expansion
from reposer.reid.features import read_features, write_features
from reposer.reid.search import NO_CAMERA
from reposer.structures import FeatureSet
from reposer.workflows.reid_evaluation import ReidOptions, score_files, score_splits


def _sets():
    rng = np.random.default_rng(0)
    sets = {}
    for split, count, low in (("query", 12, 1), ("gallery", 40, -1)):
        pids = rng.integers(low, 9, count)
        features = np.random.default_rng(9).normal(size=(10, 6))[pids] + rng.normal(size=(count, 6))
        names = tuple(f"{split}_{i}.jpg" for i in range(count))
        sets[split] = FeatureSet(features.astype(np.float32), pids, rng.integers(1, 4, count), names)
    return sets


SETS = _sets()
PREFIXED = {
    f"{split}_{key}": getattr(s, field)
    for split, s in SETS.items()
    for key, field in (("f", "features"), ("label", "pids"), ("cam", "camids"))
}
COLUMNS = {
    "features": np.concatenate([s.features for s in SETS.values()]),
    "pid": np.concatenate([s.pids for s in SETS.values()]),
    "camid": np.concatenate([s.camids for s in SETS.values()]),
}
SPLIT = [split for split, s in SETS.items() for _ in range(len(s))]


def _mat(folder, **change):
    path = folder / "pytorch_result.mat"
    scipy.io.savemat(path, {k: v for k, v in (PREFIXED | change).items() if v is not None})
    return [path]


def _mat_as_matlab_writes_it(folder):
    """Numbers as doubles, labels as columns."""
    columns = {k: v.astype(float) if v.ndim == 2 else v.astype(float)[:, None] for k, v in PREFIXED.items()}
    return _mat(folder, **columns)


def _pt(folder):
    torch.save({k: torch.from_numpy(v) for k, v in PREFIXED.items()}, folder / "result.pt")
    return [folder / "result.pt"]


def _pt_of_lists(folder):
    lists = {k: torch.from_numpy(v) if v.ndim == 2 else v.tolist() for k, v in PREFIXED.items()}
    torch.save(lists, folder / "result.pth")
    return [folder / "result.pth"]


def _pt_of_columns(folder):
    torch.save({k: torch.from_numpy(v) for k, v in COLUMNS.items()} | {"split": SPLIT}, folder / "c.pt")
    return [folder / "c.pt"]


def _npy(folder, name="f.csv", mark=",", header="camid,split,pid", order=(1, 2, 0)):
    np.save(folder / "f.npy", COLUMNS["features"])
    rows = zip(COLUMNS["pid"], COLUMNS["camid"], SPLIT, strict=True)
    lines = [mark.join(str(row[i]) for i in order) for row in rows]
    text = "\n".join(([header.replace(",", mark)] if header else []) + lines)
    (folder / name).write_text(text, encoding="utf-8-sig")
    return [folder / "f.npy"] + ([] if name.startswith("f.") else [folder / name])


def _npy_by_split(folder):
    paths = []
    for split, s in SETS.items():
        np.save(folder / f"{split}.npy", np.asfortranarray(s.features.astype(">f8")))
        rows = [f"{pid} {camid}" for pid, camid in zip(s.pids, s.camids, strict=True)]
        (folder / f"{split}.txt").write_text("\n".join(rows))
        paths.append(folder / f"{split}.npy")
    return paths


def _npz(folder):
    np.savez(folder / "result.npz", **PREFIXED)
    return [folder / "result.npz"]


MAKERS = {
    "npz": _npz,
    "mat": _mat,
    "mat-doubles": _mat_as_matlab_writes_it,
    "pt": _pt,
    "pt-lists": _pt_of_lists,
    "pt-columns": _pt_of_columns,
    "npy-csv": _npy,
    "npy-semicolons": lambda f: _npy(f, mark=";"),
    "npy-txt": lambda f: _npy(f, "f.txt", " ", "", (0, 1, 2)),
    "npy-named-labels": lambda f: _npy(f, "labels.tsv", "\t"),
    "npy-by-split": _npy_by_split,
}


@pytest.mark.parametrize("kind", MAKERS)
def test_the_scores_are_those_of_the_same_features_in_npz(tmp_path, kind):
    options = ReidOptions(methods=("euclidean",))
    write_features(tmp_path / "same.npz", SETS)
    expected = score_files([tmp_path / "same.npz"], None, options).results["euclidean"]
    files = MAKERS[kind](tmp_path)
    result = score_files(files, None, options).results["euclidean"]
    assert asdict(result.values) == asdict(expected.values)
    assert result.counts == expected.counts
    assert expected.counts["gallery_junk"] > 0 < expected.counts["gallery_distractors"]


def test_without_cameras_every_image_is_its_own(tmp_path):
    files = _mat(tmp_path, query_cam=None, gallery_cam=None)
    report = score_files(files, None, ReidOptions(methods=("euclidean",)))
    assert report.notes[0] == NO_CAMERA


def test_each_file_takes_an_array_and_its_labels_as_one(tmp_path):
    files = _npy(tmp_path, "labels.csv")
    report = score_splits(files * 2, None, ReidOptions(methods=("euclidean",)))
    assert report.results["euclidean"].deviations["rank1"] == 0
    with pytest.raises(UserError, match="one file is one split"):
        score_splits(files, None, ReidOptions(methods=("euclidean",)))


def test_multi_query_crops_of_the_baseline_are_a_split(tmp_path):
    names = {f"mquery_{key}": PREFIXED[f"query_{key}"] for key in ("f", "label", "cam")}
    sets = read_features(_mat(tmp_path, **names)[0])
    np.testing.assert_array_equal(sets["multi_query"].features, SETS["query"].features)


HOSTILE_PT = {
    **{name: (make, told) for name, (make, suffix, told) in STATES.items() if suffix == ".pth"},
    "sparse.pth": (STATES["sparse.pth"][0], "no dense tensor|more than tensors"),
    "nested.pth": (torch_file({"query_f": {"a": torch.zeros(1)}}), "is a dict, no tensor"),
    "list.pth": (torch_file([torch.zeros(1)]), "no dict of tensors"),
    "names.pth": (torch_file({"w": torch.zeros(1)}), "none of the keys query_f"),
    "lists-of-lists": (torch_file({"query_f": [[1.0], [2.0]]}), "a list of something else"),
    "a-long-number": (torch_file({"query_label": [2**70]}), "a number of more than 64 bits"),
    "long-texts": (torch_file({"split": ["x" * 100_000] + ["y"] * 100_000}), "texts of absurd length"),
    "evil-inside": (torch_file(lambda f: {"features": torch.eye(2), "pid": [evil(f)]}), "more than tensors"),
    "meta": (torch_file({"query_f": torch.zeros(10**7, device="meta")}), "dense tensor|more than tensors"),
    "half-a-set": (torch_file({"query_f": torch.eye(2)}), "no query_label"),
    "other-length": (torch_file({"query_f": torch.eye(2), "query_label": [1]}), "1 numbers for 2 features"),
    "fractions": (
        torch_file({"query_f": torch.eye(2), "query_label": torch.tensor([1, 1.5])}),
        "query_label: row 1: 1.5 is no whole number",
    ),
    "complex": (
        torch_file({"query_f": torch.eye(2).to(torch.complex64), "query_label": [1, 2]}),
        "values of type complex64",
    ),
    "two-sizes": (
        torch_file(
            {
                "query_f": torch.eye(2),
                "query_label": [1, 2],
                "gallery_f": torch.eye(3),
                "gallery_label": [1] * 3,
            }
        ),
        "sets of",
    ),
}


@pytest.mark.parametrize("name", HOSTILE_PT)
def test_hostile_torch_files_are_refused_in_one_line(tmp_path, name):
    make, told = HOSTILE_PT[name]
    (tmp_path / "f.pt").write_bytes(make(tmp_path))
    _refused(tmp_path / "f.pt", told)


def _saved(**content):
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, content)
    return buffer.getvalue()


HOSTILE_MAT = {
    "empty": (b"", "cannot be read"),
    "hdf5": (b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\x89HDF\r\n\x1a\n", "cannot be read"),
    "pickle": (pickle.dumps(Evil(print, "x")), "cannot be read"),
    "cut": (_saved(**PREFIXED)[:700], "cannot be read"),
    "cells": (_saved(query_f=np.array([{"a": 1}, "a"], object), query_label=[1, 2]), "cannot be read"),
    "struct": (_saved(query_f={"a": 1}, query_label=[1, 2]), "cannot be read"),
    "no-keys": (_saved(features=np.eye(2)), "none of the keys query_f"),
    "nan-label": (_saved(query_f=np.eye(2), query_label=[1, np.nan]), "row 1: nan is no whole number"),
}


@pytest.mark.parametrize("name", HOSTILE_MAT)
def test_hostile_mat_files_are_refused_in_one_line(tmp_path, name):
    data, told = HOSTILE_MAT[name]
    (tmp_path / "f.mat").write_bytes(data)
    _refused(tmp_path / "f.mat", told)


def _header(shape, kind="<f4"):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": kind, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


GOOD_LABELS = "1 1 query\n2 1 gallery\n"
HOSTILE_NPY = {
    "empty": (b"", GOOD_LABELS, "not a readable .npy file"),
    "claims": (_header((2**40, 2**10)), GOOD_LABELS, "in .* bytes"),
    "negative": (_header((-1, 2)), GOOD_LABELS, "in .* bytes|not a readable"),
    "pickle": (pickle.dumps(Evil(print, "x")), GOOD_LABELS, "not a readable .npy file"),
    "objects": ("objects", GOOD_LABELS, "holds pickled objects"),
    "text": (np.array([["a"], ["b"]]), GOOD_LABELS, "type <U1"),
    "flat": (np.ones(2), GOOD_LABELS, r"features of shape \(2,\)"),
    "no-labels": (np.eye(2), None, "no list of its labels"),
    "no-rows": (np.eye(2), "\n \n", "holds no row"),
    "few": (np.eye(2), "1 1 query\n", "1 rows of labels"),
    "uneven": (np.eye(2), "1 1 query\n2 1\n", "f.txt:2: 2 fields where 3"),
    "no-number": (np.eye(2), "1 1 query\nx 1 gallery\n", "f.txt:2: pid 'x'"),
    "long-number": (np.eye(2), f"1 1 query\n{'9' * 30} 1 gallery\n", "no whole number of 64 bits"),
    "longest-number": (np.eye(2), f"1 1 query\n{'9' * 9000} 1 gallery\n", "no whole number of 64 bits"),
    "no-split": (np.eye(2), "1 1\n2 1\n", "no column split"),
    "binary": (np.eye(2), b"\xff\xfe\x00", "not UTF-8"),
    "quotes": (np.eye(2), 'pid,camid,split\n1,1,"query\n', "not a readable table"),
    "no-pid": (np.eye(2), "pid,split\n,query\n2,gallery\n", "f.txt:2: pid ''"),
}


@pytest.mark.parametrize("name", HOSTILE_NPY)
def test_hostile_arrays_and_labels_are_refused_in_one_line(tmp_path, name):
    data, labels, told = HOSTILE_NPY[name]
    if isinstance(data, bytes):
        (tmp_path / "f.npy").write_bytes(data)
    else:
        array = np.array([[evil(tmp_path)]], object) if isinstance(data, str) else data
        np.save(tmp_path / "f.npy", array)
    if labels is not None:
        (tmp_path / "f.txt").write_bytes(labels if isinstance(labels, bytes) else labels.encode())
    _refused(tmp_path / "f.npy", told)


def _refused(path, told):
    with pytest.raises(UserError, match=told) as error:
        read_features(path)
    assert "\n" not in str(error.value)
    assert path.stem in str(error.value)
    assert not (path.parent / MARKER).exists()


def test_an_npz_of_other_names_is_told_what_it_holds(tmp_path):
    np.savez(tmp_path / "f.npz", qf=SETS["query"].features, **{"g\x1b[2J": SETS["gallery"].features})
    with pytest.raises(UserError, match=r"no column features, pid, split \(found: g\\x1b\[2J, qf\)"):
        read_features(tmp_path / "f.npz")


@pytest.mark.parametrize("protocol", ["prcc_same_clothes", "prcc_cross_clothes", "sysu_all", "sysu_indoor"])
def test_one_split_test_is_query_and_gallery_where_cameras_tell(tmp_path, protocol):
    people = np.repeat(np.arange(1, 9), 6)
    cameras = np.tile(np.arange(1, 7), 8)
    features = np.random.default_rng(3).normal(size=(48, 5)) + np.eye(9, 5)[people]
    rules = find_protocol(protocol, trials=1)
    parts = {split: np.isin(cameras, getattr(rules, f"{split}_cameras")) for split in ("query", "gallery")}
    columns = {"features": features, "pid": people, "camid": cameras}
    np.savez(tmp_path / "test.npz", **columns, split=np.full(48, "test"))
    split = np.select([parts["query"], parts["gallery"]], ["query", "gallery"], "")
    kept = split != ""
    np.savez(tmp_path / "f.npz", **{k: v[kept] for k, v in columns.items()}, split=split[kept])
    options = ReidOptions(methods=("euclidean",), protocol=rules)
    one, two = (score_files([tmp_path / name], None, options) for name in ("test.npz", "f.npz"))
    assert asdict(one.results["euclidean"].values) == asdict(two.results["euclidean"].values)
    assert 0 < one.results["euclidean"].values.mAP_step < 1
    twice = score_splits([tmp_path / "test.npz", tmp_path / "test.npz"], None, options)
    assert twice.results["euclidean"].values.rank1 == one.results["euclidean"].values.rank1
    with pytest.raises(UserError, match="split test: unknown"):
        score_files([tmp_path / "test.npz"], None, replace(options, protocol=find_protocol("market1501")))


def test_what_is_said_fits_the_numbers_that_were_given(tmp_path):
    write_features(tmp_path / "f.npz", SETS)
    shots = find_protocol("single_shot", shots=3, trials=2)
    options = ReidOptions(methods=("euclidean",), protocol=shots, expand=Expansion(999))
    report = score_files([tmp_path / "f.npz"], None, options)
    assert "3 random gallery images of each person" in report.protocol
    assert "one image" not in report.protocol
    counted = int((SETS["gallery"].pids != -1).sum())
    assert any(f"its {counted} nearest gallery images" in note for note in report.notes)


# ---- values that would be ranked in silence are named by file and row


def _changed(kind, folder, field, index, value):
    """Files of SETS with one value changed: of the query's row 3 or the gallery's row 5."""
    rows = {split: {f: getattr(s, f).copy() for f in ("features", "pids")} for split, s in SETS.items()}
    split, row = index
    rows[split][field][row] = value
    if kind == "mat":
        change = {f"{s}_f": part["features"] for s, part in rows.items()}
        return _mat(folder, **change, **{f"{s}_label": part["pids"] for s, part in rows.items()})
    columns = {"features": np.concatenate([part["features"] for part in rows.values()])}
    columns["pid"] = np.concatenate([part["pids"] for part in rows.values()])
    if kind == "npz":
        np.savez(folder / "f.npz", **columns, split=SPLIT, camid=COLUMNS["camid"])
        return [folder / "f.npz"]
    names = [f"{i}.jpg" for i in range(len(SPLIT))]
    np.save(folder / "f.npy", columns["features"])
    lines = zip(columns["pid"], COLUMNS["camid"], SPLIT, names, strict=True)
    (folder / "f.csv").write_text("\n".join(",".join(map(str, line)) for line in lines))
    return [folder / "f.npy"]


QUERY_ROW, GALLERY_ROW = ("query", 3), ("gallery", 5)
PLACES = {
    ("npz", "query"): r"f\.npz: row 3: ",
    ("npz", "gallery"): r"f\.npz: row 17: ",
    ("npy", "query"): r"f\.npy: row 3, 3\.jpg: ",
    ("npy", "gallery"): r"f\.npy: row 17, 17\.jpg: ",
    ("mat", "query"): r"pytorch_result\.mat: query row 3: ",
    ("mat", "gallery"): r"pytorch_result\.mat: gallery row 5: ",
}
UNUSABLE = [
    *(
        ("features", at, bad, "holds NaN or inf")
        for at in (QUERY_ROW, GALLERY_ROW)
        for bad in (np.nan, -np.inf)
    ),
    *(("features", at, 0, "is all zeros") for at in (QUERY_ROW, GALLERY_ROW)),
    *(
        ("pids", at, bad, f"person {bad} is below -1")
        for at in (QUERY_ROW, GALLERY_ROW)
        for bad in (-5, -2, -(2**62))
    ),
    *(("pids", QUERY_ROW, bad, f"person {bad} cannot be searched for") for bad in (0, -1)),
]


@pytest.mark.parametrize("kind", ["npz", "npy", "mat"])
@pytest.mark.parametrize(("field", "index", "value", "told"), UNUSABLE)
def test_a_row_that_cannot_be_scored_is_named_by_file_and_row(tmp_path, kind, field, index, value, told):
    files = _changed(kind, tmp_path, field, index, value)
    with pytest.raises(UserError, match=PLACES[kind, index[0]] + told) as error:
        score_files(files, None, ReidOptions(methods=("euclidean",)))
    assert "(1 such rows)" in str(error.value)


@pytest.mark.parametrize("value", [1e-30, 1e30])
def test_lengths_that_have_no_square_are_no_fault(tmp_path, value):
    files = _changed("npz", tmp_path, "features", GALLERY_ROW, value)
    assert score_files(files, None, ReidOptions(methods=("euclidean",))).results


def test_rows_that_are_not_compared_are_not_judged(tmp_path):
    """Training rows under a plain distance, zeros as they are, distractors and junk of the gallery."""
    train = {"features": np.full((2, 6), np.nan), "pid": np.array([1, 2]), "camid": np.array([1, 1])}
    columns = {name: np.concatenate([COLUMNS[name], train[name]]) for name in COLUMNS}
    np.savez(tmp_path / "f.npz", **columns, split=[*SPLIT, "train", "train"])
    score_files([tmp_path / "f.npz"], None, ReidOptions(methods=("euclidean",)))
    with pytest.raises(UserError, match=r"f\.npz: row 52: holds NaN or infinity \(2 such rows\)"):
        score_files([tmp_path / "f.npz"], None, ReidOptions())
    files = _changed("npz", tmp_path, "features", GALLERY_ROW, 0)
    score_files(files, None, ReidOptions(methods=("euclidean",), unit=False))


# ---- the words of splits, and columns that nobody reads


@pytest.mark.parametrize(
    "words",
    [
        ("query", "test"),
        ("probe", "test"),
        ("Query", " TEST "),
        ("query", "testing"),
        ("PROBE", "Gallery"),
    ],
)
@pytest.mark.parametrize("kind", ["npz", "npy", "two files"])
def test_splits_are_read_as_in_a_table_of_people(tmp_path, words, kind):
    said = [words[split == "gallery"] for split in SPLIT]
    options = ReidOptions(methods=("euclidean",))
    write_features(tmp_path / "same.npz", SETS)
    files = [tmp_path / "f.npz"]
    if kind == "npz":
        np.savez(files[0], **COLUMNS, split=said)
    elif kind == "npy":
        files = _npy(tmp_path)
        text = (tmp_path / "f.csv").read_text(encoding="utf-8-sig")
        text = text.replace("query", words[0]).replace("gallery", words[1])
        (tmp_path / "f.csv").write_text(text)
    else:
        files = [tmp_path / "b.npz", tmp_path / "a.npz"]
        for file, split in zip(files, ("gallery", "query"), strict=True):
            rows = np.array(SPLIT) == split
            columns = {name: values[rows] for name, values in COLUMNS.items()}
            np.savez(file, **columns, split=np.array(said)[rows])
    found, expected = (score_files(f, None, options) for f in (files, [tmp_path / "same.npz"]))
    assert asdict(found.results["euclidean"].values) == asdict(expected.results["euclidean"].values)


def test_test_beside_query_and_gallery_is_nobody_s(tmp_path):
    np.savez(tmp_path / "f.npz", **COLUMNS, split=[*SPLIT[:-1], "test"])
    with pytest.raises(UserError, match="split test: unknown"):
        score_files([tmp_path / "f.npz"], None, ReidOptions())


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ("pid,camera,split", "camera"),
        ("pid,Camera ID,split", "camera id"),
        ("pid,,split", r"\(no name\)"),
        ("pid,c\x1b[2J,split", r"c\\x1b\[2j"),
    ],
)
def test_columns_that_nothing_reads_are_named(tmp_path, caplog, header, told):
    files = _npy(tmp_path, header=header, order=(0, 1, 2))
    assert score_files(files, None, ReidOptions(methods=("euclidean",))).notes[0] == NO_CAMERA
    assert re.search(rf"f\.csv: not read: column {told}; known are pid, camid", caplog.text)


def test_unread_arrays_and_columns_of_other_files_are_named(tmp_path, caplog):
    columns = {
        "features": COLUMNS["features"],
        "pid": COLUMNS["pid"],
        "split": SPLIT,
        "cam": COLUMNS["camid"],
    }
    np.savez(tmp_path / "f.npz", **columns)
    torch.save({k: torch.from_numpy(v) if k != "split" else v for k, v in columns.items()}, tmp_path / "f.pt")
    pq.write_table(pa.table(columns | {"features": list(columns["features"])}), tmp_path / "f.parquet")
    for suffix in ("npz", "pt", "parquet"):
        caplog.clear()
        read_features(tmp_path / f"f.{suffix}")
        assert f"f.{suffix}: not read: column cam; known are" in caplog.text
    caplog.clear()
    write_features(tmp_path / "own.npz", SETS)
    read_features(tmp_path / "own.npz")
    assert not caplog.text


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ("pid,pid,split", "two columns pid"),
        ("pid,split,Split", "two columns split"),
        ("pid,pid,pid", "several columns pid"),
    ],
)
def test_a_column_twice_is_named(tmp_path, header, told):
    files = _npy(tmp_path, header=header, order=(0, 1, 2))
    with pytest.raises(UserError, match=rf"f\.csv:1: {told}: name every column once"):
        read_features(files[0])
