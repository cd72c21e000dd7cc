"""Pictures and tables to judge annotations by: contact sheets, histograms, as sections of a report page."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from reposer.annotation.annotators import Annotation
from reposer.data.keypoints import has_torso
from reposer.data.label_files import read_mask
from reposer.data.parsing import LIP_LABELS, PALETTE, colorize, read_parsing
from reposer.images import decode, encode_png
from reposer.sections import Picture, Section, Table, draw_grid, write_sections
from reposer.storage.files import write_atomic
from reposer.storage.paths import RefusedFileError, contained
from reposer.structures import NUM_JOINTS
from reposer.weights.files import license_text

# ---- Flags on annotations that deserve a look; nothing is left out because of one.
#
# Thresholds are wide: on 2,000 of Market-1501's training crops masks cover 18 to 96 % of the image, 99 of 100
# cover 25 to 87 %.

SMALL_MASK, LARGE_MASK = 0.10, 0.90  # share of the image
MIN_AGREEMENT = 0.60  # intersection over union of mask and map
EMPTY_PARSING = 0.01  # share of the image
MIN_JOINTS = 6  # fewer say nothing about a pose (keypoints.MIN_COMMON_JOINTS)

# What each flag says; the page and docs/how-to/annotate.md print it.
FLAGS: dict[str, str] = {
    "empty-parsing": f"the map calls less than {EMPTY_PARSING:.0%} of the image a person",
    "small-mask": f"the mask covers less than {SMALL_MASK:.0%} of the image",
    "large-mask": f"the mask covers more than {LARGE_MASK:.0%} of the image",
    "nobody-found": "no detector found a person and the map is empty: the mask is the whole image",
    "mask-disagrees": f"mask and map overlap by less than {MIN_AGREEMENT:.0%} (intersection over union)",
    "missing-torso": "a shoulder or a hip is missing: the image takes part in no pair of the official rule",
    "few-joints": f"fewer than {MIN_JOINTS} joints",
    "several-people": "a detector saw more than one person",
    "at-border": "the person's box ends at the photo's border",
    "overlapped": "more than half of the person's box lies in another's",
}


@dataclass(frozen=True, slots=True)
class Quality:
    """Numbers and flags of one annotation; None where the annotation is not there."""

    mask_area: float | None  # share of the image
    agreement: float | None  # intersection over union of mask and map; None for a mask made from the map
    joints: int | None  # that are there
    flags: tuple[str, ...]


def measure(annotation: Annotation) -> Quality:
    """The numbers of an annotation, and the flags that follow from them."""
    mask, parsing, pose = annotation.mask, annotation.parsing, annotation.keypoints
    flags = []
    if parsing is not None and float((parsing != 0).mean()) < EMPTY_PARSING:
        flags.append("empty-parsing")
    area = None if mask is None else float(mask.mean())
    if annotation.mask_source == "everything":
        flags.append("nobody-found")
    elif area is not None:
        flags += ["small-mask"] * (area < SMALL_MASK) + ["large-mask"] * (area > LARGE_MASK)
    agreement = None
    apart = annotation.mask_source in ("detector", "network", "folder")  # not made from the map
    if mask is not None and parsing is not None and apart:
        agreement = intersection_over_union(mask, parsing != 0)
        flags += ["mask-disagrees"] * (agreement < MIN_AGREEMENT)
    joints = None
    if pose is not None:
        joints = int((~np.isnan(pose[:, 0])).sum())
        flags += ["missing-torso"] * (not has_torso(pose)) + ["few-joints"] * (joints < MIN_JOINTS)
    flags += ["several-people"] * (annotation.people > 1)
    return Quality(area, agreement, joints, tuple(flags))


def intersection_over_union(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Of two masks of one shape; 1 when both are empty."""
    union = int((a | b).sum())
    return float((a & b).sum() / union) if union else 1.0


# ---- Histograms and bars as one small SVG, the same bytes everywhere.

_WIDTH, _HEIGHT, _GAP = 250, 190, 30  # of a panel, in SVG units
_TOP, _BOTTOM, _NAMES = 24, 22, 80  # for the title, the axis, and the names of bars
_BAR, _MARK, _TEXT = "#0b6e4f", "#b3261e", "#333"


@dataclass(frozen=True)
class Histogram:
    """How often values fall where."""

    title: str
    values: Sequence[float]
    low: float  # left end of the first bin; smaller values count there
    high: float  # right end of the last one
    bins: int
    marks: tuple[float, ...] = ()  # dashed lines


def draw_figure(histograms: Sequence[Histogram], bars: Mapping[str, int], bars_title: str) -> str:
    """The histograms side by side, then a horizontal bar for each name (none: no bars); as a data URI."""
    panels = [_histogram(histogram) for histogram in histograms]
    if bars:
        panels.append(_bars(bars, bars_title))
    width = max(1, len(panels)) * (_WIDTH + _GAP)
    shifted = (f'<g transform="translate({i * (_WIDTH + _GAP)},0)">{p}</g>' for i, p in enumerate(panels))
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {_HEIGHT}" width="{width}" '
        f'height="{_HEIGHT}" font-family="sans-serif" font-size="10" fill="{_TEXT}">{"".join(shifted)}</svg>'
    )
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _histogram(h: Histogram) -> str:
    counts, edges = np.histogram(np.clip(h.values, h.low, h.high), h.bins, (h.low, h.high))
    floor = _HEIGHT - _BOTTOM
    step = _WIDTH / h.bins
    parts = [_text(0, 12, h.title), _text(_WIDTH, 12, f"highest {int(counts.max()):,}", "end")]
    for i, count in enumerate(counts):
        height = (floor - _TOP) * int(count) / max(int(counts.max()), 1)
        parts.append(_rectangle(i * step, floor - height, step - 1, height))
    for mark in h.marks:
        x = _WIDTH * (mark - h.low) / (h.high - h.low)
        line = f'x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{floor}"'
        parts.append(f'<line {line} stroke="{_MARK}" stroke-dasharray="4 3"/>')
    whole = h.bins == round(h.high - h.low)  # a bin for each whole number: name its middle
    first, last = (edges[0] + 0.5, edges[-1] - 0.5) if whole and h.bins > 1 else (edges[0], edges[-1])
    parts += [_text(0, floor + 14, f"{first:g}"), _text(_WIDTH, floor + 14, f"{last:g}", "end")]
    return "".join(parts)


def _bars(bars: Mapping[str, int], title: str) -> str:
    step = (_HEIGHT - _TOP) / len(bars)
    parts = [_text(0, 12, title)]
    for i, (name, count) in enumerate(bars.items()):
        y = _TOP + i * step
        room = _WIDTH - _NAMES - 40
        parts.append(_text(_NAMES - 4, y + step - 1, name, "end", 8))
        parts.append(_rectangle(_NAMES, y, room * count / max(*bars.values(), 1), step - 1))
        parts.append(_text(_WIDTH, y + step - 1, f"{count:,}", "end", 8))
    return "".join(parts)


def _text(x: float, y: float, text: str, anchor: str = "start", size: int = 10) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'


def _rectangle(x: float, y: float, width: float, height: float) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{_BAR}"/>'


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
    terms = license_text(entry.get("licence", ""), bool(entry.get("non_commercial")))
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
