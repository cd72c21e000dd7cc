"""What reports are made of: the parts that no other file of a folder has, as sections.json; picture grids."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from reposer.config import read_json_value
from reposer.errors import UserError
from reposer.storage.outputs import claim_outputs, is_older, write_output
from reposer.storage.paths import check_relative, printable

SECTIONS_FILE = "sections.json"
_PNG = b"\x89PNG\r\n\x1a\n"
_EMBEDDED = re.compile(r"data:image/(png|svg\+xml);base64,")


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


def markdown_row(*cells: str) -> str:
    """A line of a table in Markdown."""
    return "| " + " | ".join(cells) + " |"


def markdown_page(title: str, text: Sequence[str], tables: Sequence[Table]) -> bytes:
    """The same as a section shows, as a file in Markdown: each table under its caption."""
    parts = [f"# {title}", *text]
    for table in tables:
        lines = [table.columns, ["---"] * len(table.columns), *table.rows]
        parts += [f"## {table.caption}", "\n".join(markdown_row(*line) for line in lines)]
    return ("\n\n".join(parts) + "\n").encode()


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
        reason = printable((str(error).splitlines() or [type(error).__name__])[0])[:200]
        raise UserError(f"{path}: holds no sections of a report ({reason})", "delete it") from error


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
            if picture.data:
                _check_embedded(picture.data)
            else:
                check_relative(picture.file)
        texts = [
            section.title,
            *section.text,
            *(text for fold in section.folds for text in (fold.title, fold.text)),
            *(picture.caption for picture in section.pictures),
            *(table.caption for table in section.tables),
        ]
        rows = [row for table in section.tables for row in (table.columns, *table.rows)]
        if not all(isinstance(text, str) for text in texts) or not all(isinstance(row, list) for row in rows):
            raise TypeError("a text is none")
        if not all(isinstance(table.plain, bool) for table in section.tables):
            raise TypeError("plain is neither true nor false")
    return sections


def _check_embedded(data: str) -> None:
    """Raise ValueError where a data URI is not one of a PNG or SVG picture."""
    match = _EMBEDDED.match(data)
    if match is None:
        raise ValueError("a picture is no data URI")
    picture = base64.b64decode(data[match.end() :], validate=True)
    if not (picture.startswith(_PNG) if match[1] == "png" else b"<svg" in picture):
        raise ValueError("a data URI holds no picture")


# ---- Picture grids: rows of equally large RGB pictures under column titles, as one uint8 array.


GAP = 4  # pixels between the pictures, before scaling
TITLE_HEIGHT = 24  # pixels, after scaling
TITLE_SIZE, SMALLEST_TITLE = 16, 7  # pixels, of the font
PAPER, INK = (255, 255, 255), (40, 40, 40)


def draw_grid(
    rows: Sequence[Sequence[NDArray[np.uint8]]],
    titles: Sequence[str] = (),
    *,
    scale: int = 1,
    groups: int = 1,
) -> NDArray[np.uint8]:
    """Lay pictures out as a table.

    Args:
        rows: each row a sequence of (H, W, 3) uint8 RGB pictures, all of one size.
        titles: one title a column, printed above it (above every group's columns when ``groups`` > 1).
        scale: whole-number enlargement, nearest neighbor, so that a pixel stays a pixel.
        groups: lay the rows out side by side in this many groups of columns.

    Returns:
        (H', W', 3) uint8 RGB.

    Raises:
        ValueError: no picture, or pictures of different sizes.
    """
    pictures = [picture for row in rows for picture in row]
    if not pictures:
        raise ValueError("a grid needs at least one picture")
    height, width = pictures[0].shape[:2]
    if any(picture.shape != (height, width, 3) for picture in pictures):
        raise ValueError(f"the pictures of a grid must all be ({height}, {width}, 3)")
    columns = max(len(row) for row in rows)
    cell_h, cell_w = height * scale + GAP, width * scale + GAP
    lines = -(-len(rows) // groups)
    top = TITLE_HEIGHT if titles else 0
    group_w = columns * cell_w + (4 * GAP if groups > 1 else 0)
    canvas = Image.new("RGB", (groups * group_w + GAP, top + lines * cell_h + GAP), PAPER)
    for r, row in enumerate(rows):
        group, line = divmod(r, lines)
        for c, picture in enumerate(row):
            enlarged = picture.repeat(scale, axis=0).repeat(scale, axis=1)
            position = (GAP + group * group_w + c * cell_w, top + GAP + line * cell_h)
            canvas.paste(Image.fromarray(enlarged), position)
    if titles:
        _print_titles(canvas, titles, groups, group_w, cell_w)
    return np.asarray(canvas)


def _print_titles(canvas: Image.Image, titles: Sequence[str], groups: int, group_w: int, cell_w: int) -> None:
    """Print each title centered over its column, as large as the longest one allows."""
    draw = ImageDraw.Draw(canvas)
    size = TITLE_SIZE
    while (
        size > SMALLEST_TITLE
        and max(draw.textlength(t, font=ImageFont.load_default(size)) for t in titles) > cell_w - 2
    ):
        size -= 1
    font = ImageFont.load_default(size)
    for group in range(groups):
        for c, title in enumerate(titles):
            x = GAP + group * group_w + c * cell_w + (cell_w - GAP) / 2
            draw.text((x, TITLE_HEIGHT / 2 + 1), title, fill=INK, font=font, anchor="mm")
