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
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from reposer.annotation.journal import read_shards
from reposer.config import Config, canonical_json, load_config
from reposer.data.keypoints import read_keypoints_csv
from reposer.data.label_files import read_labels
from reposer.data.pairs import load_pairs
from reposer.data.records import read_manifest
from reposer.data.synthetic.people import DEFAULTS, REQUIRED, complete
from reposer.errors import UserError
from reposer.generation.augmented_rows import REAL_COLUMNS, SCORES, columns_of, write_summary
from reposer.generation.forgetting import forget, removed_counts
from reposer.generation.pictures import encode_marked
from reposer.generation.set_exports import export_set
from reposer.reid.features import read_features
from reposer.report import REID_COLUMNS, write_report
from reposer.storage.files import sha256_bytes
from reposer.storage.manifest import job_settings, list_parts, seal_job, seal_path, write_part
from reposer.storage.outputs import seal_faults, write_seal
from reposer.storage.runs import read_metrics
from reposer.storage.tables import parquet_bytes
from reposer.workflows.gan_presets import PRESETS
from reposer.workflows.verify import verify_folder

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


@pytest.mark.parametrize("size", [2**36, 2**36 - 5, 2**62, 10**30])
def test_a_seal_takes_no_memory_for_the_start_of_a_large_file(tmp_path, size):
    """Of a file with holes, which takes no room on the disk, and as much memory as it is said to have."""
    with (tmp_path / "a").open("wb") as file:
        file.truncate(2**36)
    body = {"schema_version": 1, "files": {}, "starts": {"a": {"size": size, "sha256": "0"}}}
    whole = body | {"sha256": sha256_bytes(canonical_json(body))}
    (tmp_path / "seal.json").write_text(json.dumps(whole))
    taken = []

    class Pieces(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            taken.append(size)
            return b"" if len(taken) > 3 else b"x"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reposer.storage.outputs.open_regular", lambda _: Pieces())
        (fault,) = seal_faults(tmp_path, None)
    assert "differ from their sha256" in fault if size <= 2**36 else "is shorter" in fault
    assert max(taken, default=0) <= 2**20


def test_a_seal_of_a_file_that_grows_holds_its_start(tmp_path):
    data = random.Random(0).randbytes(3 * 2**20 + 7)
    (tmp_path / "a").write_bytes(data)
    write_seal(tmp_path, [], grows=["a", "absent"])
    sealed = json.loads((tmp_path / "seal.json").read_text())
    assert sealed["starts"] == {"a": {"size": len(data), "sha256": sha256_bytes(data)}}
    (tmp_path / "a").write_bytes(data + b"more")
    assert seal_faults(tmp_path, None) == []
    for changed_data in (data[:-1] + b"x", b"x" + data[1:], data[:-1]):
        (tmp_path / "a").write_bytes(changed_data)
        assert len(seal_faults(tmp_path, None)) == 1


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


# ---- the manifest of an augmented set, and its list of real images


PEOPLE = (1, 3, 4)
SETTINGS = {
    "kind": "augmentation",
    "real": "copy",
    "factor": 2,
    "format": "jpg 95",
    **dict.fromkeys(("policy", "background", "checkpoint", "trained_on"), "x"),
    "seed": 0,
}


@pytest.fixture(scope="module")
def small_set(tmp_path_factory) -> Path:
    """A finished set of a real image and a picture of each of three people; the last one's fell."""
    folder = tmp_path_factory.mktemp("small") / "set"
    for name in ("images", "manifest", "real"):
        (folder / name).mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps({"items": 3, "shard_items": 8, "settings": SETTINGS}))
    real: list[dict[str, Any]] = []
    for pid in PEOPLE:
        name, file = f"{pid:04d}_c1s1_000000_00.jpg", io.BytesIO()
        Image.new("RGB", (4, 8), (pid, 0, 0)).save(file, "JPEG")
        (folder / "real" / name).write_bytes(file.getvalue())
        real.append({"file": name, "sha256": sha256_bytes(file.getvalue()), "pid": pid, "camid": 1})
    rows = []
    for number, source in enumerate(real):
        row = dict.fromkeys(name for name, _ in columns_of(SETTINGS)) | SETTINGS
        name = source["file"].replace(".jpg", "_g01.jpg")
        data = encode_marked(np.full((8, 4, 3), number, np.uint8), "jpg")
        (folder / "images" / name).write_bytes(data)
        row |= {"file": name, "sha256": sha256_bytes(data), "copy": 1, "synthetic": True}
        row |= {"pid": source["pid"], "camid": 1, "kept": number < 2}
        row["dropped_because"] = None if number < 2 else "sharpness"
        for side in ("source", "donor"):
            row |= {side: source["file"], f"{side}_sha256": source["sha256"]}
            row |= {f"{side}_pid": source["pid"], f"{side}_camid": 1}
        rows.append(row)
    write_part(folder / "manifest" / "part-00000.parquet", rows, columns_of(SETTINGS))
    write_part(folder / "real.parquet", real, REAL_COLUMNS, synthetic=False)
    write_summary(folder)
    seal_job(folder)
    assert verify_folder(folder)[1] == []
    return folder


def columns_in_place(column: pa.ChunkedArray) -> Iterator[tuple[str, pa.Array]]:
    """What a stranger could put in the place of a column."""
    rows = len(column)
    own = column.combine_chunks()
    others = {
        "texts": pa.array(["False", "1", ""][:rows]),
        "numbers": pa.array(list(range(rows))),
        "huge numbers": pa.array([2**64 - 1] * rows, pa.uint64()),
        "fractions": pa.array([0.5] * rows),
        "truth": pa.array([True] * rows),
        "lists": pa.array([[1]] * rows),
        "lists of texts": pa.array([["x"]] * rows),
        "bytes": pa.array([b"1"] * rows),
        "structs": pa.array([{"a": 1}] * rows),
        "times": pa.array([0] * rows, pa.timestamp("s")),
    }
    yield from ((kind, values) for kind, values in others.items() if values.type != column.type)
    yield "no text", pa.array([b"\xff"] * rows).view(pa.string())
    yield "nulls of its type", pa.nulls(rows, column.type)
    yield "nulls", pa.nulls(rows)
    yield "one null", pa.array([None, *column.to_pylist()[1:]], column.type)
    if column.type == pa.string():
        yield "large texts", own.cast(pa.large_string())
        yield "a dictionary", own.dictionary_encode()
    if column.type == pa.int64():
        yield "small numbers", own.cast(pa.int8())


def tables_in_place(table: pa.Table, name: str) -> Iterator[tuple[str, pa.Table]]:
    """The table with one column missing, twice, or of other values."""
    at = table.column_names.index(name)
    yield "missing", table.remove_column(at)
    yield "twice", table.append_column(name, table[name])
    for kind, column in columns_in_place(table[name]):
        yield kind, table.set_column(at, name, column)


def seal_anew(path: Path, table: pa.Table) -> None:
    data = parquet_bytes(table)
    path.write_bytes(data)
    seal_path(path).write_text(f"{sha256_bytes(data)}  {path.name}\n")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def pictures(folder: Path) -> set[str]:
    return {name for name in contents(folder) if name.startswith(("images", "real/"))}


def trained_on(folder: Path) -> Any:
    table = complete(folder)
    return [table[name].to_pylist() for name in (*REQUIRED, *DEFAULTS)]


GAPS = {"dropped_because", *SCORES}  # where the writer leaves values out


@pytest.mark.parametrize("share", [pytest.param(0.15, id="share"), SHARES[1]])
@pytest.mark.parametrize("place", ["manifest/part-00000.parquet", "real.parquet"])
def test_columns_of_other_kinds_are_refused_before_anything_is_done(small_set, tmp_path, place, share):
    """Or are no matter: whoever reads them then comes to the same as of the set as it was written."""
    layouts, rng = ("market", "list", "webdataset"), random.Random(place)
    for layout in layouts:
        export_set(small_set, tmp_path / "right" / layout, layout, copy=True)
    forgotten = shutil.copytree(small_set, tmp_path / "right" / "set")
    forget(forgotten, 3)
    right, trained = contents(tmp_path / "right"), trained_on(small_set)
    good, folder = pq.read_table(small_set / place), tmp_path / "set"
    for name in good.column_names:
        for kind, table in tables_in_place(good, name):
            # what the reports named must be tried each time
            if rng.random() > share and (name not in ("kept", "pid", "sha256") or kind == "times"):
                continue
            shutil.copytree(small_set, folder)
            seal_anew(folder / place, table)
            told = []
            for layout in layouts:
                out = tmp_path / "now" / layout
                told.append(tried(partial(export_set, folder, out, layout, copy=True), folder.name))
            if place != "real.parquet":
                refusal = tried(partial(trained_on, folder), folder.name)
                assert refusal or trained_on(folder) == trained
                assert refusal or not told[0] or name not in (*REQUIRED, *DEFAULTS)
            faults, before = verify_folder(folder)[1], pictures(folder)
            told.append(tried(partial(forget, folder, 3), Path(place).name))
            assert [bool(one) for one in told] == [bool(told[0])] * len(told), (name, kind, told)
            assert not any("fault of ours" in one for one in (*told, *faults))
            if told[0]:
                assert pictures(folder) == before
                assert Path(place).name in told[0]
                assert name in told[0] or name == "file"
                assert faults
            else:
                shutil.copytree(folder, tmp_path / "now" / "set")
                now = contents(tmp_path / "now")
                parts = {
                    one for one in right if one.endswith((".parquet", ".sha256", "seal.json", "summary.json"))
                }
                same = {one: data for one, data in right.items() if one not in parts}
                assert {one: data for one, data in now.items() if one not in parts} == same, (name, kind)
            shutil.rmtree(folder)
            shutil.rmtree(tmp_path / "now", ignore_errors=True)


def changed_rows(folder: Path, **values: Any) -> None:
    """The first row of the set's only part with other values, sealed anew."""
    path = folder / "manifest" / "part-00000.parquet"
    rows = pq.read_table(path).to_pylist()
    write_part(path, [rows[0] | values, *rows[1:]], columns_of(SETTINGS))


@pytest.mark.parametrize("pid", [10**18, -1, 0, 7])
@pytest.mark.parametrize("layout", ["market", "folders", "list", "webdataset", "parquet"])
def test_a_person_without_a_real_image_is_no_export(small_set, tmp_path, layout, pid):
    folder = shutil.copytree(small_set, tmp_path / "set")
    changed_rows(folder, pid=pid)
    with pytest.raises(UserError, match=rf"part-00000\.parquet: 0001_.*: pid {pid} is nobody of real"):
        export_set(folder, tmp_path / "out", layout, copy=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["policy", "background", "checkpoint", "trained_on", "seed", "format"])
def test_settings_of_another_kind_are_the_job_s_fault(small_set, tmp_path, name):
    folder = shutil.copytree(small_set, tmp_path / "set")
    for value in (1 if name != "seed" else "x", True, 10**30, [], {}, [None]):
        (folder / "job.json").write_text(
            json.dumps({"items": 3, "shard_items": 8, "settings": SETTINGS | {name: value}})
        )
        with pytest.raises(UserError, match=r"set/job\.json: holds a value of the wrong kind"):
            verify_folder(folder)


NOTE: dict[str, Any] = {
    **{"pid": 3, "real": 1, "stems": []},
    "removed_before": {"people": 0, "pictures": 0, "real": 0},
}


@pytest.mark.parametrize("path", [("pid",), ("real",), *(("removed_before", n) for n in ("people", "real"))])
@pytest.mark.parametrize("value", [-1, -(2**70), True, 1.0, "1", None])
def test_counts_of_a_foreign_removal_are_numbers_of_at_least_0(small_set, tmp_path, path, value):
    folder = shutil.copytree(small_set, tmp_path / "set")
    (folder / "forgetting.json").write_text(json.dumps(changed(NOTE, path, value)))
    before = pictures(folder)
    with pytest.raises(UserError, match=rf"forgetting\.json: .*{path[-1]} is no whole number of at least 0"):
        forget(folder, 3)
    assert pictures(folder) == before
    if path[0] == "removed_before":
        (folder / "forgetting.json").unlink()
        (folder / "removed.json").write_text(json.dumps(changed(NOTE, path, value)["removed_before"]))
        for read in (partial(removed_counts, folder), partial(forget, folder, 3)):
            with pytest.raises(UserError, match=r"removed\.json: .* is no whole number of at least 0"):
                read()
        assert pictures(folder) == before


def test_a_removal_that_goes_on_reads_all_before_anything_goes(small_set, tmp_path):
    folder = shutil.copytree(small_set, tmp_path / "set")
    before = pictures(folder)
    (folder / "forgetting.json").write_text(json.dumps(NOTE))
    for place, name in (("manifest/part-00000.parquet", "kept"), ("real.parquet", "pid")):
        good = pq.read_table(folder / place)
        seal_anew(folder / place, good.set_column(good.column_names.index(name), name, [["x"] * 3]))
        with pytest.raises(UserError, match=rf"{Path(place).name}: column {name} is of type string"):
            forget(folder, 3)
        assert pictures(folder) == before
        seal_anew(folder / place, good)
    (folder / "decisions.json").write_text("{}")
    with pytest.raises(UserError, match=r"decisions\.json: 'schema_version' is missing"):
        forget(folder, 3)
    assert pictures(folder) == before
    (folder / "decisions.json").unlink()
    assert (forget(folder, 3).pictures, verify_folder(folder)[1]) == (1, [])
