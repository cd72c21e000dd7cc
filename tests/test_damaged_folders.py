"""Every file of every kind of folder damaged in every way, and every command that opens the folder.

A file is deleted, cut, emptied, zeroed, filled with other bytes, or has a link that leads out, a FIFO or a
folder in its place. Whatever a command makes of that, it is an answer or one line: never a fault of ours,
never a hang, and nothing outside the folder and the output is written, or shown where a link leads out. The
default suite tries a sample, the slow one every file, fault and command.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from zoo import ONE_STEP, SMALL_REID, SMALL_SAN, settings, small_study, write_zoo

from reposer.errors import UserError
from reposer.studies.study import run_study

SECRET = b"canary: nobody may show this 5c1f"
PATIENCE = 60  # seconds; the longest command takes three
ONE = ("--threads", 1)
SCORES = ("--methods", "euclidean", *ONE)


def replaced(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def linked(path: Path, outside: Path, data: bytes) -> None:
    target = outside / f"target_{path.name}"
    target.write_bytes(data)
    path.unlink()
    path.symlink_to(target)


def piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def foldered(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside.txt").write_text("x")


Fault = Callable[[Path, Path], Any]  # of a file, and of a folder outside
FAULTS: dict[str, Fault] = {
    "deleted": lambda path, outside: path.unlink(),
    "cut": lambda path, outside: replaced(path, path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path, outside: replaced(path, b""),
    "zeroed": lambda path, outside: replaced(path, bytes(path.stat().st_size)),
    "other bytes": lambda path, outside: replaced(path, random.Random(path.name).randbytes(500)),
    "a list": lambda path, outside: replaced(path, b"[[], {}, null, 1e999, -1]\n"),
    "link to the same": lambda path, outside: linked(path, outside, path.read_bytes()),
    "link to a secret": lambda path, outside: linked(path, outside, SECRET),
    "link to itself": lambda path, outside: (path.unlink(), path.symlink_to(path.name)),
    "FIFO": lambda path, outside: piped(path),
    "folder": lambda path, outside: foldered(path),
}

Zoo = dict[str, Path]
Line = tuple[object, ...]


def lines(kind: str, folder: Path, zoo: Zoo, out: Path) -> dict[str, Line]:
    """The commands that open a folder of this kind, by name."""
    good, to = zoo | {kind: folder}, ("--out", out)
    data = ("--data", good["prepared"])
    pairs = ("--pairs", good["prepared"] / "pairs_val.csv")
    no_models = ("--parser", "none", "--keypoints", "none")
    words = ("--license", "x", "--trained-on", "y")
    generate: Line = ("generate", good["generator"], *data, *pairs, *to, *ONE)
    augment: Line = ("augment", good["generator"], *data, *to, "--real", "none", "--device", "cpu", *ONE)
    evaluate: Line = ("evaluate", good["generator"], *data, *to, "--metrics", "l1", "--limit", 2, *ONE)
    reid: Line = ("reid", "evaluate", good["embedding"], *data, *to, *SCORES)
    verify: Line = ("verify", folder)
    report: Line = ("report", folder)
    gan = ("train", "san_demo", *data, *ONE_STEP, *settings(SMALL_SAN), *ONE)
    embedding = ("reid", "train", "reid_demo", *data, *settings(SMALL_REID), *ONE)
    prepare: Line = ("prepare", "market1501", good["people"], *to, "--size", "64x32", "--holdout", 1)
    opened: dict[str, list[Line]] = {
        "people": [prepare, (*prepare, "--dry-run"), (*augment[:-6], "--images", folder)],
        "prepared": [verify, generate, augment, evaluate, reid, (*gan, *to), (*embedding, *to)],
        "generator": [
            *(verify, report, generate, evaluate, augment, ("export-run", folder, *words, *to)),
            (*gan, "--out", folder),
        ],
        "embedding": [
            *(verify, report, reid, ("reid", "export", folder, *to), ("export-run", folder, *words, *to)),
            (*augment, "--filter", "identity", "--filter", "margin", "--reid", folder),
            (*embedding, "--out", folder),
        ],
        "augmented": [
            *(verify, ("forget", folder, "--pid", 1), ("export-set", folder, *to)),
            (*embedding, *to, "--set", f"generated.folder={folder}"),
        ],
        "annotated": [
            *(verify, ("report", folder / "annotation"), ("prepare", "folder", folder, *to, "--anonymous")),
            ("annotate", zoo["crops"], *no_models, "--mask", zoo["crops"] / "mask", "--out", folder),
        ],
        "crops": [
            ("annotate", folder, *no_models, "--mask", folder / "mask", *to),
            ("prepare", "folder", folder, *to, "--anonymous"),
        ],
        "generated": [verify, ("generate", good["generator"], *data, *pairs, "--out", folder, *ONE)],
        "predictor": [
            *(verify, report, (*generate, "--predictor", folder, "--maps", "predicted")),
            ("export-run", folder, *words, *to),
        ],
        "exported_generator": [verify, ("generate", folder, *data, *pairs, *to, *ONE)],
        "exported_embedding": [verify, ("reid", "evaluate", folder, *data, *to, *SCORES)],
        "evaluation": [
            *(report, ("export-run", zoo["generator"], *words, *to, "--figures", folder)),
            (*evaluate[:4], "--out", folder, "--metrics", "l1,ssim", *ONE),
        ],
        "reid_evaluation": [
            *(report, ("reid", "score", folder / "features.npz", *to, *SCORES)),
            ("reid", "evaluate", zoo["embedding"], *data, "--out", folder, *SCORES),
        ],
        "scores": [report],
        "exported_set": [("prepare", "market1501", folder, *to, "--size", "64x32")],
        "study": [verify, report, ("study again", folder)],
    }
    return {f"{number} {line[0]}": line for number, line in enumerate(opened[kind])}


def files_of(folder: Path) -> list[Path]:
    """The files to damage, relative; of pictures in a folder, and of stages of a kind, one stands for all."""
    chosen: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "tensorboard" not in path.parts:
            name = path.relative_to(folder)
            like = str(name.parent / f"*{name.suffix}") if path.suffix in (".png", ".jpg") else str(name)
            chosen.setdefault(re.sub("-[0-9a-f]{20}/", "-*/", like), name)
    return list(chosen.values())


@contextmanager
def ends_soon() -> Iterator[None]:
    """A command that waits for a FIFO, or for ever, is interrupted by an error of its own."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"hangs for {PATIENCE} seconds")

    earlier = signal.signal(signal.SIGALRM, ring)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, earlier)


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path): (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in folder.rglob("*")
    }


def holding_secret(folder: Path) -> list[Path]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return [path for path in files if SECRET in path.read_bytes()]


def try_one(kind: str, zoo: Zoo, place: Path, run: Any, name: Path, fault: str, line: str) -> None:
    """A copy with one fault, and one command."""
    folder, outside, out = place / kind, place / "outside", place / "out"
    shutil.copytree(zoo[kind], folder)
    outside.mkdir()
    FAULTS[fault](folder / name, outside)
    before = state(outside)
    arguments = lines(kind, folder, zoo, out)[line]
    what = f"{kind}: {name} {fault}: {line}"
    with ends_soon():
        if arguments[0] == "study again":
            code, said, error = 0, "", ""
            try:
                run_study(small_study(zoo), folder)
            except UserError as told:
                code, error = 1, f"error: {told}\n"
        else:
            code, said, error = run(*arguments)
    assert "fault of ours" not in error, f"{what}: {error[-600:]}"
    assert "Traceback" not in error, f"{what}: {error[-600:]}"
    assert code in (0, 1), f"{what}: {code} {error[-600:]}"
    if code:
        last = error.rstrip("\n").rpartition("\n")[2]
        assert last.startswith("error: "), f"{what}: {error[-600:]}"
        assert len(last) < 1200, f"{what}: {last}"
    assert state(outside) == before, what
    assert SECRET.decode() not in said + error, what
    assert not holding_secret(out), what
    assert not holding_secret(folder), what
    shutil.rmtree(place)


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return write_zoo(tmp_path_factory.mktemp("few"), few=True)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return write_zoo(tmp_path_factory.mktemp("whole"))


def cases(kind: str, zoo: Zoo) -> list[tuple[Path, str, str]]:
    commands = list(lines(kind, zoo[kind], zoo, Path("out")))
    return [(name, fault, line) for name in files_of(zoo[kind]) for fault in FAULTS for line in commands]


FEW = ("people", "prepared", "generator", "embedding", "augmented", "annotated", "crops")
REST = (
    *("generated", "predictor", "exported_generator", "exported_embedding", "exported_set"),
    *("evaluation", "reid_evaluation", "scores", "study"),
)


@pytest.mark.parametrize("kind", FEW)
def test_a_sample_of_the_faults_is_an_answer_or_a_line(kind, few, run, tmp_path):
    chosen = random.Random(kind).sample(cases(kind, few), 1)
    for number, case in enumerate(chosen):
        try_one(kind, few, tmp_path / str(number), run, *case)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", [*FEW, *REST])
def test_every_fault_is_an_answer_or_a_line(kind, fault, whole, run, tmp_path):
    chosen = [case for case in cases(kind, whole) if case[1] == fault]
    for number, case in enumerate(chosen):
        try_one(kind, whole, tmp_path / str(number), run, *case)


def test_every_kind_of_folder_is_tried(few):
    assert set(few) == set(FEW)
    assert len({name for kind in FEW for name in files_of(few[kind])}) > 50
