"""Every file of the corpus has its outcome (docs/reference/rules.md); random damage never does worse."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from bad_inputs import BOMBS, CORPUS, Case, file_name, mutate, seeds

from reposer import images
from reposer.image_rules import ACCEPTED
from reposer.storage.paths import RefusedFileError, check_relative, contained

DOCS = Path(__file__).parents[1] / "docs" / "reference" / "rules.md"


class Hang(BaseException):
    """Not an Exception: the decoder must not be able to swallow it."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(path: Path, root: Path) -> tuple[str | None, tuple[str, ...]]:
    try:
        return None, images.read_picture(path, root).rules
    except images.ImageError as error:
        refusal = error
    assert refusal.file in str(refusal)
    assert refusal.advice
    return refusal.rule, ()


@pytest.mark.parametrize(("index", "case"), list(enumerate(CORPUS)), ids=lambda v: getattr(v, "label", None))
def test_corpus(tmp_path: Path, index: int, case: Case):
    folder = tmp_path / "root" / "bounding_box_train"
    folder.mkdir(parents=True)
    path = folder / file_name(index, case)
    case.make(path)
    with at_most(5):
        assert outcome(path, folder.parent) == (case.refused, case.rules)


def test_corpus_is_large_and_uses_every_rule():
    assert len(CORPUS) >= 80
    assert {rule for case in CORPUS for rule in case.rules} == set(ACCEPTED)


def test_docs_name_every_rule():
    listed = set(re.findall(r"^\| `([a-z0-9-]+)` \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE))
    refused = {case.refused for case in CORPUS if case.refused}
    assert refused | set(ACCEPTED) <= listed


def test_unreadable_file(tmp_path: Path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"x")
    path.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may read everything
    try:
        assert outcome(path, tmp_path)[0] == "unreadable"
    finally:
        os.seteuid(user)


def test_bombs_need_no_memory(tmp_path: Path):
    for index, case in enumerate(BOMBS):
        case.make(tmp_path / file_name(index, case))
    code = """if True:
        import resource, sys
        from pathlib import Path
        from reposer import images
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        before = peak()
        for path in sorted(Path(sys.argv[1]).iterdir()):
            try:
                images.decode(path)
                print("decoded", path)
            except images.ImageError:
                pass
        print((peak() - before) // 1024)
    """
    run = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 100  # MB for all of them


def _survives_mutations(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    files = seeds()
    refused = 0
    for number in range(count):
        name, data = files[number % len(files)]
        faulty = mutate(data, rng)
        try:
            with at_most(5):
                found = images.decode_bytes(faulty, name)
        except images.ImageError:
            refused += 1
        else:
            assert found.dtype == np.uint8
            assert found.ndim == 3
            assert found.shape[2] == 3
    assert 0.3 * count < refused < count  # the faults bite, and not every file dies of them


def test_mutated_files():
    _survives_mutations(2_000, seed=0)


@pytest.mark.slow
def test_many_mutated_files():
    _survives_mutations(10_000, seed=1)


HOSTILE = [
    *(
        "../outside.jpg",
        "a/../../outside.jpg",
        "..",
        "a/..",
        "./a.jpg",
        "a/./b.jpg",
        ".",
        "a//b.jpg",
        "/a.jpg",
    ),
    *(
        "/etc/passwd",
        "//server/share/a.jpg",
        "\\\\server\\share\\a.jpg",
        "..\\a.jpg",
        "a\\..\\b.jpg",
        "a\\b.jpg",
    ),
    *(
        "C:\\a.jpg",
        "C:/a.jpg",
        "c:a.jpg",
        "Z:",
        "a\0.jpg",
        "a.jpg\0../b",
        "a\n.jpg",
        "a\r.jpg",
        "a\tb.jpg",
        "",
    ),
    *("/", "///", "a/", "a/../a.jpg", "../" * 40 + "etc/passwd", "x" * 2000, "a\x1b[31m.jpg", "a\x7f.jpg"),
    *(
        "\udcff.jpg",
        "a/\udc80/b.jpg",
        "\x01",
        "b/..",
        "../..",
        "..//a.jpg",
        "/..",
        "/.",
        "\\",
        "\\\\?\\C:\\a",
    ),
]


@pytest.mark.parametrize("path", HOSTILE, ids=repr)
def test_hostile_paths_are_refused(tmp_path: Path, path: str):
    with pytest.raises(RefusedFileError) as refusal:
        contained(tmp_path, path)
    assert refusal.value.rule == "bad-path"
    str(refusal.value).encode()  # a message that every terminal can print


def test_escaped_dots_are_plain_names(tmp_path: Path):
    assert contained(tmp_path, "%2e%2e/a.jpg") == tmp_path / "%2e%2e" / "a.jpg"
    assert check_relative("parsing/0002_c1s1_000451_03.png")
    assert check_relative("a..b/..c")


def test_links_do_not_lead_out(tmp_path: Path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "a.jpg").write_bytes(b"secret")
    (root / "folder").symlink_to(outside)
    (root / "file.jpg").symlink_to(outside / "a.jpg")
    for path in ("folder/a.jpg", "file.jpg", "folder"):
        with pytest.raises(RefusedFileError) as refusal:
            contained(root, path)
        assert refusal.value.rule == "link-outside"
