"""The parts of a report that no other file of a folder tells, as sections.json."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from reposer.config import read_json_value
from reposer.errors import UserError
from reposer.storage.outputs import claim_outputs, is_older, write_output
from reposer.storage.paths import check_relative

SECTIONS_FILE = "sections.json"
_EMBEDDED = re.compile(r"data:image/(png|svg\+xml);base64,[A-Za-z0-9+/=]+")


@dataclass(frozen=True)
class Picture:
    """A PNG of the folder (``file``, relative) or of no file (``data``, a data URI)."""

    caption: str
    file: str = ""
    data: str = ""


@dataclass(frozen=True)
class Table:
    """Cells as they are printed; ``plain`` aligns every column to the left.

    Raises:
        TypeError: a cell is no text: what somebody else's file gave in its place.
    """

    columns: list[str]
    rows: list[list[str]]
    caption: str = ""
    plain: bool = False

    def __post_init__(self) -> None:
        for cell in (*self.columns, *(cell for row in self.rows for cell in row), self.caption):
            if not isinstance(cell, str):
                raise TypeError(f"a cell of a table is {type(cell).__name__}, not text")


@dataclass(frozen=True)
class Fold:
    """Text that opens on a click."""

    title: str
    text: str


@dataclass(frozen=True)
class Section:
    """One headed part of the page."""

    title: str
    text: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    folds: list[Fold] = field(default_factory=list)


def write_sections(folder: Path, sections: list[Section]) -> None:
    """Save sections as ``folder``/sections.json."""
    path = folder / SECTIONS_FILE
    claim_outputs(folder, [SECTIONS_FILE], older=is_older(path, _is_list_of_sections))
    write_output(path, json.dumps([asdict(s) for s in sections], indent=1).encode())


def _is_list_of_sections(value: Any) -> bool:
    keys = {"title", "text", "pictures"}
    return isinstance(value, list) and all(isinstance(s, dict) and s.keys() >= keys for s in value)


def read_sections(folder: Path) -> list[Section]:
    """The sections of a folder, none where it has no sections.json."""
    path = folder / SECTIONS_FILE
    if not os.path.lexists(path):
        return []
    try:
        return _sections(read_json_value(path))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path}: holds no sections of a report", "delete it") from error


def _sections(value: Any) -> list[Section]:
    """Checked: pictures are files of the folder or embedded PNG or SVG, never addresses."""
    sections = [
        Section(
            title=section["title"],
            text=section["text"],
            pictures=[Picture(**picture) for picture in section["pictures"]],
            tables=[Table(**table) for table in section["tables"]],
            folds=[Fold(**fold) for fold in section["folds"]],
        )
        for section in value
    ]
    return checked(sections)


def checked(sections: list[Section]) -> list[Section]:
    """The sections, which a page can show: texts are texts, tables are lists of rows.

    Raises:
        TypeError, ValueError: they are not; a picture is neither a file of the folder nor embedded.
    """
    for section in sections:
        if not all(isinstance(part, list) for part in (section.text, section.pictures, section.tables)):
            raise TypeError("a part is no list")
        for picture in section.pictures:
            if picture.data and not _EMBEDDED.fullmatch(picture.data):
                raise ValueError("a picture is no data URI")
            if not picture.data:
                check_relative(picture.file)
        texts = [
            section.title,
            *section.text,
            *(text for fold in section.folds for text in (fold.title, fold.text)),
        ]
        rows = [row for table in section.tables for row in (table.columns, *table.rows)]
        if not all(isinstance(text, str) for text in texts) or not all(isinstance(row, list) for row in rows):
            raise TypeError("a text is none")
    return sections
