"""Paths in files: no value of a stranger's file reads, writes or deletes outside the folders that were named.

Three nets: the rule itself on a generated corpus; readers of manifests, lists, sections and journals on that
corpus, with canaries outside and a watch on what is opened; and a search of the source for code that makes a
path of a value without asking ``reposer.storage.paths``.
"""

from __future__ import annotations

import ast
import csv
import errno
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from planted import Planted, pack_planted

from reposer.annotation.faults import annotation_faults
from reposer.annotation.journal import BOOK, PLAN, place_fault, read_shards
from reposer.annotation.makers import CROP_COLUMNS as ANNOTATED
from reposer.annotation.overview import draw_sheet
from reposer.config import apply_overrides, canonical_json, load_config
from reposer.data.keypoint_imports import import_keypoints
from reposer.data.layouts.deepfashion import _list_folder, _read_lists
from reposer.data.layouts.identity_folders import _labeled_by_table
from reposer.data.layouts.reid_layouts import list_cuhk03, list_msmt17
from reposer.data.layouts.tables import list_table
from reposer.data.packed import HEADER, ROWS, PackedPeople
from reposer.data.pairs import load_pairs
from reposer.data.preparing.annotation_lookup import Annotations
from reposer.data.records import _SCHEMA, AnnotationError, AnnotationProblem, problems_csv, read_manifest
from reposer.errors import DiskError, UserError
from reposer.generation.augmented_rows import KIND, REAL, REAL_COLUMNS, REAL_ROWS, columns_of
from reposer.generation.forgetting import FORGETTING, forget
from reposer.generation.lineage import set_faults
from reposer.generation.pictures import write_picture
from reposer.generation.set_exports import export_set
from reposer.images import encode_jpeg
from reposer.jobs.shards import Folder, ShardFiles
from reposer.jobs.stages import Stage, StageCache, study_faults
from reposer.report import write_report
from reposer.sections import SECTIONS_FILE
from reposer.storage.files import sha256_file
from reposer.storage.manifest import IMAGES, JOB, MANIFEST, part_path, write_part
from reposer.storage.outputs import claim_outputs, seal_faults
from reposer.storage.paths import (
    RefusedFileError,
    check_relative,
    contained,
    delete,
    made_folder,
    open_regular,
    read_regular,
    require_writable,
    unlinked,
)
from reposer.storage.tables import read_table
from reposer.structures import PersonRecord
from reposer.training.gan.config import DataConfig
from reposer.training.gan.data import _training_pairs, _validation_pairs

SECRET = b"canary: nobody may read or touch this"
SOURCE = Path(__file__).parents[2] / "src" / "reposer"

# ---- the corpus


def hostile_paths(outside: Path) -> list[Any]:
    """At least 500 values that no file may put into a path, none of them twice."""
    target = str(outside / "canary.txt")
    ups = [
        f"{'../' * depth}{name}"
        for depth in range(1, 12)
        for name in ("canary.txt", "outside/canary.txt", "etc/passwd", "")
    ]
    middle = [f"a/{'../' * depth}canary.txt" for depth in range(1, 12)]
    ends = [
        f"{start}{end}"
        for start in ("", "a/", "a/b/")
        for end in (".", "..", "./", "../", "./x", "x/.", "x/..", "x/./y")
    ]
    absolute = [
        target,
        f"/{target}",
        f"//{target}",
        f"///{target}",
        f"/{target.lstrip('/')}/",
        "/etc/passwd",
        "/",
        "//",
    ]
    absolute += [
        f"/{name}"
        for name in (
            "dev/zero",
            "dev/stdin",
            "proc/self/environ",
            "proc/self/mem",
            "tmp/x",
            "root/.ssh/id_rsa",
        )
    ]
    homes = [f"~{who}{rest}" for who in ("", "root", "user") for rest in ("", "/", "/canary.txt", "/.bashrc")]
    drives = [f"{d}{rest}" for d in ("C:", "c:", "Z:", "a/D:") for rest in ("x", "/x", "\\x", "", "../x")]
    shares = [
        f"{start}{rest}"
        for start in ("\\\\", "\\\\?\\", "\\\\.\\", "\\", "..\\", "a\\..\\", "a\\")
        for rest in ("host\\share", "C:\\x", "canary.txt", "UNC\\h\\s")
    ]
    mixed = [
        f"a{sep}..{sep2}canary.txt"
        for sep, sep2 in itertools.product(("/", "\\", "//", "\\\\", "/\\"), repeat=2)
    ]
    controls = [
        place.format(chr(code))
        for code in (*range(32), *range(127, 160), *range(0x2028, 0x202F), *range(0x2066, 0x206A))
        for place in ("a{}b.png", "{}x", "x/{}", "canary.txt{}.png")
    ]
    surrogates = ["\ud800", "a\udcff.png", "x/\udfff"]
    devices = [
        f"{name}{end}"
        for name in ("CON", "prn", "Aux", "NUL", "COM1", "com9", "LPT1", "lpt\u00b9", "CONIN$")
        for end in ("", ".png", ".tar.gz", " .png", "/x")
    ]
    devices += [f"a/{name}" for name in ("con", "nul.txt", "com0")]
    ending = [f"x{end}" for end in (".", " ", "...", ". .", "./y", " /y")]
    lengths = [
        "x" * 256,
        "a/" + "y" * 256,
        "\u00e9" * 128,
        "/".join("ab" * 20 for _ in range(40)),
        "x" * 5000,
        "a/" * 600 + "b",
    ]
    empty: list[Any] = ["", "/", "//", "a//b", "/a", "a/", "//a//"]
    other: list[Any] = [None, 0, 1, True, 1.5, b"../canary.txt", ["../canary.txt"], {"file": "x"}]
    found: list[Any] = [
        *(ups + middle + ends + absolute + homes + drives + shares + mixed + controls),
        *(surrogates + devices + ending + lengths + empty + other),
    ]
    return [
        value
        for i, value in enumerate(found)
        if not any(value == v and type(value) is type(v) for v in found[:i])
    ]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    for name in ("canary.txt", "canary.png", "0001_c1s1_000001_00.jpg"):
        (folder / name).write_bytes(SECRET)
    (tmp_path / "canary.txt").write_bytes(SECRET)
    return folder


_watched: dict[str, Any] = {"inodes": set(), "seen": []}
_EVENTS = {"open", "os.remove", "os.rename", "os.link", "os.rmdir", "os.truncate", "os.chmod", "os.utime"}


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    """Notes every audited call that names a canary, through whatever links."""
    if _watched is None or not _watched["inodes"] or event not in _EVENTS:  # None: the interpreter ends
        return
    for place in arguments[:2]:
        if isinstance(place, str | bytes):
            try:
                status = os.stat(place)
            except (OSError, ValueError):
                continue
            if (status.st_dev, status.st_ino) in _watched["inodes"]:
                _watched["seen"].append((event, place))


sys.addaudithook(_hook)


@contextmanager
def canaries_unharmed(outside: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing in the block opens, renames, links, changes or deletes what lies outside, nor adds to it."""
    files = [*sorted(outside.iterdir()), outside.parent / "canary.txt"]
    before = {file: (file.stat().st_ino, file.stat().st_nlink, file.read_bytes()) for file in files}
    inodes = {(file.stat().st_dev, file.stat().st_ino) for file in files}
    real_open = os.open

    def opened(*args: Any, **kwargs: Any) -> int:  # audit events do not tell dir_fd: look at what was opened
        descriptor = real_open(*args, **kwargs)
        status = os.fstat(descriptor)
        if (status.st_dev, status.st_ino) in inodes:
            _watched["seen"].append(("os.open", args[0]))
        return descriptor

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", opened)
        _watched.update(inodes=inodes, seen=[])
        try:
            yield
        finally:
            _watched["inodes"] = set()
    assert _watched["seen"] == []
    there = [*sorted(outside.iterdir()), outside.parent / "canary.txt"]
    assert {f: (f.stat().st_ino, f.stat().st_nlink, f.read_bytes()) for f in there} == before


def test_the_corpus_is_large_and_every_value_is_refused(outside: Path) -> None:
    corpus = hostile_paths(outside)
    assert len(corpus) >= 500
    accepted = []
    for value in corpus:
        try:
            accepted.append((value, check_relative(value)))
        except ValueError:
            continue
    assert accepted == []


@pytest.mark.parametrize(
    "good",
    [
        "a.png",
        "a/b.png",
        "-1_c1s1_000401_03.jpg",
        "a b.jpg",
        ".hidden",
        "..a",
        "a..b",
        "a~b",
        "\u884c\u4eba/\u4e00.jpg",
        "con_1.png",
        "x" * 255,
        "12:30:05.jpg",
    ],
)
def test_plain_paths_are_taken_as_they_are(good: str, tmp_path: Path) -> None:
    assert check_relative(good) == good
    assert contained(tmp_path, good) == unlinked(tmp_path, good) == tmp_path / good


def test_the_watch_sees_an_open_and_a_deletion(outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError), canaries_unharmed(outside, monkeypatch):
        (outside / "canary.txt").read_bytes()
    handle = os.open(outside, os.O_RDONLY)
    with pytest.raises(AssertionError), canaries_unharmed(outside, monkeypatch):
        os.close(os.open("canary.png", os.O_RDONLY, dir_fd=handle))
    os.close(handle)
    with pytest.raises(AssertionError), canaries_unharmed(outside, monkeypatch):
        (outside / "canary.txt").unlink()


# ---- links


def test_links_are_neither_written_through_nor_deleted_through(outside: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "real").mkdir(parents=True)
    (root / "out").symlink_to(outside)
    (root / "inner").symlink_to(root / "real")
    (root / "file.txt").symlink_to(outside / "canary.txt")
    for way in (contained, unlinked, made_folder):
        with pytest.raises(RefusedFileError, match=r"link|outside"):
            way(root, "out/canary.txt")
    with pytest.raises(RefusedFileError, match="link"):
        delete(root, "out/canary.txt")
    with pytest.raises(RefusedFileError, match="link"):
        made_folder(root, "inner/new")
    assert contained(root, "inner/x") == root / "inner" / "x"  # reading a link inside the root is no harm
    delete(root, "file.txt")  # the link goes, not what it leads to
    delete(root, "absent/none.txt")
    assert not (root / "file.txt").is_symlink()
    assert (outside / "canary.txt").read_bytes() == SECRET


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    for inside in ("", "below"):
        with pytest.raises(RefusedFileError if not inside else DiskError, match=r"no folder|part of it is a"):
            made_folder(tmp_path / "file", inside)
    with pytest.raises(DiskError, match=r"file/a/b: cannot be written: Not a directory: check the path"):
        made_folder(tmp_path / "file" / "a" / "b")
    for code, advice in ((errno.EACCES, "grant"), (errno.EROFS, "read-only"), (errno.ENOSPC, "free some")):

        def fail(*_: object, code: int = code) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "mkdir", fail)
        with pytest.raises(DiskError, match=f"new: cannot be written: {os.strerror(code)}: .*{advice}"):
            made_folder(tmp_path / "new")


def test_where_nothing_can_be_written_is_known_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    for good in (tmp_path, tmp_path / "new", tmp_path / "new" / "er", Path("new"), Path()):
        require_writable(good)
    for bad in ("file", "file/new", "link", "link/new"):
        with pytest.raises(DiskError, match=f"{bad}: cannot be written: Not a directory"):
            require_writable(Path(bad))
    asked: list[object] = []
    monkeypatch.setattr(os, "access", lambda place, mode: asked.append(place))
    with pytest.raises(
        DiskError, match="new/er: cannot be written: Permission denied: grant write permission"
    ):
        require_writable(tmp_path / "new" / "er")
    assert asked == [tmp_path]
    with pytest.raises(DiskError, match="Permission denied"):
        claim_outputs(tmp_path / "new", ["table.md"])


@pytest.mark.parametrize("kind", ["models", "datasets", "spaces"])
def test_a_snapshot_of_a_hub_cache_is_read_with_its_blobs(kind: str, tmp_path: Path) -> None:
    repository = tmp_path / f"{kind}--owner--name"
    snapshot = repository / "snapshots" / "0a1b"
    (snapshot / "below").mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "12ab").write_bytes(b"weights")
    (snapshot / "a.bin").symlink_to("../../blobs/12ab")
    (snapshot / "below" / "a.bin").symlink_to("../../../blobs/12ab")
    (tmp_path / "by_another_name").symlink_to(snapshot)
    for root in (snapshot, tmp_path / "by_another_name"):
        for name in ("a.bin", "below/a.bin"):
            assert read_regular(contained(root, name), max_bytes=10, root=root) == b"weights"


@pytest.mark.parametrize(
    ("place", "target"),
    [
        ("box/snapshots/run", "../../canary.txt"),  # no cache at all
        ("box/snapshots/run", "../../blobs/canary.txt"),
        ("snapshots/run", "../../canary.txt"),
        ("box/models--a--b/run", "../canary.txt"),
        ("box/models--a--b/snapshots/1/below", "../../../canary.txt"),
        ("box/models--a--b/snapshots/1", "../../canary.txt"),  # beside the blobs
        ("box/models--a--b/snapshots/1", "../../refs/canary.txt"),
        ("box/models--a--b/snapshots/1", "../2/canary.txt"),
        ("box/models--a--b/snapshots/1", "../../../models--c--d/blobs/canary.txt"),
        ("box/models--a--b/snapshots/1", "../../blobs/../canary.txt"),
        ("box/models--a--b/snapshots/1", "../../blobs_too/canary.txt"),
    ],
)
def test_no_folder_called_snapshots_is_read_out_of(place: str, target: str, tmp_path: Path) -> None:
    root = tmp_path / place
    root.mkdir(parents=True)
    (tmp_path / "box" / "models--a--b" / "blobs").mkdir(parents=True, exist_ok=True)
    secret = Path(os.path.normpath(root / target))
    secret.parent.mkdir(parents=True, exist_ok=True)
    secret.write_bytes(SECRET)
    (root / "config.json").symlink_to(target)
    for read in (
        lambda: contained(root, "config.json"),
        lambda: read_regular(root / "config.json", max_bytes=100, root=root),
        lambda: open_regular(root / "config.json", root),
    ):
        with pytest.raises(RefusedFileError, match="outside"):
            read()


def test_blobs_that_are_a_link_are_not_read(outside: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs").symlink_to(outside)
    (snapshot / "a.bin").symlink_to("../../blobs/canary.txt")
    with pytest.raises(RefusedFileError, match="outside"):
        contained(snapshot, "a.bin")


# ---- every reader


_rows: dict[
    Path, dict[str, Any]
] = {}  # of the parts on the disk: only the value under attack is written anew


def _write(path: Path, row: dict[str, Any], columns: Any, *, synthetic: bool = True) -> None:
    if _rows.get(path) != row or not path.exists():
        write_part(path, [row], columns, synthetic=synthetic)
        _rows[path] = row


def augmented_set(folder: Path, file: Any, real: Any) -> Path:
    """A set as ``augment`` writes it, of one picture and one real image, with these two names."""
    if not (folder / JOB).exists():
        for name in (IMAGES, MANIFEST, REAL):
            (folder / name).mkdir(parents=True)
        settings = {
            "kind": KIND,
            "real": "copy",
            "factor": 2,
            "format": "jpg",
            **dict.fromkeys(("policy", "background", "checkpoint", "trained_on"), ""),
            "seed": 0,
        }
        (folder / JOB).write_text(json.dumps({"items": 1, "shard_items": 64, "settings": settings}))
    row = dict.fromkeys((name for name, _ in columns_of({})))
    row |= {
        "file": file,
        "sha256": "0" * 64,
        "pid": 1,
        "camid": 1,
        "source_pid": 1,
        "donor_pid": 1,
        "kept": True,
        "synthetic": True,
        "copy": 1,
    }
    _write(part_path(folder, 0), row, columns_of({}))
    real_row = {"file": real, "sha256": "0" * 64, "pid": 1, "camid": 1}
    _write(folder / REAL_ROWS, real_row, REAL_COLUMNS, synthetic=False)
    return folder


def _forget(folder: Path, value: Any) -> None:
    forget(augmented_set(folder, value, "a.jpg"), 1)


def _forget_real(folder: Path, value: Any) -> None:
    forget(augmented_set(folder, "a.jpg", value), 1)


def _export(folder: Path, value: Any) -> None:
    export_set(augmented_set(folder / "set", value, "a.jpg"), folder / "out", "list")


def _export_real(folder: Path, value: Any) -> None:
    export_set(augmented_set(folder / "set", "a.jpg", value), folder / "out", "folders", copy=True)


def _verify_set(folder: Path, value: Any) -> None:
    assert set_faults(augmented_set(folder, value, "a.jpg"))
    raise UserError("faults are found")


def _verify_real(folder: Path, value: Any) -> None:
    assert set_faults(augmented_set(folder, "a.jpg", value))
    raise UserError("faults are found")


def _report_picture(folder: Path, value: Any) -> None:
    section = {
        "title": "x",
        "text": [],
        "pictures": [{"caption": "x", "file": value}],
        "tables": [],
        "folds": [],
    }
    (folder / SECTIONS_FILE).write_text(json.dumps([section]))
    write_report(folder)


def _report_data(folder: Path, value: Any) -> None:
    section = {
        "title": "x",
        "text": [],
        "pictures": [{"caption": "x", "data": value or "/x"}],
        "tables": [],
        "folds": [],
    }
    (folder / SECTIONS_FILE).write_text(json.dumps([section]))
    write_report(folder)


def _report_reid(folder: Path, value: Any) -> None:
    document = {"methods": {}, "missing": [], "protocol": "", "notes": [], "pictures": {value: "x"}}
    (folder / "reidentification.json").write_text(json.dumps(document))
    write_report(folder)


def _plan(folder: Path, value: Any) -> None:
    (folder / PLAN).write_text(json.dumps({"shards": [[value]]}))
    read_shards(folder / PLAN)


def _annotation_place(folder: Path, value: Any) -> None:
    if place_fault(folder, value, ""):
        raise UserError("a fault")


def _sheet(folder: Path, value: Any) -> None:
    rows = [{"file": value, "parsing": value, "mask": value, "keypoints": None}]
    assert (
        draw_sheet(folder, folder, rows) == draw_sheet(folder, folder, [{**rows[0], "file": "none.jpg"}])
    ).all()
    raise UserError("a gray panel")


def _staged(folder: Path, value: Any) -> None:
    files = ShardFiles(Folder(folder, folder / BOOK, (), synthetic=False), 0)
    files.put(value, b"x")
    files.commit([])


def _listed(problems: list[AnnotationProblem], paths: Iterable[str]) -> None:
    """What a list said is a line of the problems, and no path of it goes on."""
    for path in paths:  # what is taken is a plain path by then
        check_relative(path)
    if not problems:
        raise AssertionError("neither listed nor refused")
    raise UserError("listed")


def _pair_list(folder: Path, value: Any) -> None:
    (folder / "pairs.csv").write_text(f"from,to\na.jpg,{value}\n", errors="surrogatepass")
    load_pairs(folder / "pairs.csv", {"a.jpg": 0})


def _run_pairs(folder: Path, value: Any, field: str) -> None:
    """A training's configuration names its lists, as the file and as ``--set``."""
    given = {"folder": str(folder), field: value}
    (folder / "config.json").write_text(json.dumps(given))
    data = load_config(DataConfig, folder / "config.json")
    if field == "pairs":
        _training_pairs(data, None, None)  # type: ignore[arg-type]
    elif value:  # no list of pairs for validation: a setting
        _validation_pairs(data, None)  # type: ignore[arg-type]
    raise UserError("nothing is read")


def _run_setting(folder: Path, value: Any) -> None:
    config = apply_overrides(DataConfig(folder=folder), [f"pairs={json.dumps(value)}"])
    _training_pairs(config, None, None)  # type: ignore[arg-type]


def _name_list(folder: Path, value: Any) -> None:
    for kind in ("train", "test"):
        (folder / f"{kind}.lst").write_text(f"{value}\n", errors="surrogatepass")
    problems: list[AnnotationProblem] = []
    found = _read_lists(folder, problems)
    _listed(problems, (name.flat for names in found.values() for name in names))


def _msmt_list(folder: Path, value: Any) -> None:
    for kind in ("train", "val", "query", "gallery"):
        (folder / f"list_{kind}.txt").write_text(f"{value} 0\n", errors="surrogatepass")
    files, problems = list_msmt17(folder)
    _listed(problems, (file.path for file in files))


def _label_table(folder: Path, value: Any, suffix: str) -> None:
    table = folder / f"labels{suffix}"
    row = {"path": value, "pid": "1", "camid": "1", "split": "train"}
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([row]), table)
    else:
        with open(table, "w", newline="", errors="surrogatepass") as file:
            writer = csv.DictWriter(file, row)
            writer.writeheader()
            writer.writerow(row)
    problems: list[AnnotationProblem] = []
    people = _labeled_by_table(folder, table, [("a.jpg", "train", "a.jpg")], problems)
    files, more = list_table(folder, table)
    _listed([*problems, *more], [*(path for path, *_ in people), *(file.path for file in files)])


def _label_csv(folder: Path, value: Any) -> None:
    _label_table(folder, value, ".csv")


def _label_parquet(folder: Path, value: Any) -> None:
    _label_table(folder, value, ".parquet")


def _pose_table(folder: Path, value: Any) -> None:
    line = f"{value}:{list(range(1, 19))}:{list(range(1, 19))}\n"
    (folder / "keypoints.csv").write_text(f"name:keypoints_y:keypoints_x\n{line}", errors="surrogatepass")
    image = PersonRecord("a.jpg", "a.jpg", 1, 1, "train", 64, 128, "0" * 64)
    problems: list[AnnotationProblem] = []
    records = Annotations.find(folder).add_keypoints([image], problems)
    assert records[0].keypoints is None
    _listed(problems, ())


def _pose_files(folder: Path, value: Any) -> None:
    for kind in ("openpose", "pidm"):
        poses, problems = import_keypoints(folder, kind, [value])
        assert not poses
        assert len(problems) == 1
    raise UserError("listed")


def _stage_record(folder: Path, value: Any, in_record: bool) -> None:
    stage = folder / "stages" / "a-0"
    stage.mkdir(parents=True, exist_ok=True)
    needs = [] if in_record else [value]
    (stage / "inputs.json").write_text(json.dumps({"kind": "a", "inputs": {}, "needs": needs}))
    files = {value: hashlib.sha256(SECRET).hexdigest()} if in_record else {}
    (stage / "done.json").write_text(json.dumps({"seconds": 1, "files": files}))
    faults = study_faults(folder)
    assert any("is of another stage" not in fault for fault in faults)  # the value itself is one
    raise UserError("faults are found")


def _stage_files(folder: Path, value: Any) -> None:
    _stage_record(folder, value, True)


def _stage_needs(folder: Path, value: Any) -> None:
    _stage_record(folder, value, False)


def _seal(folder: Path, value: Any) -> None:
    digest = hashlib.sha256(SECRET).hexdigest()
    whole: dict[str, Any] = {"files": {value: digest}, "starts": {value: {"size": 1, "sha256": digest}}}
    (folder / "seal.json").write_text(
        json.dumps(whole | {"sha256": hashlib.sha256(canonical_json(whole)).hexdigest()})
    )
    assert seal_faults(folder, None)
    raise UserError("faults are found")


def annotated_folder(folder: Path, row: dict[str, Any]) -> Path:
    """A finished journal of one image, a.jpg, by hand; ``row`` changes what its manifest says."""
    book = folder / BOOK
    if not book.exists():
        (book / MANIFEST).mkdir(parents=True)
        settings = {"kind": "annotation", "images": ".", "parsing": {"name": "x"}, "mask": {"name": "x"}}
        (book / JOB).write_text(json.dumps({"settings": settings}))
        (book / PLAN).write_text(json.dumps({"shards": [["a.jpg"]]}))
        (book / "report.json").write_text("{}")
    empty: dict[str, Any] = dict.fromkeys(name for name, _ in ANNOTATED)
    values = {"file": "a.jpg", "sha256": "0" * 64, "flags": [], "problems": [], "left_out": ""}
    values |= {"width": 8, "height": 8, "label_pixels": [64, *[0] * 19]}
    _write(part_path(book, 0), empty | values | row, ANNOTATED)
    return folder


def _annotated(folder: Path, value: Any, field: str) -> None:
    row = {field: value, "sha256": hashlib.sha256(SECRET).hexdigest()}
    if field != "file":
        row[f"{field}_sha256"] = row["sha256"]
    faults = annotation_faults(annotated_folder(folder, row))
    assert any(field in fault for fault in faults)
    raise UserError("faults are found")


def _annotated_left_out(folder: Path, value: Any) -> None:
    faults = annotation_faults(annotated_folder(folder, {"file": value, "left_out": "damaged"}))
    assert any("is damaged: row 1, file: " in fault for fault in faults)
    raise UserError("faults are found")


def _people(folder: Path, value: Any, field: str) -> None:
    row: dict[str, Any] = {"name": "a.jpg", "path": "a.jpg", "pid": 1, "camid": 1, "split": "train"}
    row |= {"width": 8, "height": 8, "sha256": "0" * 64, field: value}
    pq.write_table(pa.Table.from_pylist([row], schema=_SCHEMA), folder / "manifest.parquet")
    read_manifest(folder / "manifest.parquet")


READERS: dict[str, Callable[[Path, Any], None]] = {
    "prepare, pair list": _pair_list,
    "prepare, name list": _name_list,
    "prepare, list of MSMT17": _msmt_list,
    "prepare, label table.csv": _label_csv,
    "prepare, label table.parquet": _label_parquet,
    "prepare, key-point table": _pose_table,
    "prepare, key-point files": _pose_files,
    "train, run config, pairs": partial(_run_pairs, field="pairs"),
    "train, run config, validation": partial(_run_pairs, field="validation_pairs"),
    "train, --set": _run_setting,
    "study, stage's files": _stage_files,
    "study, stage's needs": _stage_needs,
    "verify, seal": _seal,
    "annotation, manifest, file": partial(_annotated, field="file"),
    "annotation, manifest, parsing": partial(_annotated, field="parsing"),
    "annotation, manifest, left out": _annotated_left_out,
    "people, manifest, name": partial(_people, field="name"),
    "people, manifest, path": partial(_people, field="path"),
    "people, manifest, mask": partial(_people, field="mask"),
    "forget, manifest": _forget,
    "forget, real list": _forget_real,
    "export-set, manifest": _export,
    "export-set, real list": _export_real,
    "verify, manifest": _verify_set,
    "verify, real list": _verify_real,
    "report, section": _report_picture,
    "report, embedded picture": _report_data,
    "report, re-identification": _report_reid,
    "annotate, plan": _plan,
    "annotate, made file": _annotation_place,
    "annotate, sheet": _sheet,
    "annotate, staged file": _staged,
}


def _stays_hostile(value: str) -> bool:
    """Whether a path of a table is hostile once other systems' ways of writing it are put right."""
    value = value.replace("\\", "/")
    while value.startswith("./"):
        value = value[2:].lstrip("/")
    try:
        check_relative(value)
    except ValueError:
        return True
    return False


def _fits(reader: str, value: Any) -> bool:
    """Whether the file format can hold the value at all."""
    text = isinstance(value, str)
    surrogate = text and any("\ud800" <= c <= "\udfff" for c in value)
    if reader.startswith("prepare, ") and ".parquet" not in reader:  # lines of text; a path of its own
        separators = set("\n\r") if "table.csv" in reader else set("\n\r,:")
        plain = text and value.strip() and not set(value) & separators and not surrogate
        return plain and (".csv" not in reader or _stays_hostile(value))
    if ".parquet" in reader:
        return text and not surrogate and _stays_hostile(value)
    if "stage's files" in reader:
        return text
    if "seal" in reader or "left out" in reader:  # the field may not be empty
        return text and not surrogate
    if reader in ("people, manifest, mask", "annotation, manifest, parsing") and value in (None, ""):
        return value == "" and "people" in reader  # no mask, no map
    if reader == "people, manifest, name" or reader == "people, manifest, path":
        return text and not surrogate
    if reader.endswith("--set"):
        return text and not surrogate
    if any(word in reader for word in ("manifest", "real list")):  # a Parquet column of text
        return value is None or (text and not any("\ud800" <= c <= "\udfff" for c in value))
    if "sheet" in reader or "made" in reader or "staged" in reader or "re-id" in reader:
        return text and not any("\ud800" <= c <= "\udfff" for c in value)
    return not isinstance(value, bytes)


PARTS = 6  # of the corpus: a reader's quick test tries one of them, so that all of them try every value
EVERY_PART = pytest.param(True, marks=pytest.mark.slow, id="all values")


@pytest.mark.parametrize("whole", [pytest.param(False, id="a part"), EVERY_PART])
@pytest.mark.parametrize("reader", READERS)
def test_no_reader_follows_a_hostile_value(
    reader: str, whole: bool, outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = [value for value in hostile_paths(outside) if _fits(reader, value)]
    if not whole:
        corpus = corpus[list(READERS).index(reader) % PARTS :: PARTS]
    folder = tmp_path / "work" / "folder"  # one for all values: nothing of a refused one may be left in it
    folder.mkdir(parents=True)
    left: list[str] = []
    with canaries_unharmed(outside, monkeypatch):
        for value in corpus:
            with pytest.raises((UserError, RefusedFileError)):
                READERS[reader](folder, value)
            left = left or sorted(os.listdir(folder))
    assert os.listdir(folder.parent) == [folder.name]
    assert sorted(os.listdir(folder)) == left  # no more than after the first value


@pytest.mark.parametrize("linked", [IMAGES, REAL, MANIFEST])
@pytest.mark.parametrize("verb", ["forget", "export", "verify"])
def test_a_set_with_a_linked_folder_is_refused(
    linked: str, verb: str, outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = augmented_set(tmp_path / "set", "canary.png", "canary.txt")
    if linked == MANIFEST:
        for file in (folder / MANIFEST).iterdir():
            shutil.move(file, outside)
    shutil.rmtree(folder / linked)
    (folder / linked).symlink_to(outside)
    verbs: dict[str, Callable[[], object]] = {
        "forget": lambda: forget(folder, 1),
        "export": lambda: export_set(folder, tmp_path / "out", "list"),
        "verify": lambda: set_faults(folder),
    }
    with canaries_unharmed(outside, monkeypatch), pytest.raises(UserError, match=r"link|outside"):
        verbs[verb]()
    assert not (folder / FORGETTING).exists()  # nothing is begun that is then refused


def _linked_lists(folder: Path, outside: Path) -> None:
    for name in ("list_train.txt", "list_val.txt", "list_query.txt", "list_gallery.txt"):
        (folder / name).symlink_to(outside / "canary.txt")
    for name in ("train", "test"):
        (folder / name).mkdir()
    list_msmt17(folder)


def _linked_list_folder(folder: Path, outside: Path) -> None:
    (folder / "lists").symlink_to(outside)
    _list_folder(folder, None)


def _linked_names(folder: Path, outside: Path) -> None:
    (folder / "train.lst").symlink_to(outside / "canary.txt")
    _read_lists(folder, [])


def _linked_splits(folder: Path, outside: Path) -> None:
    (folder / "splits_classic_labeled.json").symlink_to(outside / "canary.txt")
    list_cuhk03(folder, kind="labeled", protocol="classic")


def _linked_pairs(folder: Path, outside: Path) -> None:
    (folder / "pairs_train.csv").symlink_to(outside / "canary.txt")
    _training_pairs(DataConfig(folder=folder), None, None)  # type: ignore[arg-type]


def _linked_stage(folder: Path, outside: Path) -> None:
    (folder / "stages").mkdir()
    (folder / "stages" / "a-0").symlink_to(outside)
    raise UserError("\n".join(study_faults(folder)))


def _linked_stages(folder: Path, outside: Path) -> None:
    (folder / "stages").symlink_to(outside)
    study_faults(folder)


def _linked_stage_file(folder: Path, outside: Path) -> None:
    stage = Stage("a", "", {}, lambda place: ())
    (folder / "stages").mkdir()
    (folder / "stages" / stage.name).symlink_to(outside)
    StageCache(folder).file(stage, "canary.txt")


@pytest.mark.parametrize(
    "read",
    [
        _linked_lists,
        _linked_list_folder,
        _linked_names,
        _linked_splits,
        _linked_pairs,
        _linked_stage,
        _linked_stages,
        _linked_stage_file,
    ],
)
def test_a_list_or_stage_that_is_a_link_out_is_refused(
    read: Callable[[Path, Path], None], outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hashlib.sha256(SECRET).hexdigest()
    (outside / "done.json").write_text(json.dumps({"files": {"canary.txt": digest}}))
    (outside / "train.lst").write_text("x")
    (tmp_path / "set").mkdir()
    with canaries_unharmed(outside, monkeypatch), pytest.raises(UserError, match="outside"):
        read(tmp_path / "set", outside)


def test_stages_that_need_each_other_are_read_once(tmp_path: Path) -> None:
    """Of a chain in which each needs the next twice, each record is read once: not 2^60 times."""
    names = [f"a-{number:020x}" for number in range(60)]
    for name, below in zip(names, [*names[1:], None], strict=True):
        (tmp_path / "stages" / name).mkdir(parents=True)
        said = {"kind": "a", "inputs": {}, "needs": [below, below] if below else []}
        (tmp_path / "stages" / name / "inputs.json").write_text(json.dumps(said))
        (tmp_path / "stages" / name / "done.json").write_text('{"seconds": 1, "files": {}}')
    assert sum("is of another stage" in fault for fault in study_faults(tmp_path)) == 60
    said = {"kind": "a", "inputs": {}, "needs": [names[0]]}
    (tmp_path / "stages" / names[-1] / "inputs.json").write_text(json.dumps(said))
    assert any("is not what was written" in fault for fault in study_faults(tmp_path))  # a circle


def test_a_report_embeds_nothing_from_outside(
    outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate(
        ("config.json", "sections.json", "metrics.jsonl", "samples/a.png", "image_quality.json")
    ):
        folder = tmp_path / str(number)
        (folder / "samples").mkdir(parents=True)
        (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\n')
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(outside / "canary.txt")
        with canaries_unharmed(outside, monkeypatch), pytest.raises(UserError, match="outside"):
            write_report(folder)


def test_a_report_does_not_wait_for_a_fifo_nor_replace_a_page_of_the_users(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\n')
    with pytest.raises(UserError, match="FIFO"):
        write_report(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "report.html").write_text("<h1>my thesis</h1>")
    with pytest.raises(UserError, match="no report of this program"):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_text() == "<h1>my thesis</h1>"
    (tmp_path / "report.html").unlink()
    assert write_report(tmp_path) == write_report(tmp_path)  # its own page is replaced


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("sections.json", "{"),
        ("sections.json", '{"a": 1}'),
        ("sections.json", '[{"title": 1}]'),
        (
            "sections.json",
            '[{"title": "x", "text": [], "tables": [], "folds": [], '
            '"pictures": [{"caption": "x", "data": "http://x/y.png"}]}]',
        ),
        ("reidentification.json", "[]"),
        ("reidentification.json", '{"methods": {"a": 1}, "missing": []}'),
        ("image_quality.json", '{"metrics": 3}'),
        ("image_quality.json", "NaN"),
        ("metrics.jsonl", '{"step": "x"}\n'),
    ],
)
def test_a_malformed_file_is_one_clear_line(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=name):
        write_report(tmp_path)


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", "\r@"])
def test_no_cell_of_a_table_of_problems_is_a_formula(start: str) -> None:
    text = f"{start}cmd|' /C calc'!A0"
    rows = list(
        csv.reader(io.StringIO(problems_csv([AnnotationProblem(text, 3, text, text, text)]).decode()))
    )
    assert rows[0] == ["file", "row", "field", "rule", "message"]
    assert rows[1][1] == "3"
    for cell in (*rows[1][:1], *rows[1][2:]):
        assert cell[0] in "'\\"
        assert cell.isprintable()
        assert cell.endswith("cmd|' /C calc'!A0")  # what was there can still be read


def test_a_picture_replaces_generated_pictures_only(tmp_path: Path) -> None:
    """``generate --out SOURCE.jpg`` is refused by this; the same command again is not."""
    pixels = np.full((8, 4, 3), 128, np.uint8)
    source = tmp_path / "source.jpg"
    source.write_bytes(encode_jpeg(pixels, 90))
    (tmp_path / "link.png").symlink_to(source)
    (tmp_path / "notes.png").write_text("no picture")
    before = source.read_bytes()
    for victim in (source, tmp_path / "link.png", tmp_path / "notes.png"):
        with pytest.raises(UserError, match="no generated picture"):
            write_picture(victim, pixels)
    assert source.read_bytes() == before
    for name in ("out.png", "out.jpg"):
        write_picture(tmp_path / name, pixels)
        write_picture(tmp_path / name, pixels // 2)


# ---- no code goes around it

# Joins to what is neither a constant, nor formatted as a number, nor made by reposer.storage.paths:
# the right sides that were looked at, and why they are no value of a file, or checked already.
LISTED = "names that this disk lists, or that are constants of this file"
OWN = "made by this program from constants, counters and hashes"
NAMED = "a place that the user named on the command line, or its environment"
REVIEWED: dict[str, tuple[str, set[str]]] = {
    "app/server.py": ("a file of the package", {"file"}),
    "annotation/annotate.py": (LISTED, {"name"}),
    "annotation/annotators.py": (
        LISTED,  # name: for a message
        {"name", "os.path.realpath(images)", "os.path.realpath(place)"},
    ),
    "annotation/faults.py": (LISTED, {"scratch", "folder", "name"}),  # a temporary folder
    "annotation/onnx_session.py": (OWN, {"__file__"}),
    "annotation/overview.py": (OWN, {"name"}),
    "annotation/person_mask.py": (LISTED, {"f'{stem}{suffix}'", "name"}),
    "data/keypoint_imports.py": (LISTED, {"f'{stem}{suffix}'"}),
    "data/layouts/deepfashion.py": (
        LISTED,
        {"f", "file", "file.format(kind)", "f'{kind}.lst'", "lists", "path", "place"},
    ),
    "data/layouts/folder_scan.py": (LISTED, {"inside", "path", "name"}),
    "data/layouts/identity_folders.py": (LISTED, {"name", "below", "labels", "split", "path", "place"}),
    "data/layouts/labeled_files.py": (OWN, {"table", "file"}),
    "data/layouts/market1501.py": (LISTED, {"folder"}),
    "data/layouts/reid_layouts.py": (
        LISTED,
        {
            "f'cuhk03_new_protocol_config_{kind}.mat'",
            "f'splits_classic_{kind}.json'",
            "folder",
            "person",
            "f'list_{list_name}.txt'",
            "name",
        },
    ),
    "data/layouts/tables.py": (LISTED, {"spelling", "scratch"}),  # scratch: a temporary folder
    "data/packed.py": (OWN, {"f'{name}.npy'", "name"}),
    "data/preparing/annotation_lookup.py": (
        LISTED,
        {"s", "file", "given", "kind", "name", "place", "self.folders[kind]"},
    ),
    "data/preparing/packing.py": (OWN, {"f'{name}.npy'", "name"}),
    "data/preparing/prepare.py": (OWN, {"name", "os.path.abspath(out)"}),
    "evaluation/plots.py": (OWN, {"f'ranklist_{kind}.png'"}),
    "generation/forgetting.py": (LISTED, {"inside"}),
    "generation/lineage.py": (LISTED, {"extra"}),
    "generation/pair_sources.py": (OWN, {"record.name"}),
    "generation/pose_transfer.py": (OWN, {"settings['data']['folder']"}),
    "generation/set_exports.py": (OWN, {"image.name", "scratch"}),  # scratch: a temporary folder
    "generation/targets.py": (OWN, {"text"}),
    "jobs/shards.py": (OWN, {"name"}),
    "jobs/stages.py": (OWN, {"name", "stage.name", "f'{number}.log'"}),
    "losses/perceptual.py": (OWN, {"weights"}),
    "metrics/feature_networks.py": (OWN, {"f'v{version}'", "f'{net}.pth'", "lpips.__file__"}),
    "weights/network_folder.py": (OWN, {"name"}),
    "rendered/dataset.py": (OWN, {"f'{shot.stem}.png'", "name", "part"}),
    "rendered/renderer.py": (OWN, {"__file__"}),
    "report.py": (LISTED, {"name"}),
    "storage/bounded.py": (OWN, {"__file__"}),
    "storage/checkpoint.py": (OWN, {"name", "f'{name}.safetensors'"}),
    "storage/files.py": (
        LISTED,
        {"f'.{path.name}.replaced'", "f'.{path.name}.tmp-{secrets.token_hex(4)}'", "name"},
    ),
    "storage/lock.py": (OWN, {"name"}),
    "storage/manifest.py": (LISTED, {"f'_{path.stem}.sha256'"}),
    "storage/runs.py": (OWN, {"__file__", "f'{name}.png'"}),
    "storage/outputs.py": (LISTED, {"name", "place", "mark"}),  # of a seal that is read: contained()
    "studies/ablations.py": (OWN, {"getattr(recipe.data, name)"}),
    "studies/paper_report.py": (LISTED, {"name"}),
    "studies/paper_stages.py": (LISTED, {"PAIRS['val']"}),
    "trained/embedding.py": (OWN, {"settings['data']['folder']"}),
    "trained/onnx.py": (OWN, {"folder"}),  # a temporary folder
    "weights/downloads.py": (
        OWN,
        {
            "f'.{destination.name}.part'",
            "snapshot_download(repository, revision=revision, allow_patterns=list(files))",
        },
    ),
    "weights/files.py": (OWN, {"given", "known.file", "n", "own", "torch_home"}),
    "weights/wheels.py": (OWN, {"Path(member.path).name", "f'.{wheel.name}.fetched'"}),
    "workflows/evaluate.py": (OWN, {"name"}),
    "workflows/generate.py": (OWN, {"f'{image.stem}.png'", "file", "kind", "name", "target"}),
    "workflows/repose.py": (OWN, {"name"}),  # what --pose names
    "workflows/reid_evaluation.py": (OWN, {"name", "f'ranklist_{kind}.png'"}),
}
_MAKERS = {"contained", "unlinked", "made_folder", "Path", "Path.cwd", "Path.home"}
_CHECKS = {"check_relative", "check_name", "_checked"}
_LISTING = (".iterdir", ".glob", ".rglob")
_OF_A_NAME = {"suffix", "suffixes", "stem", "name", "parts"}  # Path(text).suffix is a text, not a path
_TEXT = {"os.path.basename", "os.path.splitext", "os.path.dirname"}


_text_of = cache(ast.unparse)  # a node is asked for its text by several rules


@cache
def _trees() -> dict[str, ast.Module]:
    """Every file of the package, by its path."""
    return {file.relative_to(SOURCE).as_posix(): ast.parse(file.read_text()) for file in SOURCE.rglob("*.py")}


def _annotated_as_path(annotation: ast.expr | None) -> bool:
    text = _text_of(annotation) if annotation is not None else ""
    return "Path" in text and not re.search(r"list|dict|tuple|Mapping|Sequence|Iter", text)


def _is_path(node: ast.expr, names: set[str], fields: set[str]) -> bool:
    if isinstance(node, ast.Name):
        return node.id in names
    if isinstance(node, ast.Attribute):
        return node.attr in fields
    if isinstance(node, ast.Call):
        called = _text_of(node.func)
        return called in _MAKERS or called.endswith((".with_name", ".with_suffix", ".absolute", ".resolve"))
    if isinstance(node, ast.IfExp):
        return _is_path(node.body, names, fields) or _is_path(node.orelse, names, fields)
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and _is_path(node.left, names, fields)


def _is_text(node: ast.expr) -> bool:
    """A text: what is left of a "/" before it can only be a path."""
    constant = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return constant or isinstance(node, ast.JoinedStr)


def _is_plain(node: ast.expr) -> bool:
    """A constant, a name in capitals, a text with numbers or hashes in it, or what was checked."""
    if isinstance(node, ast.Constant):
        return True
    if isinstance(node, ast.Name | ast.Attribute):
        return (node.id if isinstance(node, ast.Name) else node.attr).lstrip("_").isupper()
    if isinstance(node, ast.JoinedStr):
        values = [value for value in node.values if isinstance(value, ast.FormattedValue)]
        hashes = (".hexdigest()", ".key")
        return all(
            v.format_spec is not None or _text_of(v.value).endswith(hashes) or _is_plain(v.value)
            for v in values
        )
    return isinstance(node, ast.Call) and _text_of(node.func) in _CHECKS


def _fields(trees: Iterable[ast.Module]) -> set[str]:
    """Names of attributes that are paths in any class."""
    found = {"parent", "folder", "root"}
    for tree in trees:
        for node in ast.walk(tree):
            for part in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(part, ast.AnnAssign) and _annotated_as_path(part.annotation):
                    found.add(_text_of(part.target))
    return found


def _bindings(node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr, bool]]:
    """(name, value, whether it stands for each item of the value) of assignments, loops and ``with``."""
    if isinstance(node, ast.Assign):
        for target in node.targets:
            both = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
            pairs = zip(target.elts, node.value.elts, strict=False) if both else [(target, node.value)]
            yield from ((a, b, False) for a, b in pairs)
    elif isinstance(node, ast.NamedExpr):
        yield node.target, node.value, False
    elif isinstance(node, ast.For | ast.comprehension):
        yield node.target, node.iter, True
    elif isinstance(node, ast.withitem) and node.optional_vars is not None:
        yield node.optional_vars, node.context_expr, False


def _are_paths(node: ast.expr, names: set[str], fields: set[str]) -> bool:
    """Whether it is a listing of a folder, sorted or not, or a tuple of paths."""
    if isinstance(node, ast.Call):
        called = _text_of(node.func)
        if called in ("sorted", "list", "reversed") and node.args:
            return _are_paths(node.args[0], names, fields)
        return called.endswith(_LISTING)
    if isinstance(node, ast.GeneratorExp | ast.ListComp):
        return _is_path(node.elt, names, fields)
    return isinstance(node, ast.Tuple) and any(_is_path(part, names, fields) for part in node.elts)


def _path_names(nodes: list[ast.AST], fields: set[str]) -> set[str]:
    """Names that stand for a path somewhere in a file."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.arg | ast.AnnAssign) and _annotated_as_path(node.annotation):
            names.add(node.arg if isinstance(node, ast.arg) else _text_of(node.target))
    bindings = [binding for node in nodes for binding in _bindings(node) if isinstance(binding[0], ast.Name)]
    for _ in range(3):  # a path may be made of a path that is made of a path
        for target, value, each in bindings:
            made = isinstance(value, ast.Call) and _text_of(value.func) == "atomic_folder"
            path = _are_paths(value, names, fields) if each else made or _is_path(value, names, fields)
            if isinstance(target, ast.Name) and path:
                names.add(target.id)
    return names


def unchecked_joins(tree: ast.Module, fields: set[str]) -> set[str]:
    """The texts that become paths, or ends of paths, and that nobody has looked at."""
    nodes = list(ast.walk(tree))
    names = _path_names(nodes, fields)
    texts = {id(node.value) for node in nodes if isinstance(node, ast.Attribute) and node.attr in _OF_A_NAME}
    found: list[ast.expr] = []
    for node in nodes:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            if _is_path(node.left, names, fields) or _is_text(node.right):
                found.append(node.right)
        elif isinstance(node, ast.Call):
            called, values = _text_of(node.func), node.args
            if called in ("os.path.join", "path.join", "join"):
                found += values[1:]
            elif called.endswith((".joinpath", ".with_name")):
                found += values
            elif called in ("Path", "pathlib.Path") and id(node) not in texts:
                found += [value for value in values if not _is_path(value, names, fields)]
    return {_text_of(value) for value in found if not _is_plain(value)}


def test_every_value_becomes_a_path_in_one_place() -> None:
    trees = _trees()
    fields = _fields(trees.values())
    found = {name: unchecked_joins(tree, fields) for name, tree in trees.items()}
    del found["storage/paths.py"]
    new = {name: joins - REVIEWED.get(name, ("", set()))[1] for name, joins in found.items()}
    assert {name: joins for name, joins in new.items() if joins} == {}, (
        "use contained(), or unlinked() to write"
    )


@pytest.mark.parametrize(
    "line",
    [
        'root / row["file"]',
        "root / name",
        'root / f"{name}.png"',
        "root / IMAGES / record.path",
        'os.path.join(root, row["file"])',
        "root.joinpath(name)",
        'Path(settings["folder"])',
        "(root / IMAGES) / table[row].as_py()",
        "Path(name)",
        "pathlib.Path(name).read_bytes()",
        "Path(root, name)",
        'row.place / f"{name}.png"',
        'os.path.join(row, f"{name}.png")',
        "[place / name for place in sorted(root.iterdir())]",
        "next(place for place in (root, root.parent)) / f'{name}'",
    ],
)
def test_the_search_finds(line: str) -> None:
    assert unchecked_joins(ast.parse(f"def f(root: Path, row, name):\n    return {line}"), set())


def test_the_search_lets_pass_what_is_checked() -> None:
    good = """a = root / "x"; b = root / IMAGES; c = contained(root, row["file"]); d = root / f"step_{n:08d}"
    e = Path(root); f = Path(row["file"]).suffix; g = len(row) / n; h = row.place / f"{IMAGES}/x" """
    assert not unchecked_joins(ast.parse(f"def f(root: Path, row, n):\n    {good}"), set())


# What opens a file without a look at its kind, and why it may: all else goes through storage/paths.py.
_OPENS = {
    "app/server.py": "parts of the package",
    "annotation/faults.py": "written a moment before, in a scratch folder",
    "annotation/onnx_session.py": "a file of the kernel's",
    "cli/folders.py": "written a moment before",
    "data/layouts/folder_scan.py": "after require_regular",
    "data/preparing/packing.py": "makes files",
    "data/packed.py": "np.load after require_regular",
    "data/synthetic/people.py": "a cache, after its sha256",
    "evaluation/image_sets.py": "after is_file",
    "generation/pictures.py": "after is_file",
    "jobs/claims.py": "a file of the kernel's",
    "jobs/shards.py": "makes a file",
    "jobs/stages.py": "a log of this process",
    "reid/features.py": "after is_file",
    "report.py": "a part of the package",
    "runtime.py": "a file of the kernel's",
    "storage/manifest.py": "after lstat",
    "storage/runs.py": "a file of the kernel's",
    "studies/report.py": "sealed stages and the study's own file",
    "trained/onnx.py": "written a moment before",
    "weights/downloads.py": "its own part of a download",
    "weights/files.py": "after require_regular",
    "workflows/reid_features.py": "after is_file",
}


def _opens(tree: ast.Module) -> set[str]:
    """Calls that open or read a path which may be a FIFO or a device: they can wait, or read, for ever."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = _text_of(node.func)
            modes = [*node.args, *(keyword.value for keyword in node.keywords)]
            mode = any(isinstance(m, ast.Constant) and m.value in ("r", "rb", "r+b", "xb") for m in modes)
            reads = called.endswith((".read_bytes", ".read_text", "np.load", "os.fdopen"))
            if reads or called == "open" or (called.endswith(".open") and mode):
                found.add(called)
    return found


def test_files_are_opened_after_a_look_at_their_kind() -> None:
    found = {name for name, tree in _trees().items() if _opens(tree)} - {"storage/paths.py"}
    assert found - _OPENS.keys() == set(), "use read_regular() or open_regular()"
    assert _OPENS.keys() - found == set(), "no longer opens anything: take it out of the list"


def test_a_file_without_end_is_refused_at_once(tmp_path: Path) -> None:
    """Each reader that takes a file of a user's or a stranger's, given a device, a FIFO and a folder."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    zero = tmp_path / "zero"
    zero.symlink_to("/dev/zero")
    for place in (Path("/dev/zero"), zero, tmp_path / "fifo", tmp_path / "folder"):
        for read in (sha256_file, open_regular, read_table, partial(read_regular, max_bytes=10)):
            with pytest.raises(RefusedFileError, match="not a regular file"):
                read(place)


@pytest.mark.parametrize("name", [HEADER, ROWS, "images.npy", "mask.npy"])
def test_a_prepared_folder_with_a_fifo_is_refused_at_once(name: str, tmp_path: Path) -> None:
    folder = pack_planted(tmp_path, [Planted(1, 1)]).folder
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(AnnotationError, match=name):
        PackedPeople.open(folder)


_CHANGES = {"unlink", "rmtree", "mkdir", "makedirs", "symlink_to", "hardlink_to"}


def test_folders_are_made_and_files_deleted_in_few_places() -> None:
    allowed = {f"storage/{name}.py" for name in ("paths", "files", "outputs", "lock")}  # the house rules
    found = {}
    for name, tree in _trees().items():
        calls = {
            n.func.attr
            for n in ast.walk(tree)
            if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)
        }
        if name not in allowed and calls & _CHANGES:
            found[name] = calls & _CHANGES
    assert found == CHANGES_REVIEWED


# Inside a folder that is being built; files of one fixed name.
CHANGES_REVIEWED: dict[str, set[str]] = {
    "generation/augmented_rows.py": {"unlink"},
    "generation/forgetting.py": {"unlink"},
    "generation/set_exports.py": {"mkdir"},
    "rendered/dataset.py": {"mkdir"},
    "weights/downloads.py": {"unlink"},
    "weights/wheels.py": {"mkdir", "rmtree"},
}


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ([{}] * 1001, "1,001 sections, at most 1,000"),
        (
            [{"pictures": [{"caption": "", "data": "data:image/png;base64,iVBORw0KGgo="}] * 2001}],
            "2,001 pictures",
        ),
        ([{"tables": [{"columns": ["a"], "rows": [["1"] * 1001] * 1000}]}], "1,001,000 cells"),
    ],
)
def test_a_report_has_an_end(sections: list[dict[str, Any]], told: str, tmp_path: Path) -> None:
    empty: dict[str, Any] = {"title": "x", "text": [], "pictures": [], "tables": [], "folds": []}
    (tmp_path / SECTIONS_FILE).write_text(json.dumps([empty | section for section in sections]))
    with pytest.raises(UserError, match=told):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()
