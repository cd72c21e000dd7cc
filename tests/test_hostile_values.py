"""Values of the wrong kind in every kind of file that a stranger may hand us: a line that names the file.

Numbers, texts, lists, nothing, deep nesting and huge integers stand in the place of each value of a good
JSON record, CSV row, NumPy archive and Parquet table. A reader gives an answer or a UserError; anything else
would end as "a fault of ours". A share is tried in the default suite, all of it in the slow one.
"""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reposer.annotation.journal import read_shards
from reposer.config import Config, load_config
from reposer.data.keypoints import read_keypoints_csv
from reposer.data.label_files import read_labels
from reposer.data.pairs import load_pairs
from reposer.data.records import read_manifest
from reposer.errors import UserError
from reposer.generation.forgetting import forget, removed_counts
from reposer.generation.set_exports import export_set
from reposer.reid.features import read_features
from reposer.report import REID_COLUMNS, write_report
from reposer.storage.manifest import job_settings, list_parts
from reposer.storage.outputs import seal_faults
from reposer.storage.runs import read_metrics
from reposer.workflows.gan_presets import PRESETS

DEEP: Any = None
for _ in range(300):
    DEEP = [DEEP]
VALUES: tuple[Any, ...] = (None, True, -1, 0, 1.5, 10**30, "", "x", "\ud800\x00=1+1", [], {}, [None], DEEP)
SHARES = [pytest.param(0.08, id="share"), pytest.param(1.0, id="all", marks=pytest.mark.slow)]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value, the whole included."""
    yield path
    items: Any = value.items() if isinstance(value, dict) else ()
    for key, part in enumerate(value[:2]) if isinstance(value, list) else items:
        yield from places(part, (*path, key))


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copied = dict(value) if isinstance(value, dict) else list(value)
    copied[path[0]] = changed(copied[path[0]], path[1:], new)
    return copied


def tried(read: Callable[[], Any], name: str) -> str:
    """How a reader took it: "" for an answer, else the line; any other error is the test's."""
    told = ""
    try:
        read()
    except UserError as error:
        told = str(error)
    assert not told or name in told
    assert "\n" not in told
    return told


METRIC = {"better": "lower", "protocol": "as published", "reference": "a paper"}
CELL = {"value": 0.5, "low": 0.4, "high": 0.6, "note": ""}
QUALITY = {"metrics": {"ssim": METRIC}, "rows": {"model": {"ssim": CELL}}, "settings": {"pairs": 3}}
SHARE: dict[str, Any] = dict.fromkeys(REID_COLUMNS, 0.5)
SHARE["intervals"] = {key: [0.4, 0.6] for key in REID_COLUMNS} | {"mINP": None}
REID = {"methods": {"cosine": SHARE}, "missing": [], "protocol": "p", "pictures": {}, "notes": ["n"]}
SECTION = {
    "title": "t",
    "text": ["a"],
    "pictures": [],
    "tables": [{"columns": ["a"], "rows": [["b"]]}],
    "folds": [],
}
JOB = {"items": 4, "shard_items": 2, "settings": {"kind": "augmentation", "real": "link", "factor": 2}}


def preset() -> Config:
    made: Any = next(iter(PRESETS.values()))
    config: Config = made() if callable(made) else made
    return config


RECORDS: dict[str, tuple[Any, Callable[[Path], Any]]] = {
    "image_quality.json": (QUALITY, lambda path: write_report(path.parent)),
    "reidentification.json": (REID, lambda path: write_report(path.parent)),
    "sections.json": ([SECTION], lambda path: write_report(path.parent)),
    "config.json": (
        preset().model_dump(mode="json"),
        lambda path: load_config(type(preset()), path),
    ),
    "plan.json": ({"shards": [["a.png"], ["b.png"]]}, read_shards),
    "removed.json": ({"people": 1, "pictures": 2, "real": 0}, lambda path: removed_counts(path.parent)),
    "job.json": (
        JOB,
        lambda path: (
            job_settings(path.parent),
            list_parts(path.parent),
        ),
    ),
}


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", RECORDS)
def test_json(tmp_path, name, share):
    good, read = RECORDS[name]
    path, rng, refused = tmp_path / name, random.Random(name), 0
    path.write_text(json.dumps(good))
    if name not in ("job.json", "config.json"):
        assert not tried(partial(read, path), name)
    for place in list(places(good)):
        for value in VALUES:
            if rng.random() <= share:
                path.write_text(json.dumps(changed(good, place, value)))
                refused += bool(tried(lambda: read(path), tmp_path.name))
    assert refused


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_settings_of_a_foreign_set(tmp_path, value):
    (tmp_path / "job.json").write_text(json.dumps(JOB | {"settings": value}))
    assert tried(lambda: export_set(tmp_path, tmp_path / "out", "market"), tmp_path.name)
    assert tried(lambda: forget(tmp_path, 1), tmp_path.name)
    assert not (tmp_path / "out").exists()


def test_a_seal_of_values_of_another_kind_is_a_fault(tmp_path):
    (tmp_path / "a").write_bytes(b"a")
    body = {"schema_version": 1, "files": {"a": "0"}, "starts": {"a": {"size": 1, "sha256": "0"}}}
    for place in places(body):
        for value in VALUES:
            (tmp_path / "seal.json").write_text(json.dumps(changed(body, place, value) or 0))
            assert seal_faults(tmp_path, None)


def arrays() -> Iterator[tuple[str, Any]]:
    """Replacements of a column of three rows."""
    yield "nothing", np.zeros(0)
    yield "a number", np.array(3)
    yield "texts", np.array(["a", "b", "c"])
    yield "not finite", np.array([np.nan, np.inf, -np.inf])
    yield "negative", np.array([-1, -(2**62), 0])
    yield "unsigned", np.array([2**64 - 1] * 3, np.uint64)
    yield "complex", np.array([1j, 2, 3])
    yield "dates", np.array(["2020-01-01"] * 3, "datetime64[D]")
    yield "records", np.zeros(3, [("a", "i4")])
    yield "truth", np.array([True, False, True])
    yield "four axes", np.zeros((3, 1, 1, 1))
    yield "no axis of length", np.zeros((3, 0))
    yield "bytes", np.array([b"\xff", b"\x00", b"a"])


@pytest.mark.parametrize("column", ["features", "pid", "camid", "split", "name", "clothes"])
def test_feature_archives(tmp_path, column):
    good = {
        "features": np.eye(3, dtype=np.float32),
        "pid": np.arange(3),
        "camid": np.arange(3),
        "split": np.array(["query", "gallery", "gallery"]),
        "name": np.array(["a", "b", "c"]),
        "clothes": np.arange(3),
    }
    for _, array in arrays():
        np.savez(tmp_path / "f.npz", **(good | {column: array}))
        tried(lambda: read_features(tmp_path / "f.npz"), "f.npz")
        if array.ndim == 1 and array.dtype.kind in "iufUb" and len(array) == 3:
            rest = {name: pa.array(list(values)) for name, values in good.items() if name != column}
            for kind in (pa.array(array), pa.array([array] * 3), pa.array([None] * 3)):
                pq.write_table(pa.table(rest | {column: kind}), tmp_path / "f.parquet")
                tried(lambda: read_features(tmp_path / "f.parquet"), "f.parquet")
        np.save(tmp_path / "l.npy", array)
        with pytest.raises(UserError, match=r"l\.npy"):
            read_labels(tmp_path / "l.npy")


def read_two(path: Path) -> Any:
    return load_pairs(path, {"a.png": 0, "b.png": 1})


POINTS = ["a.png", json.dumps([1.0] * 18), json.dumps([1.0] * 18)]
TABLES: dict[str, tuple[str, list[str], str, Callable[[Path], Any]]] = {
    "keypoints.csv": ("name:keypoints_y:keypoints_x", POINTS, ":", read_keypoints_csv),
    "pairs.csv": ("from,to", ["a.png", "b.png"], ",", read_two),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_text(tmp_path, name):
    """A good row of keypoints or of a pair with each cell replaced, and bytes that are no text."""
    header, row, separator, read = TABLES[name]
    path = tmp_path / name
    values = [json.dumps(value) for value in VALUES] + ["=1+1", "[1e400]", "[" * 5000, "9" * 5000]
    for cell in range(len(row)):
        for value in values:
            text = io.StringIO()
            csv.writer(text, delimiter=separator).writerow([*row[:cell], value, *row[cell + 1 :]])
            path.write_text(f"{header}\n{text.getvalue()}")
            tried(partial(read, path), name)
    path.write_bytes(b"\xff\xfe\x00" * 20)
    assert tried(partial(read, path), name)


def test_manifests(tmp_path):
    path, names = tmp_path / "manifest.parquet", ("name", "path", "pid", "camid", "split", "width")
    for _, array in arrays():
        if array.ndim == 1 and array.dtype.kind in "iufUb" and len(array):
            pq.write_table(pa.table(dict.fromkeys(names, pa.array(array))), path)
            assert tried(partial(read_manifest, path), path.name)


def test_metrics(tmp_path):
    for value in VALUES:
        for line in (value, {"step": value}, {"step": 1, "loss": value}):
            (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n{}\n")
            tried(partial(read_metrics, tmp_path), "metrics.jsonl")
            tried(partial(write_report, tmp_path), tmp_path.name)
