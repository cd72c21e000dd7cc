"""Pictures and tables to judge annotations by: contact sheets, histograms, as sections of a report page."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from reposer.annotation.histograms import Histogram, draw_figure
from reposer.annotation.quality import FLAGS, LARGE_MASK, MIN_AGREEMENT, SMALL_MASK
from reposer.data.label_files import read_mask
from reposer.data.parsing import LIP_LABELS, PALETTE, colorize, read_parsing
from reposer.files import write_atomic
from reposer.grids import draw_grid
from reposer.images import decode, encode_png
from reposer.licences import licence_text
from reposer.paths import RefusedFileError, contained
from reposer.sections import Picture, Section, Table, write_sections
from reposer.structures import NUM_JOINTS

SHEET, FLAG_SHEET = 48, 12  # images on the contact sheet, and on the sheet of one flag
CELL = (192, 96)  # (H, W) of a picture on a sheet; the image is fitted in
_GROUPS = 3  # images side by side
_TITLES = {"parsing": "map", "mask": "mask", "keypoints": "joints"}
_PAPER, _INK = 235, (30, 30, 30)
_LEFT, _RIGHT, _MIDDLE = (255, 140, 0), (0, 170, 255), (255, 255, 255)  # of the person
_BONES = (
    *((0, 1, _MIDDLE), (1, 2, _RIGHT), (2, 3, _RIGHT), (3, 4, _RIGHT), (1, 5, _LEFT), (5, 6, _LEFT)),
    *((6, 7, _LEFT), (1, 8, _RIGHT), (8, 9, _RIGHT), (9, 10, _RIGHT), (1, 11, _LEFT), (11, 12, _LEFT)),
    *((12, 13, _LEFT), (0, 14, _RIGHT), (14, 16, _RIGHT), (0, 15, _LEFT), (15, 17, _LEFT)),
)
_Row = Mapping[str, Any]


def write_overview(
    book: Path,
    images: Path,
    root: Path,
    rows: Sequence[_Row],
    counts: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> None:
    """Write the sheets (PNG) and sections.json, from which report.py makes the page, into ``book``.

    Args:
        book: the journal's folder.
        images: folder of the images.
        root: folder of the annotations.
        rows: of the journal, images that were left out aside.
        counts: what report.json says.
        settings: of the job.
    """
    sections = [_summary(counts, settings)]
    if rows:
        chosen = [rows[i * len(rows) // SHEET] for i in range(SHEET)] if len(rows) > SHEET else list(rows)
        write_atomic(book / "sheet.png", encode_png(draw_sheet(images, root, chosen), level=1))
        text = [
            f"{len(chosen)} images, evenly spread: the image, its map laid over it, what the mask keeps, the "
            "joints (orange: the person's left, blue: their right). What is not there is gray."
        ]
        sections.append(Section("Contact sheet", text, [Picture("Annotations", "sheet.png")]))
        sections.append(_histograms(rows, counts))
        sections.append(_legend())
    for flag, count in counts["flags"].items():
        flagged = [row for row in rows if flag in row["flags"]][:FLAG_SHEET]
        name = f"flag_{flag}.png"
        write_atomic(book / name, encode_png(draw_sheet(images, root, flagged), level=1))
        text = [f"{count:,} images: {FLAGS[flag]}. The first {len(flagged)}."]
        sections.append(Section(f"Flag: {flag}", text, [Picture(flag, name)]))
    write_sections(book, sections)


def draw_sheet(images: Path, root: Path, rows: Sequence[_Row]) -> NDArray[np.uint8]:
    """(H, W, 3): for each row image, map over the image, what the mask keeps, joints; what no row has is left
    out."""
    there = [kind for kind in ("parsing", "mask", "keypoints") if any(row[kind] for row in rows)]
    titles = ["image", *(_TITLES[kind] for kind in there)]
    panels = [_panels(images, root, row) for row in rows]
    return draw_grid(
        [[panel[title] for title in titles] for panel in panels], titles, groups=min(_GROUPS, len(rows))
    )


def draw_joints(image: NDArray[np.uint8], keypoints: NDArray[np.float32], scale: float) -> NDArray[np.uint8]:
    """(H, W, 3) with the bones between joints that are there; joints (18, 2) are multiplied by ``scale``."""
    canvas = Image.fromarray(image)
    pen = ImageDraw.Draw(canvas)
    places = [(float(x), float(y)) for x, y in (keypoints + 0.5) * scale - 0.5]
    known = ~np.isnan(keypoints[:, 0])
    for start, end, color in _BONES:
        if known[start] and known[end]:
            pen.line((*places[start], *places[end]), fill=color, width=2)
    for (x, y), there in zip(places, known, strict=True):
        if there:
            pen.ellipse((x - 2, y - 2, x + 2, y + 2), fill=_INK, outline=(255, 255, 255))
    return np.asarray(canvas)


def _panels(images: Path, root: Path, row: _Row) -> dict[str, NDArray[np.uint8]]:
    """A picture for each title; gray where there is nothing."""
    blank = np.full((*CELL, 3), _PAPER, np.uint8)
    try:
        image = decode(contained(images, row["file"]), images)
        size = image.shape[:2]
        parsing = read_parsing(contained(root, row["parsing"]), size, root=root) if row["parsing"] else None
        mask = read_mask(contained(root, row["mask"]), size, root) if row["mask"] else None
    except RefusedFileError:
        return dict.fromkeys(("image", *_TITLES.values()), blank)  # gone since: the next call says so
    panels = {**dict.fromkeys(_TITLES.values(), blank), "image": _fitted(image)}
    if parsing is not None:
        mixed = np.where((parsing > 0)[..., None], 0.35 * image + 0.65 * colorize(parsing), 0.5 * image)
        panels["map"] = _fitted(mixed.astype(np.uint8))
    if mask is not None:
        panels["mask"] = _fitted(np.where(mask[..., None], image, image // 5 + 10).astype(np.uint8))
    if row["keypoints"] is not None:
        scale = _scale(size)
        height, width = _inner(size)
        pose = np.array(row["keypoints"], np.float32).reshape(NUM_JOINTS, 2)
        drawn = draw_joints(_resized(image // 2, (height, width)), pose, scale)
        panels["joints"] = _centered(drawn)
    return panels


def _scale(size: tuple[int, ...]) -> float:
    return min(CELL[0] / size[0], CELL[1] / size[1])


def _inner(size: tuple[int, ...]) -> tuple[int, int]:
    """(H, W) of an image that is fitted into a cell."""
    return max(1, round(size[0] * _scale(size))), max(1, round(size[1] * _scale(size)))


def _resized(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def _fitted(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return _centered(_resized(image, _inner(image.shape)))


def _centered(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    cell = np.full((*CELL, 3), _PAPER, np.uint8)
    top, left = (CELL[0] - image.shape[0]) // 2, (CELL[1] - image.shape[1]) // 2
    cell[top : top + image.shape[0], left : left + image.shape[1]] = image
    return cell


def _summary(counts: Mapping[str, Any], settings: Mapping[str, Any]) -> Section:
    made = [[kind, *_made_by(settings[kind])] for kind in ("parser", "mask", "keypoints")]
    rows = [["images", f"{counts['images']:,}"], ["annotated", f"{counts['annotated']:,}"]]
    rows += [["left out", f"{counts['left_out']:,}"]]
    tables = [Table(["", "count"], rows), Table(["", "made by", "weights", "terms"], made, plain=True)]
    if counts["rules"]:
        listed = [[rule, f"{count:,}"] for rule, count in counts["rules"].items()]
        tables.append(Table(["rule", "lines"], listed, "problems.csv, by rule"))
    if counts["flags"]:
        flags = [[flag, FLAGS[flag], f"{count:,}"] for flag, count in counts["flags"].items()]
        tables.append(
            Table(["flag", "which says", "images"], flags, "Worth a look; nothing is left out for it.")
        )
    return Section("What was made", tables=tables)


def _made_by(entry: Mapping[str, Any]) -> list[str]:
    terms = licence_text(entry.get("licence", ""), bool(entry.get("non_commercial")))
    return [entry["name"], entry.get("sha256", "")[:12], terms]


def _legend() -> Section:
    names = [[str(i), name] for i, name in enumerate(LIP_LABELS)]
    strip = PALETTE[:, None, None].repeat(18, 1).repeat(18, 2).transpose(1, 0, 2, 3).reshape(18, -1, 3)
    data = base64.b64encode(encode_png(np.ascontiguousarray(strip))).decode()
    colors = Picture("Colors of labels 0 to 19, from the left.", data=f"data:image/png;base64,{data}")
    return Section("Labels", pictures=[colors], tables=[Table(["label", "name"], names, plain=True)])


def _histograms(rows: Sequence[_Row], counts: Mapping[str, Any]) -> Section:
    """Distributions as one SVG."""
    people = [value for value in _values(rows, "people") if value >= 0]
    joints = _values(rows, "joints")
    shown = [
        Histogram("mask: share of the image", _values(rows, "mask_area"), 0, 1, 20, (SMALL_MASK, LARGE_MASK)),
        Histogram("mask and map: overlap", _values(rows, "agreement"), 0, 1, 20, (MIN_AGREEMENT,)),
        Histogram("joints that are there", joints, -0.5, NUM_JOINTS + 0.5, NUM_JOINTS + 1),
        Histogram("people seen (8: or more)", people, -0.5, 8.5, 9),
    ]
    data = draw_figure([one for one in shown if one.values], counts["labels"], "images with the label")
    return Section(
        "Distributions", pictures=[Picture("Numbers of images; dashed: where flags begin.", data=data)]
    )


def _values(rows: Sequence[_Row], column: str) -> list[float]:
    return [float(row[column]) for row in rows if row[column] is not None]
