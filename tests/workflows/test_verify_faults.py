"""One fault at a time in every kind of folder that is written: `reposer verify` finds each of them.

Every file of a folder is taken in turn: a bit flipped, cut short, emptied, deleted, or swapped with another.
And every value of every JSON record is replaced by one of another kind: an answer in words, never a fault of
the program's own.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from given_files import File, GivenFiles, write_given
from PIL import Image

from reposer.data.packed import PackedPeople
from reposer.data.preparing.prepare import prepare_people
from reposer.errors import UserError
from reposer.generation.pictures import encode_marked
from reposer.images import encode_png
from reposer.jobs.stages import Stage, StageCache, in_order, seal_study, work
from reposer.models.embedding import Embedding
from reposer.storage.files import sha256_bytes, write_atomic
from reposer.storage.manifest import seal_job, write_part
from reposer.storage.outputs import SEAL, write_seal
from reposer.storage.paths import CHECKPOINTS
from reposer.trained.networks import EMBEDDING, of_run
from reposer.workflows.reid_features import check_data
from reposer.workflows.verify import verify_folder

COLUMNS = (("source", pa.string()), ("synthetic", pa.bool_()))


def prepared(folder: Path) -> Path:
    """Four drawn people of three images each, one held out, with parsing maps that make pairs."""
    raw, rng = folder / "raw", np.random.default_rng(0)
    for pid in range(1, 5):
        for shot in range(3):
            name = f"{pid:04d}/{pid:04d}_c{shot + 1}_{shot}.png"
            pictures = {name: rng.integers(0, 256, (32, 16, 3)), f"parsing/{name}": np.full((32, 16), 5)}
            for place, pixels in pictures.items():
                (raw / place).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(raw / place)
    options = {"camera": "_c([0-9]{1,3})", "identity": None, "labels": None, "anonymous": False}
    out = folder / "prepared"
    prepare_people("folders", raw, out, options=options, holdout=1, size=(32, 16), pairs="parsing")
    return out


def picture(number: int) -> bytes:
    """A marked PNG."""
    return encode_marked(np.full((4, 2, 3), number, np.uint8), "png")


def generated(folder: Path) -> Path:
    """Nine files of a job in three shards."""

    def file(item: int) -> File:
        return f"{item}.png", picture(item), {"source": str(item), "synthetic": True}

    settings = {"kind": "test", "checkpoint": "c" * 64}
    write_given(folder / "generated", GivenFiles(file), 9, 3, list(COLUMNS), settings, {"threads": 1})
    return folder / "generated"


def exported(folder: Path) -> Path:
    """A small Re-ID network, and something in the place of its ONNX file."""
    small = {"backbone": "small", "backbone_args": {"widths": [4, 6, 8]}, "size": (32, 16)}
    Embedding(**small).save_pretrained(folder / "x")
    write_atomic(folder / "x" / "embedding.onnx", bytes(range(200)))
    write_seal(folder / "x", [path.name for path in (folder / "x").iterdir()])
    return folder / "x"


def study(folder: Path) -> Path:
    """Two stages that need a third, and a table."""

    def make(text: str) -> Callable[[Path], list[str]]:
        def made(place: Path) -> list[str]:
            write_atomic(place / "made.txt", text.encode())
            return ["made.txt"]

        return made

    first = Stage("set", "a", {"seed": 0}, make("a set of pictures"))
    others = [Stage("run", f"b{n}", {"seed": n}, make(f"run {n} on it"), (first,)) for n in (1, 2)]
    root = folder / "study"
    work(StageCache(root), in_order(others))
    for name in ("study.json", "table.md"):
        write_atomic(root / name, b'{"a": "made up"}\n')
    seal_study(root)
    return root


KINDS = {"prepared": prepared, "generated": generated, "exported": exported, "study": study}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {kind: write(tmp_path_factory.mktemp(kind)) for kind, write in KINDS.items()}


def files_of(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"]


def found(folder: Path) -> bool:
    try:
        return bool(verify_folder(folder)[1])
    except UserError:
        return True


def flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


FAULTS: dict[str, Callable[[Path, random.Random], Any]] = {
    "flip": flip,
    "cut": lambda path, rng: path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)]),
    "longer": lambda path, rng: path.write_bytes(path.read_bytes() + b"0"),
    "delete": lambda path, rng: path.unlink(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_single_fault_of_every_file_is_found(folders, tmp_path, kind):
    folder, rng, missed = folders[kind], random.Random(0), []
    assert verify_folder(folder)[1] == []
    for path in files_of(folder):
        for name, damage in FAULTS.items():
            if kind == "exported" and path.name == SEAL:
                continue  # the hub's layout says nothing of it: without it only the weights are checked
            keep = path.read_bytes()
            damage(path, rng)
            if not found(folder):
                missed.append((path.name, name))
            path.write_bytes(keep)
    assert missed == []
    assert verify_folder(folder)[1] == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_is_gone_or_no_folder_is_found(folders, tmp_path, kind):
    source = folders[kind]
    inside = [path.relative_to(source) for path in source.rglob("*") if path.is_dir() and any(path.iterdir())]
    for number, name in enumerate(sorted(inside)):
        copied = Path(shutil.copytree(source, tmp_path / f"{number}"))
        shutil.rmtree(copied / name)
        assert found(copied), name
        (copied / name).write_bytes(b"no folder")
        assert found(copied), name
    if kind == "generated":
        copied = Path(shutil.copytree(source, tmp_path / "images"))
        shutil.rmtree(copied / "images")
        assert verify_folder(copied)[1] == [f"images/{item}.png is missing" for item in range(9)]


@pytest.mark.parametrize("kind", KINDS)
def test_two_files_in_each_others_place_are_found(folders, kind):
    folder, missed = folders[kind], []
    files = files_of(folder)
    rng = random.Random(1)
    for _ in range(40):
        one, other = rng.sample(files, 2)
        first, second = one.read_bytes(), other.read_bytes()
        if first == second or {one.name, other.name} & ({SEAL} if kind == "exported" else set()):
            continue
        one.write_bytes(second)
        other.write_bytes(first)
        if not found(folder):
            missed.append((one.name, other.name))
        one.write_bytes(first)
        other.write_bytes(second)
    assert missed == []


def test_whole_stages_in_each_others_place_are_found(folders, tmp_path):
    root = shutil.copytree(folders["study"], tmp_path / "study")
    one, other = sorted((root / "stages").glob("run-*"))
    one.rename(tmp_path / "aside")
    other.rename(one)
    (tmp_path / "aside").rename(other)
    assert any("is of another stage" in fault for fault in verify_folder(root)[1])


def test_a_dropped_row_with_its_picture_is_found_though_the_part_is_sealed_anew(folders, tmp_path):
    folder = shutil.copytree(folders["generated"], tmp_path / "g")
    rows = [
        {"file": f"{i}.png", "sha256": sha256_bytes(picture(i)), "source": str(i), "synthetic": i != 7}
        for i in (6, 7)
    ]
    (folder / "images" / "8.png").unlink()
    write_part(folder / "manifest" / "part-00002.parquet", rows, COLUMNS)
    faults = "\n".join(verify_folder(folder)[1])
    assert "part-00002.parquet: differs from its sha256 in the seal" in faults
    assert "7.png: synthetic is not true" in faults
    (folder / SEAL).unlink()
    assert "seal.json: is missing" in "\n".join(verify_folder(folder)[1])


def test_a_stripped_mark_is_found_though_every_hash_is_made_anew(folders, tmp_path):
    folder = shutil.copytree(folders["generated"], tmp_path / "g")
    bare = encode_png(np.full((4, 2, 3), 6, np.uint8))
    (folder / "images" / "6.png").write_bytes(bare)
    data = {i: (folder / "images" / f"{i}.png").read_bytes() for i in (6, 7, 8)}
    rows = [
        {"file": f"{i}.png", "sha256": sha256_bytes(data[i]), "source": str(i), "synthetic": True}
        for i in data
    ]
    write_part(folder / "manifest" / "part-00002.parquet", rows, COLUMNS)
    seal_job(folder)
    assert verify_folder(folder)[1] == ["images/6.png lacks the mark of a generated picture"]


@pytest.mark.parametrize("items", [10**9, 10**30, -1, True, 2.5, None, [9]])
def test_a_count_that_no_folder_holds_is_refused_at_once(folders, tmp_path, items):
    """A list as long as a foreign record says would fill the memory."""
    folder = shutil.copytree(folders["generated"], tmp_path / "g")
    job = json.loads((folder / "job.json").read_text())
    for key in ("items", "shard_items"):
        (folder / "job.json").write_text(json.dumps(job | {key: items}))
        assert found(folder)
        if key == "items":
            with pytest.raises(UserError, match=r"shards are not there|is no job of reposer"):
                verify_folder(folder)


def test_a_folder_of_before_the_seals_is_still_held_against_its_report(folders, tmp_path):
    folder = shutil.copytree(folders["prepared"], tmp_path / "p")
    (folder / SEAL).unlink()
    report = json.loads((folder / "report.json").read_text())
    del report["seal"]
    (folder / "report.json").write_text(json.dumps(report))
    assert verify_folder(folder)[1] == []
    lines = (folder / "pairs_train.csv").read_text().splitlines()
    (folder / "pairs_train.csv").write_text("\n".join(lines[:-1]) + "\n")
    assert f"{len(lines) - 2} pairs, {len(lines) - 1} in report.json" in verify_folder(folder)[1][0]
    flip(folder / "manifest.parquet", random.Random(0))
    assert "differs from the sha256 in report.json" in verify_folder(folder)[1][0]
    (folder / "report.json").unlink()
    assert "report.json: cannot be read" in verify_folder(folder)[1][0]


# ---- values of another kind in every record

DEEP: Any = None
for _ in range(200):
    DEEP = [DEEP]
HOSTILE: tuple[Any, ...] = (None, [], {}, "x", -1, 10**30, DEEP, ["\ud800"])


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value, the whole included."""
    yield path
    items: Any = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        items = enumerate(value[:2])
    for key, part in items:
        yield from places(part, (*path, key))


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    value = copy.copy(value)
    value[path[0]] = changed(value[path[0]], path[1:], new)
    return value


def run(folder: Path) -> Path:
    """A run folder with the records of a Re-ID training; its checkpoint holds one tensor."""
    import torch

    from reposer.config import stored_hash
    from reposer.storage import checkpoint

    root = folder / "run"
    root.mkdir()
    settings = {"embedding": {"backbone": "small"}, "data": {"folder": "/d", "splits": ["train"]}}
    (root / "config.json").write_text(json.dumps(settings))
    inputs = {"prepared": "a" * 64}
    (root / "environment.json").write_text(json.dumps({"inputs": inputs}))
    meta = {"config_hash": stored_hash(root / "config.json"), "inputs": inputs, "identity_hash": "b" * 64}
    checkpoint.save(root / CHECKPOINTS, 1, {"network": {"embedding.w": torch.zeros(1)}}, meta)
    return root


@pytest.mark.parametrize("share", [0.04, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", [*KINDS, "run"])
def test_a_value_of_another_kind_is_told_in_words(folders, tmp_path, kind, share):
    folder = run(tmp_path) if kind == "run" else folders[kind]
    people = PackedPeople.open(folders["prepared"] / "packed")
    tried, rng = 0, random.Random(2)
    for path in files_of(folder):
        if path.suffix != ".json":
            continue
        keep = path.read_bytes()
        document = json.loads(keep)
        for place in list(places(document))[:14]:
            for hostile in HOSTILE:
                if rng.random() > share:
                    continue
                path.write_text(json.dumps(changed(document, place, hostile)))
                uses: list[Callable[[], Any]] = [lambda: verify_folder(folder)]
                if kind == "run":
                    uses += [lambda: of_run(EMBEDDING, folder), lambda: check_data(people, folder)]
                if kind == "exported":
                    uses += [lambda: Embedding.from_pretrained(folder)]
                if kind == "prepared":
                    uses += [lambda: PackedPeople.open(folder / "packed")]
                for use in uses:
                    tried += 1
                    with suppress(UserError):  # anything else is a fault of ours
                        use()
        path.write_bytes(keep)
    assert tried > 60 * share
