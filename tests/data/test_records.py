"""The manifest: what is written is read, same records give same bytes, bad values are refused by row."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bad_inputs import mutate
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from reposer.data.records import read_manifest, write_manifest
from reposer.errors import UserError
from reposer.structures import PersonRecord


def record(number: int = 0, **changes: Any) -> PersonRecord:
    keypoints = np.arange(36, dtype=np.float32).reshape(18, 2) + number / 4
    keypoints[number % 18] = np.nan
    name = f"{number + 2:04d}_c1s1_000451_03.jpg"
    first = PersonRecord(
        name=name,
        path=f"bounding_box_train/{name}",
        pid=number + 2,
        camid=1,
        split="train",
        width=64,
        height=128,
        sha256=f"{number:064x}",
        parsing=f"parsing/{number}.png",
        mask=None,
        keypoints=keypoints,
    )
    return replace(first, **changes)


def assert_equal(found: list[PersonRecord], wanted: list[PersonRecord]) -> None:
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        for field in fields(PersonRecord):
            x, y = getattr(a, field.name), getattr(b, field.name)
            if field.name == "keypoints" and x is not None and y is not None:
                assert x.dtype == np.float32
                np.testing.assert_array_equal(x, y)
            else:
                assert x == y


def test_round_trip_and_equal_bytes(tmp_path: Path):
    records = [record(i) for i in range(50)] + [record(60, keypoints=None, parsing=None, mask="mask/é.png")]
    write_manifest(tmp_path / "a", records)
    write_manifest(tmp_path / "b", list(records))
    assert_equal(read_manifest(tmp_path / "a"), records)
    hashes = {hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in "ab"}
    assert len(hashes) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_clothes_are_a_column_only_where_some_are_known(tmp_path: Path):
    """Other data sets keep the manifests they had, byte for byte; -1 is an outfit nobody knows."""
    dressed = [record(0, clothes=3), record(1)]
    write_manifest(tmp_path / "a", dressed)
    assert pq.read_table(tmp_path / "a")["clothes"].to_pylist() == [3, -1]
    assert_equal(read_manifest(tmp_path / "a"), dressed)
    write_manifest(tmp_path / "b", [record()])
    assert "clothes" not in pq.read_table(tmp_path / "b").column_names
    assert read_manifest(tmp_path / "b")[0].clothes == -1
    with pytest.raises(UserError, match="row 1: clothes -2"):
        write_manifest(tmp_path / "c", [record(clothes=-2)])


def test_every_nan_has_the_same_bytes(tmp_path: Path):
    other = record()
    odd = np.array([0x7FC00001], np.uint32).view(np.float32)  # another NaN
    assert other.keypoints is not None
    other.keypoints[np.isnan(other.keypoints)] = odd
    write_manifest(tmp_path / "a", [record()])
    write_manifest(tmp_path / "b", [other])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_other_programs_can_read_it(tmp_path: Path):
    write_manifest(tmp_path / "a", [record(1)])
    row = pq.read_table(tmp_path / "a").to_pylist()[0]
    assert row["name"] == "0003_c1s1_000451_03.jpg"
    assert len(row["keypoints"]) == 36
    assert row["keypoints"][4:6] == [4.25, 5.25]
    assert pq.read_metadata(tmp_path / "a").metadata[b"reposer.schema_version"] == b"1"


NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="/\\:"),
    max_size=40,
).map(lambda text: f"x{text}.jpg")  # any name that every system can hold


@settings(max_examples=60, deadline=None)
@given(
    keypoints=hnp.arrays(np.float32, (18, 2), elements=st.floats(-1e6, 1e6, width=32)),
    pid=st.integers(-1, 2**31 - 1),
    split=st.sampled_from(["train", "val", "query", "gallery"]),
    name=NAMES,
)
def test_round_trip_of_anything(tmp_path_factory: pytest.TempPathFactory, keypoints, pid, split, name):
    wanted = [record(name=name, path=f"folder/{name}", pid=pid, split=split, keypoints=keypoints)]
    path = tmp_path_factory.mktemp("m") / "manifest.parquet"
    write_manifest(path, wanted)
    assert_equal(read_manifest(path), wanted)


BAD = {
    "path": ["../a.jpg", "/etc/passwd", "a/../../b", "C:\\a.jpg", "a\0b", "", "a\\b", "./a"],
    "parsing": ["../a.png", "/a.png", ""],
    "mask": ["..", "a//b"],
    "name": ["", "a/b.jpg", "..", "a\nb"],
    "split": ["", "Train", "test"],
    "pid": [-2, 2**31],
    "camid": [-1],
    "width": [0, -5],
    "height": [0],
    "sha256": ["", "0" * 63, "G" * 64, "A" * 64],
    "keypoints": [np.zeros((17, 2), np.float32), np.full((18, 2), np.inf, np.float32)],
}


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in BAD.items() for v in values], ids=str)
def test_bad_values_are_refused_by_row_and_field(tmp_path: Path, field: str, value: object):
    with pytest.raises(UserError, match=rf"row 2: {field}"):
        write_manifest(tmp_path / "a", [record(1), record(2, **{field: value})])
    assert not (tmp_path / "a").exists()


def test_half_a_joint_is_refused(tmp_path: Path):
    half = record()
    assert half.keypoints is not None
    half.keypoints[4, 1] = np.nan
    with pytest.raises(UserError, match="row 1: keypoints"):
        write_manifest(tmp_path / "a", [half])


def test_a_name_twice_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"row 3.*row 1"):
        write_manifest(tmp_path / "a", [record(1), record(2), record(1, path="other.jpg")])


def _tampered(file: Path, **columns: Any) -> None:
    """The manifest of two records with some columns replaced, written by another program."""
    write_manifest(file, [record(1), record(2)])
    table = pq.read_table(file)
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        field = table.schema.field(name)
        table = table.set_column(place, field, pa.array(values, field.type))
    pq.write_table(table, file)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("path", ["a.jpg", "../../etc/passwd"]),
        ("parsing", [None, "/etc/passwd"]),
        ("mask", [None, "..\\a.png"]),
        ("keypoints", [None, [1.0] * 35]),
        ("keypoints", [None, [None] * 36]),
        ("split", ["train", "TRAIN"]),
        ("pid", [5, -7]),
    ],
)
def test_hostile_manifests_are_refused(tmp_path: Path, column: str, values: list[Any]):
    _tampered(tmp_path / "a", **{column: values})
    with pytest.raises(UserError, match=rf"row 2: {column}"):
        read_manifest(tmp_path / "a")


def test_other_files_are_refused(tmp_path: Path):
    path = tmp_path / "a"
    with pytest.raises(UserError, match="no such file"):
        read_manifest(path)
    for data in (b"", b"PAR1", b"PAR1" * 100, b"{}", bytes(1000)):
        path.write_bytes(data)
        with pytest.raises(UserError, match="no Parquet file"):
            read_manifest(path)
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(UserError, match="no manifest"):
        read_manifest(path)
    write_manifest(path, [record()])
    table = pq.read_table(path)
    newer = {**table.schema.metadata, b"reposer.schema_version": b"2"}
    pq.write_table(table.replace_schema_metadata(newer), path)
    with pytest.raises(UserError, match="schema version 2, expected 1"):
        read_manifest(path)
    pq.write_table(table.drop_columns(["mask"]), path)
    with pytest.raises(UserError, match="columns"):
        read_manifest(path)


def test_damaged_manifests_never_crash(tmp_path: Path):
    path = tmp_path / "a"
    write_manifest(path, [record(i) for i in range(20)])
    data, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(150):
        path.write_bytes(mutate(data, rng))
        with suppress(UserError):
            read_manifest(path)
