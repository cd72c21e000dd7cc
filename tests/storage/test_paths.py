"""Paths in files: no value of a stranger's file reads, writes or deletes outside the folders that were named.

Three nets: the rule itself on a generated corpus; readers of manifests, lists, sections and journals on that
corpus, with canaries outside and a watch on what is opened; and a search of the source for code that makes a
path of a value without asking ``reposer.storage.paths``.
"""

from __future__ import annotations

import ast
import csv
import io
import itertools
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reposer.annotation.overview import draw_sheet
from reposer.data.problems import AnnotationProblem, problems_csv
from reposer.errors import UserError
from reposer.generation.augmented_rows import COLUMNS, KIND, REAL, REAL_COLUMNS, REAL_ROWS
from reposer.generation.forgetting import forget
from reposer.generation.lineage import set_faults
from reposer.generation.outputs import write_picture
from reposer.generation.set_exports import export_set
from reposer.images import encode_jpeg
from reposer.jobs.journal import BOOK, PLAN, ShardFiles, Task, place_fault, read_shards
from reposer.report import write_report
from reposer.sections import SECTIONS_FILE
from reposer.storage.manifest import IMAGES, JOB, MANIFEST, part_path, write_part
from reposer.storage.paths import RefusedFileError, check_relative, contained, delete, made_folder, unlinked

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
    if not _watched["inodes"] or event not in _EVENTS:
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


# ---- every reader


def augmented_set(folder: Path, file: Any, real: Any) -> Path:
    """A set as ``augment`` writes it, of one picture and one real image, with these two names."""
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
    row = dict.fromkeys((name for name, _ in COLUMNS))
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
    write_part(part_path(folder, 0), [row], COLUMNS)
    write_part(
        folder / REAL_ROWS,
        [{"file": real, "sha256": "0" * 64, "pid": 1, "camid": 1}],
        REAL_COLUMNS,
        synthetic=False,
    )
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
    task = Task(folder, folder, folder / BOOK, {}, {}, (), ())
    files = ShardFiles(task, 0)
    files.put(value, b"x")
    files.commit([])


READERS: dict[str, Callable[[Path, Any], None]] = {
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


def _fits(reader: str, value: Any) -> bool:
    """Whether the file format can hold the value at all."""
    text = isinstance(value, str)
    if any(word in reader for word in ("manifest", "real list")):  # a Parquet column of text
        return value is None or (text and not any("\ud800" <= c <= "\udfff" for c in value))
    if "sheet" in reader or "made" in reader or "staged" in reader or "re-id" in reader:
        return text and not any("\ud800" <= c <= "\udfff" for c in value)
    return not isinstance(value, bytes)


@pytest.mark.parametrize("reader", READERS)
def test_no_reader_follows_a_hostile_value(
    reader: str, outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = [value for value in hostile_paths(outside) if _fits(reader, value)]
    if "manifest" in reader or "real list" in reader or "sheet" in reader:  # two files to write each: a part
        plain = [
            value
            for value in corpus
            if not isinstance(value, str)
            or not set(value) & {chr(c) for c in range(1, 160) if not chr(c).isprintable()}
        ]
        corpus = plain[:: 1 if reader in ("forget, manifest", "export-set, manifest") else 5]
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a thousand small files: not the matter here
    for number, value in enumerate(corpus):
        folder = tmp_path / "work" / str(number)
        folder.mkdir(parents=True)
        with canaries_unharmed(outside, monkeypatch), pytest.raises((UserError, RefusedFileError)):
            READERS[reader](folder, value)
        shutil.rmtree(folder)
    assert not any((tmp_path / "work").iterdir())  # nothing beside the folders that were named


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
REVIEWED: dict[str, tuple[str, set[str]]] = {
    "annotation/annotate.py": (LISTED, {"name"}),
    "annotation/annotators.py": (LISTED, {"os.path.realpath(images)", "os.path.realpath(place)"}),
    "annotation/faults.py": (LISTED, {"folder", "name"}),
    "annotation/overview.py": (OWN, {"name"}),
    "annotation/person_mask.py": (LISTED, {"f'{stem}{suffix}'", "name"}),
    "data/keypoint_imports.py": (LISTED, {"f'{stem}{suffix}'"}),
    "data/layouts/deepfashion.py": (LISTED, {"f", "file", "file.format(kind)", "path", "place"}),
    "data/layouts/folder_scan.py": (LISTED, {"inside", "path"}),
    "data/layouts/identity_folders.py": (LISTED, {"name", "below", "split", "path", "place"}),
    "data/layouts/labeled_files.py": (LISTED, {"table"}),
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
    "data/layouts/tables.py": (LISTED, {"spelling"}),
    "data/packed.py": (OWN, {"f'{name}.npy'", "name"}),
    "data/preparing/annotation_lookup.py": (LISTED, {"s", "file", "kind", "name", "self.folders[kind]"}),
    "data/preparing/packing.py": (OWN, {"f'{name}.npy'", "name"}),
    "data/preparing/prepare.py": (OWN, {"name", "os.path.abspath(out)"}),
    "evaluation/plots.py": (OWN, {"f'ranklist_{kind}.png'"}),
    "generation/forgetting.py": (LISTED, {"inside"}),
    "generation/map_prediction.py": (OWN, {"settings['data']['folder']"}),
    "generation/pair_sources.py": (OWN, {"record.name"}),
    "generation/pose_transfer.py": (OWN, {"settings['data']['folder']"}),
    "generation/set_exports.py": (OWN, {"image.name"}),
    "jobs/shards.py": (OWN, {"name", "str(number)"}),
    "jobs/stages.py": (OWN, {"name", "stage.name", "f'{number}.log'"}),
    "metrics/lpips.py": (OWN, {"f'v{version}'", "f'{net}.pth'", "lpips.__file__"}),
    "models/pretrained.py": (OWN, {"name"}),
    "rendered/dataset.py": (OWN, {"f'{shot.stem}.png'", "name", "part"}),
    "report.py": (LISTED, {"name"}),
    "storage/checkpoint.py": (OWN, {"name", "f'{name}.safetensors'"}),
    "storage/files.py": (
        LISTED,
        {"f'.{path.name}.replaced'", "f'.{path.name}.tmp-{secrets.token_hex(4)}'", "name"},
    ),
    "storage/lock.py": (OWN, {"name"}),
    "storage/manifest.py": (LISTED, {"f'_{path.stem}.sha256'"}),
    "storage/outputs.py": (LISTED, {"name"}),
    "storage/runs.py": (OWN, {"f'{name}.png'"}),
    "storage/seals.py": (OWN, {"name", "place"}),  # of a seal that is read: contained()
    "studies/ablations.py": (OWN, {"getattr(recipe.data, name)"}),
    "trained/embedding.py": (OWN, {"settings['data']['folder']"}),
    "training/gan/data.py": (OWN, {"data.pairs", "data.validation_pairs", "path"}),
    "weights/downloads.py": (
        OWN,
        {
            "f'.{destination.name}.part'",
            "snapshot_download(repository, revision=revision, allow_patterns=list(files))",
        },
    ),
    "weights/files.py": (LISTED, {"n"}),
    "workflows/evaluate.py": (OWN, {"PAIRS['val']"}),
    "workflows/generate.py": (OWN, {"f'{image.stem}.png'", "file", "kind"}),
    "workflows/reid_evaluation.py": (OWN, {"name", "f'ranklist_{kind}.png'"}),
}
_MAKERS = {"contained", "unlinked", "made_folder", "Path"}
_CHECKS = {"check_relative", "check_name", "_checked"}


def _annotated_as_path(annotation: ast.expr | None) -> bool:
    text = ast.unparse(annotation) if annotation is not None else ""
    return "Path" in text and not re.search(r"list|dict|tuple|Mapping|Sequence|Iter", text)


def _is_path(node: ast.expr, names: set[str], fields: set[str]) -> bool:
    if isinstance(node, ast.Name):
        return node.id in names
    if isinstance(node, ast.Attribute):
        return node.attr in fields
    if isinstance(node, ast.Call):
        called = ast.unparse(node.func)
        return called in _MAKERS or called.endswith((".with_name", ".with_suffix", ".absolute", ".resolve"))
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and _is_path(node.left, names, fields)


def _is_plain(node: ast.expr) -> bool:
    """A constant, a name in capitals, a text with numbers or hashes in it, or what was checked."""
    if isinstance(node, ast.Constant):
        return True
    if isinstance(node, ast.Name | ast.Attribute):
        return (node.id if isinstance(node, ast.Name) else node.attr).lstrip("_").isupper()
    if isinstance(node, ast.JoinedStr):
        values = [value for value in node.values if isinstance(value, ast.FormattedValue)]
        return all(v.format_spec is not None or ast.unparse(v.value).endswith(".hexdigest()") for v in values)
    return isinstance(node, ast.Call) and ast.unparse(node.func) in _CHECKS


def _fields(trees: Iterable[ast.Module]) -> set[str]:
    """Names of attributes that are paths in any class."""
    found = {"parent", "folder", "root"}
    for tree in trees:
        for node in ast.walk(tree):
            for part in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(part, ast.AnnAssign) and _annotated_as_path(part.annotation):
                    found.add(ast.unparse(part.target))
    return found


def unchecked_joins(tree: ast.Module, fields: set[str]) -> set[str]:
    """The right sides of joins to a path that nobody has looked at."""
    names: set[str] = set()
    nodes = list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.arg | ast.AnnAssign) and _annotated_as_path(node.annotation):
            names.add(node.arg if isinstance(node, ast.arg) else ast.unparse(node.target))
    for _ in range(3):  # a path may be made of a path that is made of a path
        for node in nodes:
            for target in node.targets if isinstance(node, ast.Assign) else ():
                both = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
                pairs = zip(target.elts, node.value.elts, strict=False) if both else [(target, node.value)]
                names |= {a.id for a, b in pairs if isinstance(a, ast.Name) and _is_path(b, names, fields)}
    found = set()
    for node in nodes:
        if (
            isinstance(node, ast.BinOp)
            and isinstance(node.op, ast.Div)
            and _is_path(node.left, names, fields)
        ):
            found |= set() if _is_plain(node.right) else {ast.unparse(node.right)}
        elif isinstance(node, ast.Call):
            called, values = ast.unparse(node.func), node.args
            if called == "os.path.join" or called.endswith((".joinpath", ".with_name")):
                values = values[1:] if called == "os.path.join" else values
                found |= {ast.unparse(value) for value in values if not _is_plain(value)}
            elif called == "Path" and values and not isinstance(values[0], ast.Name | ast.Constant):
                found.add(ast.unparse(values[0]))
    return found


def test_every_value_becomes_a_path_in_one_place() -> None:
    trees = {
        file.relative_to(SOURCE).as_posix(): ast.parse(file.read_text()) for file in SOURCE.rglob("*.py")
    }
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
    ],
)
def test_the_search_finds(line: str) -> None:
    assert unchecked_joins(ast.parse(f"def f(root: Path, row, name):\n    return {line}"), set())


def test_the_search_lets_pass_what_is_checked() -> None:
    good = 'a = root / "x"; b = root / IMAGES; c = contained(root, row["file"]); d = root / f"step_{n:08d}"'
    assert not unchecked_joins(ast.parse(f"def f(root: Path, row, n):\n    {good}"), set())


_CHANGES = {"unlink", "rmtree", "mkdir", "makedirs", "symlink_to", "hardlink_to"}


def test_folders_are_made_and_files_deleted_in_few_places() -> None:
    allowed = {f"storage/{name}.py" for name in ("paths", "files", "outputs", "lock")}  # the house rules
    found = {}
    for file in SOURCE.rglob("*.py"):
        name = file.relative_to(SOURCE).as_posix()
        calls = {
            n.func.attr
            for n in ast.walk(ast.parse(file.read_text()))
            if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)
        }
        if name not in allowed and calls & _CHANGES:
            found[name] = calls & _CHANGES
    assert found == CHANGES_REVIEWED


# Folders that the user named, or inside a folder that is being built; files of one fixed name.
CHANGES_REVIEWED: dict[str, set[str]] = {
    "data/preparing/packing.py": {"mkdir"},
    "data/preparing/prepare.py": {"mkdir"},
    "evaluation/image_sets.py": {"mkdir"},
    "evaluation/map_quality.py": {"mkdir"},
    "evaluation/plots.py": {"mkdir"},
    "evaluation/reid_comparison.py": {"mkdir"},
    "generation/augmented_rows.py": {"unlink"},
    "generation/forgetting.py": {"unlink"},
    "generation/set_exports.py": {"mkdir"},
    "jobs/shards.py": {"mkdir", "rmtree"},
    "rendered/dataset.py": {"mkdir"},
    "studies/ablations.py": {"mkdir"},
    "studies/demo.py": {"mkdir"},
    "studies/study.py": {"mkdir"},
    "trained/onnx.py": {"mkdir"},
    "weights/downloads.py": {"mkdir", "unlink"},
    "weights/licenses.py": {"mkdir"},
    "workflows/evaluate.py": {"mkdir"},
    "workflows/reid_evaluation.py": {"mkdir"},
    "workflows/reid_features.py": {"mkdir"},
}
