"""What every command does with an output that somebody else uses: one line, and nothing is changed.

The command tree is walked, so that a new command that writes without a look fails here. The commands get
words in the place of their inputs: an output is looked at before anything else.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from reposer.cli.main import app
from reposer.cli.options import OUTPUT_NAMES, claim_out
from reposer.errors import UserError
from reposer.jobs.shards import CLAIMS, STAGING
from reposer.sections import SECTIONS_FILE
from reposer.storage.outputs import OUTPUTS, refuse_others, write_output
from reposer.studies import demo
from reposer.studies.config import STUDY_FILE
from reposer.studies.report import WRITTEN
from reposer.studies.results import TABLES

NEEDED = {  # what a command asks for beside its required parameters
    "generate": ("--source", "nobody.png", "--donor", "no-one.png"),
    "study": ("--generator", "none"),
}
FILES = {"generate": "x.png", "export-parser": "x.onnx"}


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Words and parsed command of every command with an output; a layout of `prepare` is one like another."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        elif any(parameter.name == "out" for parameter in command.params):
            yield " ".join((*path, name)), command


WRITERS = dict(commands(typer.main.get_command(app)))
ALIKE = [words for words in WRITERS if words.startswith("prepare ") and words != "prepare folder"]
EACH = [pytest.param(words, marks=pytest.mark.slow if words in ALIKE else ()) for words in WRITERS]


def line(words: str, out: Path) -> list[object]:
    """A command line with this output, and any word for whatever else must be given."""
    given: list[object] = [*words.split(), *NEEDED.get(words, ())]
    for parameter in WRITERS[words].params:
        option = parameter.opts[0] if parameter.opts[0].startswith("-") else None
        if parameter.name == "out":
            given += [option, out] if option else [out]
        elif parameter.required:
            word = "reid_demo" if parameter.name == "preset" else "nothing"
            given += [option, word] if option else [word]
    return given


def key(words: str) -> str:
    return "prepare" if words.startswith("prepare ") else words


def test_every_command_with_an_output_has_a_list_of_its_names():
    assert {key(words) for words in WRITERS} == set(OUTPUT_NAMES)
    assert len(WRITERS) > 20


def notes(out: Path) -> None:
    out.mkdir()
    (out / "notes.txt").write_text("mine")


def deep(out: Path) -> None:
    (out / "thesis" / "chapter").mkdir(parents=True)
    (out / "thesis" / "chapter" / "1.tex").write_text("mine")


def hidden(out: Path) -> None:
    (out / ".git").mkdir(parents=True)
    (out / ".git" / "config").write_text("mine")


def a_file(out: Path) -> None:
    out.write_text("mine")


def a_pipe(out: Path) -> None:
    os.mkfifo(out)


def a_link_to_nothing(out: Path) -> None:
    out.symlink_to(out.parent / "nothing")


def a_linked_folder(out: Path) -> None:
    notes(out.parent / "elsewhere")
    out.symlink_to(out.parent / "elsewhere")


def a_page_for_a_list(out: Path) -> None:
    out.mkdir()
    (out / OUTPUTS).write_text("[" * 5000)


def somebody_elses_list(out: Path) -> None:
    """Names that a list holds are no names of the user's; a list of another form is no list."""
    out.mkdir()
    (out / OUTPUTS).write_text(json.dumps({"notes.txt": 3}))
    (out / "notes.txt").write_text("mine")


def undecodable(out: Path) -> None:
    out.mkdir()
    (out / os.fsdecode(b"\xff\n.txt")).write_text("mine")


TAKEN: tuple[Callable[[Path], None], ...] = (
    *(notes, deep, hidden, a_file, a_pipe, a_link_to_nothing, a_linked_folder),
    *(a_page_for_a_list, somebody_elses_list, undecodable),
)


def snapshot(root: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        plain = path.is_file() and not path.is_symlink()
        found[str(path)] = path.read_bytes() if plain else os.lstat(path).st_mode
    return found


@pytest.mark.parametrize("words", EACH)
def test_an_output_among_what_others_wrote_is_refused_in_one_line(words, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, make in enumerate(TAKEN):
        place = tmp_path / str(number)
        place.mkdir()
        out = place / FILES["export-parser"] if words == "export-parser" else place / "out"
        make(out)
        before = snapshot(tmp_path)
        code, said, error = run(*line(words, out))
        assert (code, said) == (1, ""), (make.__name__, error)
        assert error.count("\n") == 1, (make.__name__, error)
        assert "fault of ours" not in error
        assert "out" in error or "x.onnx" in error or OUTPUTS in error, (make.__name__, error)
        assert snapshot(tmp_path) == before, make.__name__


@pytest.mark.parametrize("words", EACH)
def test_an_output_where_nothing_can_be_written_is_refused_before_any_work(words, run, tmp_path, monkeypatch):
    """Below a file; in a folder without the right to write, which root always has."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    name, before = FILES.get(words, "out"), snapshot(tmp_path)
    for place in ("file", "file/deeper"):
        code, said, error = run(*line(words, tmp_path / place / name))
        assert (code, said, error.count("\n")) == (1, "", 1), error
        assert "cannot be written: Not a directory: check the path: a part of it is a file" in error
    look = os.access
    monkeypatch.setattr(os, "access", lambda place, mode: look(place, mode) and not mode & os.W_OK)
    for place in (tmp_path, tmp_path / "new" / "deeper"):
        code, said, error = run(*line(words, place / name))
        assert (code, said, error.count("\n")) == (1, "", 1), error
        assert "cannot be written: Permission denied: grant write permission" in error
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("words", EACH)
def test_a_link_under_a_name_of_the_command_s_own_is_refused(words, run, tmp_path, monkeypatch):
    """What lies behind it is not the command's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "a.txt").write_text("mine")
    for number, name in enumerate(OUTPUT_NAMES[key(words)]):
        out = tmp_path / str(number)
        out.mkdir()
        (out / name.replace("*", "a.json")).symlink_to(tmp_path / "precious")
        before = snapshot(tmp_path)
        code, said, error = run(*line(words, out))
        assert (code, said, error.count("\n")) == (1, "", 1), (name, error)
        assert "which this command did not write" in error
        assert snapshot(tmp_path) == before


@pytest.mark.parametrize("words", FILES)
def test_a_file_of_the_user_s_at_the_output_is_refused(words, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / FILES[words]
    out.write_bytes(b"mine")
    code, _, error = run(*line(words, out))
    assert (code, error.count("\n")) == (1, 1), error
    assert out.read_bytes() == b"mine"


def test_what_a_command_wrote_itself_is_its_own(tmp_path):
    """Names of its own, of any output in the folder's list, of writers that were killed; nothing else."""
    own = ("table.*", "stages")
    refuse_others(tmp_path / "new", own)
    refuse_others(tmp_path, own)
    (tmp_path / "stages").mkdir()
    for name in ("table.md", ".table.md.tmp-0123abcd", ".stages.replaced", STAGING, CLAIMS, "report.html"):
        (tmp_path / name).touch()
    write_output(tmp_path / "extra.json", b"{}")
    refuse_others(tmp_path, own, page="report.html")
    with pytest.raises(UserError, match=r"holds report\.html, which this command did not write"):
        refuse_others(tmp_path, own)
    (tmp_path / "run.json").touch()
    with pytest.raises(UserError, match=r"holds run\.json"):
        refuse_others(tmp_path, own, page="report.html")
    refuse_others(tmp_path, own, marks=("run.json",))
    (tmp_path / "run.json").unlink()
    for name in ("tables.md", ".table.md.tmp-xyz", "stages2"):
        (tmp_path / name).touch()
        with pytest.raises(UserError, match="which this command did not write"):
            refuse_others(tmp_path, own, page="report.html")
        (tmp_path / name).unlink()


def test_a_command_that_writes_new_folders_says_so(run, tmp_path):
    """Twice the same call: what lies there is its own, so that "did not write" would be wrong."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "bounding_box_train").mkdir()
    code, _, error = run("export-set", tmp_path / "set", "--out", tmp_path / "out")
    assert code == 1
    assert "holds bounding_box_train, and this command writes a new folder each time" in error
    assert "did not write" not in error


def test_a_demo_may_go_over_every_folder_that_it_makes(tmp_path):
    """The whole demo twice is a slow test (tests/test_package.py)."""
    source = Path(demo.__file__).read_text()
    made = set(re.findall(r'out / "(\w+)"', source)) | {demo.SINGLE, demo.STUDY, demo.PICTURES}
    assert {"people", "prepared", "prepared_single_camera", "training", "evaluation"} <= made
    for name in made:
        (tmp_path / name).mkdir()
    claim_out("demo", tmp_path)


def test_whatever_a_study_writes_is_an_earlier_demos_too():
    names = (*WRITTEN, *TABLES, STUDY_FILE, SECTIONS_FILE)
    assert [name for name in names if not demo._is_of_study(name)] == []
    assert not demo._is_of_study("notes.md")


def test_a_demo_deletes_no_study_that_holds_something_else(run, tmp_path):
    """Below the names at its top, too: an earlier demo's study is deleted before the next one's."""
    for number, inside in enumerate(("notes.txt", "pictures/mine.png", "stages/set-1/my.csv")):
        out = tmp_path / str(number)
        theirs = out / "study" / inside
        theirs.parent.mkdir(parents=True)
        theirs.write_text("mine")
        code, _, error = run("demo", "--out", out)
        assert (code, error.count("\n")) == (1, 1), error
        assert theirs.name in error
        assert [path for path in out.rglob("*") if path.is_file()] == [theirs]
    out = tmp_path / "pictures"
    (out / "pictures").mkdir(parents=True)
    (out / "pictures" / "pairs.png").write_text("mine")
    code, _, error = run("demo", "--out", out)
    assert (code, "pairs.png: is there already" in error) == (1, True)
