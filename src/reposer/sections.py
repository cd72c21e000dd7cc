"""The parts of a report that no other file of a folder tells, as sections.json."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from reposer.files import write_atomic

SECTIONS_FILE = "sections.json"


@dataclass(frozen=True)
class Picture:
    """A PNG of the folder (``file``, relative) or of no file (``data``, a data URI)."""

    caption: str
    file: str = ""
    data: str = ""


@dataclass(frozen=True)
class Table:
    """Cells as they are printed; ``plain`` aligns every column to the left."""

    columns: list[str]
    rows: list[list[str]]
    caption: str = ""
    plain: bool = False


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
    write_atomic(folder / SECTIONS_FILE, json.dumps([asdict(s) for s in sections], indent=1).encode())


def read_sections(folder: Path) -> list[Section]:
    """The sections of a folder, none where it has no sections.json."""
    path = folder / SECTIONS_FILE
    if not path.exists():
        return []
    return [
        Section(
            title=section["title"],
            text=section["text"],
            pictures=[Picture(**picture) for picture in section["pictures"]],
            tables=[Table(**table) for table in section["tables"]],
            folds=[Fold(**fold) for fold in section["folds"]],
        )
        for section in json.loads(path.read_text())
    ]
