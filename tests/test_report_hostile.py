"""`report` on folders that a stranger made: a right page or one line, nothing from outside or endless."""

from __future__ import annotations

import base64
import json
import os
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reposer.errors import UserError
from reposer.images import encode_png
from reposer.report import write_report

SECRET = "canary-5c1f-nobody-shows-this"
NAMES = (
    *("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "javascript:alert(1)"),
    *("{{7*7}}", "{% raw %}", "&lt;b&gt;", "]]>", "<!--", "</style><script>", "漢字", ""),
    *("a\x00b", "\x1b[31mred", "line\nbreak", "\u202etxt", "\ud800", "x" * 100_000),
    *("$\\frac$", "$a$b$", "=1+1", "../../etc/passwd", "/etc/passwd", "file:///etc/passwd"),
    *("http://example.org/x.png", "C:\\x", "~root"),
)
NUMBERS = ("NaN", "Infinity", "-Infinity", "1e999", "-1e400", "9" * 400, "-1", "0", "1e-320", "true")
DEEP = "[" * 100_000


class Page(HTMLParser):
    """What a browser would load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.active: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag in ("script", "iframe", "object", "embed", "link", "base", "form"):
            self.active.append(tag)
        for name, value in attrs:
            if name.startswith("on"):
                self.active.append(name)
            if name in ("src", "href", "srcset", "data", "action", "poster"):
                self.loaded.append(value or "")


def tried(folder: Path) -> str:
    """Make the page, look at it, delete it; what was said where there is none."""
    before = {path.name: path.lstat().st_mtime_ns for path in folder.parent.iterdir() if path != folder}
    started = time.monotonic()
    told, text = "", ""
    try:
        text = write_report(folder).read_text(encoding="utf-8")
    except UserError as error:
        told = str(error)
    assert time.monotonic() - started < 20
    after = {path.name: path.lstat().st_mtime_ns for path in folder.parent.iterdir() if path != folder}
    assert after == before
    assert "\n" not in told
    assert SECRET not in told
    assert len(told) < 2000
    if told:
        return told
    page = Page()
    page.feed(text)
    assert not page.active
    assert all(re.match(r"(data:image/(png|svg\+xml);base64,|#)", place) for place in page.loaded), (
        page.loaded
    )
    assert SECRET not in text
    assert "\x1b" not in text
    (folder / "report.html").unlink()
    return ""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder; beside it a file that no page may show."""
    (tmp_path / "secret.png").write_bytes(b"\x89PNG\r\n\x1a\n" + SECRET.encode())
    (tmp_path / "secret.json").write_text(json.dumps({"a": SECRET}))
    made = tmp_path / "run"
    made.mkdir()
    return made


METRIC = {"better": "lower", "protocol": "p", "reference": "r"}
QUALITY = {
    "metrics": {"NAME": METRIC | {"protocol": "NAME"}},
    "rows": {"NAME": {"NAME": {"value": 0.5, "low": 0.4, "high": 0.6, "note": "NAME"}}},
    "settings": {"pairs": 3},
}
COLUMNS = ("rank1", "rank5", "rank10", "rank20", "mAP_step", "mAP_trapezoid", "mINP")
SHARE: dict[str, Any] = dict.fromkeys(COLUMNS, 0.5)
REID = {
    "methods": {"NAME": SHARE | {"intervals": dict.fromkeys(SHARE, None)}},
    "missing": ["NAME"],
    "protocol": "NAME",
    "pictures": {"cmc.png": "NAME"},
    "notes": ["NAME"],
}
SECTIONS = [
    {
        "title": "NAME",
        "text": ["NAME"],
        "pictures": [{"caption": "NAME", "file": "cmc.png", "data": ""}],
        "tables": [{"columns": ["NAME"], "rows": [["NAME"]], "caption": "NAME", "plain": False}],
        "folds": [{"title": "NAME", "text": "NAME"}],
    }
]
DOCUMENTS = {"image_quality.json": QUALITY, "reidentification.json": REID, "sections.json": SECTIONS}
PNG = encode_png(np.zeros((4, 4, 3), np.uint8))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_texts_of_a_stranger_are_shown_as_texts(folder, name):
    (folder / "cmc.png").write_bytes(PNG)
    for hostile in NAMES:
        text = json.dumps(DOCUMENTS[name]).replace('"NAME"', json.dumps(hostile))
        (folder / name).write_text(text)
        assert tried(folder) == "", hostile[:50]


def test_places_of_pictures_lead_nowhere_else(folder):
    (folder / "in").symlink_to(folder.parent)
    (folder / "out.png").symlink_to(folder.parent / "secret.png")
    os.mkfifo(folder / "pipe.png")
    places = ["../secret.png", str(folder.parent / "secret.png"), "in/secret.png", "out.png", "pipe.png", "."]
    places += [
        "http://example.org/a.png",
        "//example.org/a.png",
        "file:///etc/passwd",
        "",
        "a\x00.png",
        "no.png",
    ]
    for place in places:
        for key, value in (("file", place), ("data", place), ("data", f"data:text/html;base64,{'QQ' * 4}")):
            picture = {"caption": "c", "file": "", "data": ""} | {key: value}
            (folder / "sections.json").write_text(json.dumps([SECTIONS[0] | {"pictures": [picture]}]))
            assert tried(folder), (key, value)
    (folder / "sections.json").unlink()
    for place in places:
        (folder / "reidentification.json").write_text(json.dumps(REID | {"pictures": {place: "c"}}))
        assert tried(folder), place


@pytest.mark.parametrize("name", ["image_quality.json", "reidentification.json", "metrics.jsonl"])
def test_numbers_that_are_none_or_too_large(folder, name):
    (folder / "cmc.png").write_bytes(PNG)
    for number in NUMBERS:
        if name == "metrics.jsonl":
            lines = [f'{{"step": {n}, "loss": {number}}}' for n in (1, 2)]
            (folder / name).write_text("\n".join([*lines, f'{{"step": {number}, "loss": 1}}', ""]))
        else:
            text = json.dumps(DOCUMENTS[name]).replace("NAME", "a")
            (folder / name).write_text(text.replace("0.5", number).replace("0.4", number))
        tried(folder)


def test_deep_and_endless_files_end_in_a_line(folder):
    for name in (*DOCUMENTS, "metrics.jsonl"):
        for text in (DEEP, '{"a":' * 50_000, DEEP + "\n", '{"step": 1, "a": ' + DEEP + "}\n"):
            (folder / name).write_text(text)
            tried(folder)
        (folder / name).unlink()
    for name in ("config.json", "environment.json"):
        (folder / name).write_text("<script>" + DEEP)
        tried(folder)
        (folder / name).unlink()
    (folder / "metrics.jsonl").write_text(
        json.dumps({"step": 1} | {f"v{n}": n for n in range(20_000)}) + "\n"
    )
    assert "different values" in tried(folder)
    lines = (json.dumps({"step": n, "a": n % 7}) for n in range(30_000))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert tried(folder) == ""


def test_names_of_logged_values_are_no_formulas_and_no_code(folder):
    for hostile in ("$\\frac$", "$a$b$", "<script>", "\ud800", "\x1b[31m", "a\nb", "", "x" * 100_000):
        (folder / "metrics.jsonl").write_text(
            "".join(json.dumps({"step": n, hostile: n / 7}) + "\n" for n in range(3))
        )
        assert tried(folder) == "", hostile[:50]


@pytest.mark.parametrize(
    "name", ["\u6f22\u5b57", "\u0633\u0644\u0627\u0645", "\U0001f600", "lo\u00df", "\ue000"]
)
def test_a_curve_in_any_letters_is_named_without_a_warning(folder, name, recwarn):
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": n, name: n}) + "\n" for n in range(3)))
    page = write_report(folder).read_text(encoding="utf-8")
    pictures = [base64.b64decode(part) for part in re.findall(r"data:image/svg\+xml;base64,([\w+/=]+)", page)]
    assert len(pictures) == 1
    if name.isprintable():
        assert name in pictures[0].decode()
    assert [str(told.message) for told in recwarn.list] == []


@pytest.mark.parametrize(
    "values",
    [
        (1e308, -1e308, 0),
        (1.7e308, 1.7e308, 1.7e308),
        (-1.7e308, 1.7e308, 5e-324),
        (10**308, -(10**308), 1),
        (1e299, -1e299, 1e299),
        (5e-324, 0, 0),
        (1e-310, 2e-310, 3e-310),
    ],
)
@pytest.mark.parametrize("name", ["a", "\u6f22"])
def test_values_at_the_ends_of_the_range_are_drawn_without_a_warning(folder, values, name, recwarn):
    lines = [json.dumps({"step": step, name: value}) for step, value in enumerate(values)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    page = write_report(folder).read_text(encoding="utf-8")
    assert "data:image/svg+xml" in page
    assert [str(told.message) for told in recwarn.list] == []


def test_every_file_of_a_run_that_is_a_link_a_pipe_or_a_folder(folder):
    for name in ("metrics.jsonl", "config.json", "environment.json", *DOCUMENTS, "samples", "report.html"):
        for make in (
            lambda path: path.symlink_to(folder.parent / "secret.json"),
            lambda path: path.symlink_to(path.name),
            os.mkfifo,
            Path.mkdir,
        ):
            (folder / "sections.json").write_text(json.dumps([SECTIONS[0] | {"pictures": []}]))
            path = folder / name
            path.unlink(missing_ok=True)
            make(path)
            tried(folder)
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
