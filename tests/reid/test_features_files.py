"""Feature files: round trips, what other tools write, and every malformed file by its name."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reposer.errors import UserError
from reposer.reid.features import read_features, write_features
from reposer.structures import FeatureSet


def _sets():
    rng = np.random.default_rng(0)
    return {
        split: FeatureSet(
            rng.normal(size=(count, 5)).astype(np.float32),
            rng.integers(-1, 9, count),
            rng.integers(1, 4, count),
            tuple(f"{split}_{i}.jpg" for i in range(count)),
        )
        for split, count in (("query", 3), ("gallery", 8), ("train", 4))
    }


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_round_trip(tmp_path, suffix):
    sets = _sets()
    write_features(tmp_path / f"f{suffix}", sets)
    again = read_features(tmp_path / f"f{suffix}")
    assert list(again) == list(sets)
    for split, features in sets.items():
        np.testing.assert_array_equal(again[split].features, features.features)
        np.testing.assert_array_equal(again[split].pids, features.pids)
        np.testing.assert_array_equal(again[split].camids, features.camids)
        assert again[split].names == features.names


def test_another_tools_files(tmp_path):
    """Compressed float64 without names; Parquet with plain lists, mixed splits and further columns."""
    values = np.arange(12.0).reshape(4, 3)
    split = np.array(["query", "gallery", "query", "gallery"])
    np.savez_compressed(
        tmp_path / "a.npz", features=values, pid=[1, 1, 2, -1], camid=np.int16([1, 2, 1, 2]), split=split
    )
    table = {
        "features": values.tolist(),
        "pid": [1, 1, 2, -1],
        "camid": [1, 2, 1, 2],
        "split": split,
        "x": [0] * 4,
    }
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    for suffix in ("npz", "parquet"):
        sets = read_features(tmp_path / f"a.{suffix}")
        np.testing.assert_array_equal(sets["query"].features, values[[0, 2]])
        assert sets["gallery"].pids.tolist() == [1, -1]
        assert sets["gallery"].names == ("row 1", "row 3")
        assert sets["query"].features.dtype == np.float32


def test_without_a_column_of_cameras_they_are_unknown(tmp_path):
    np.savez(tmp_path / "a.npz", features=np.eye(2), pid=[1, 2], split=["query", "gallery"])
    pq.write_table(
        pa.table({"features": np.eye(2).tolist(), "pid": [1, 2], "split": ["query", "gallery"]}),
        tmp_path / "a.parquet",
    )
    for suffix in ("npz", "parquet"):
        assert [s.camids.tolist() for s in read_features(tmp_path / f"a.{suffix}").values()] == [[-1], [-1]]


GOOD = {
    "features": np.ones((2, 3), np.float32),
    "pid": np.array([1, 2]),
    "camid": np.array([1, 2]),
    "split": np.array(["query", "gallery"]),
}
BAD_ARRAYS = [
    ({"features": None}, "no column features"),
    ({"pid": None, "split": None}, "no column pid, split"),
    ({"features": np.ones(2)}, r"features of shape \(2,\)"),
    ({"features": np.array([["a"], ["b"]])}, "type <U1"),
    ({"pid": np.array([1.0, 2.0])}, "pid of shape .* float64"),
    ({"pid": np.array([1, 2**64 - 1], np.uint64)}, "row 1: pid 18446744073709551615 does not fit"),
    ({"camid": np.array([1])}, r"camid of shape \(1,\)"),
    ({"split": np.array([0, 1])}, "split of shape"),
    ({"split": np.array(["query", ""])}, "row 1: split is empty"),
    ({"name": np.array(["a"])}, r"name of shape \(1,\)"),
]


@pytest.mark.parametrize(("change", "problem"), BAD_ARRAYS)
def test_malformed_npz_are_named(tmp_path, change, problem):
    columns = {k: v for k, v in (GOOD | change).items() if v is not None}
    np.savez(tmp_path / "bad.npz", **columns)
    with pytest.raises(UserError, match=problem):
        read_features(tmp_path / "bad.npz")


def test_pickled_objects_are_refused_unopened(tmp_path):
    np.savez(tmp_path / "evil.npz", **(GOOD | {"name": np.array([{"a": 1}, None], dtype=object)}))
    with pytest.raises(UserError, match="pickled objects"):
        read_features(tmp_path / "evil.npz")


BAD_COLUMNS = [
    ({"features": [[1.0, 2.0], [1.0]]}, "several lengths"),
    ({"features": [[1.0, 2.0, 3.0], [1.0]]}, "row 1: 1 features where row 0 has 3"),
    ({"features": [[1.0], None]}, "row 1: features is empty"),
    ({"features": [[1.0], [None]]}, "several lengths"),
    ({"features": [1.0, 2.0]}, "features is a column of double"),
    ({"features": [["a"], ["b"]]}, "features of shape"),
    ({"pid": [1, None]}, "row 1: pid is empty"),
    ({"pid": ["1", "2"]}, "pid of shape"),
    ({"split": [1, 2]}, "split of shape"),
]


@pytest.mark.parametrize(("change", "problem"), BAD_COLUMNS)
def test_malformed_parquet_are_named(tmp_path, change, problem):
    good = {k: v.tolist() for k, v in GOOD.items()}
    columns = {k: v for k, v in (good | change).items() if v is not None}
    pq.write_table(pa.table(columns), tmp_path / "bad.parquet")
    with pytest.raises(UserError, match=problem):
        read_features(tmp_path / "bad.parquet")


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_cut_and_foreign_files_are_named(tmp_path, suffix):
    path = tmp_path / f"f{suffix}"
    write_features(path, _sets())
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2], whole[:-30]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="not a readable"):
            read_features(path)


def test_wrong_paths_are_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_features(tmp_path / "none.npz")
    with pytest.raises(UserError, match="are read from"):
        read_features(tmp_path / "f.txt")
    with pytest.raises(UserError, match="are written to"):
        write_features(tmp_path / "f.mat", _sets())
    small = FeatureSet(np.ones((1, 2), np.float32), np.array([1]), np.array([1]), ("a",))
    with pytest.raises(UserError, match=r"feature sets of \[2, 5\] numbers"):
        write_features(tmp_path / "f.npz", {**_sets(), "other": small})
