"""Rank-list sheets: queries with their nearest gallery images, framed by what they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from reposer.errors import UserError
from reposer.evaluation.reid_comparison import ReidReport
from reposer.files import remove_output, write_output
from reposer.images import encode_png
from reposer.metrics.retrieval import QueryScores
from reposer.reid.search import search
from reposer.structures import FeatureSet, Ranking

PictureOf = Callable[[str], NDArray[np.uint8]]  # a name of the feature sets -> (H, W, 3) uint8 RGB
Kind = Literal["best", "worst", "failed"]
KINDS: tuple[Kind, ...] = ("best", "worst", "failed")

CELL = (64, 128)  # width, height of a picture on the sheet, pixels
FRAME = 4  # around it
GAP = 8
CAPTION = 49  # height under it, four lines of text
HEADER = 22  # legend on top
PAPER, INK = (255, 255, 255), (40, 40, 40)
# Colors that differ for color-blind readers too; the flag is also printed in words.
COLORS = {
    "query": (60, 60, 60),
    "match": (0, 140, 70),
    "miss": (205, 35, 35),
    "same camera": (165, 165, 165),
    "junk": (165, 165, 165),
}


def choose_queries(scores: QueryScores, pids: NDArray[np.int64], kind: Kind, count: int) -> NDArray[np.int64]:
    """Rows of up to ``count`` queries with a valid match, one a person, so that a sheet shows many people.

    ``best`` and ``worst`` by mAP_step; ``failed`` are those whose nearest counted image is somebody else, the
    deepest first hit first. Equal scores in the order of the queries.

    Args:
        pids: (Q,) of the queries.
    """
    rows = np.flatnonzero(scores.hits > 0)
    key: NDArray[Any]
    if kind == "failed":
        rows = rows[scores.worst.first_hit[rows] > 1]
        key = -scores.worst.first_hit[rows]
    else:
        key = scores.worst.ap_step[rows] * (-1 if kind == "best" else 1)
    rows = rows[np.argsort(key, kind="stable")]
    _, first = np.unique(pids[rows], return_index=True)
    return rows[np.sort(first)][:count]


def draw_sheet(
    query: FeatureSet,
    gallery: FeatureSet,
    rows: NDArray[np.int64],
    ranking: Ranking,
    picture: PictureOf,
    scores: QueryScores,
) -> NDArray[np.uint8]:
    """One line for each query: itself, then its list; under each image its name, distance and flag.

    Args:
        rows: (n,) queries that the n rows of ``ranking`` belong to.
        picture: gives the image of a name of either set.
        scores: of all queries; average precision (step) and rank of the first hit stand under each query.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    columns = 1 + ranking.order.shape[1]
    width, height = CELL[0] + 2 * FRAME + GAP, CELL[1] + 2 * FRAME + CAPTION
    size = (columns * width + 2 * GAP, HEADER + len(rows) * height + GAP)
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    _draw_legend(draw)
    for line, row in enumerate(rows.tolist()):
        top = HEADER + line * height
        worst = scores.worst
        texts = [
            *_two_lines(query.names[row]),
            f"AP {worst.ap_step[row]:.3f}",
            f"first hit {worst.first_hit[row]}",
        ]
        _draw_cell(canvas, draw, (GAP // 2, top), picture(query.names[row]), "query", texts)
        for column, found in enumerate(ranking.order[line].tolist()):
            flag = _flag(ranking, line, column, int(gallery.pids[found]))
            who = {-1: "junk", 0: "distractor"}.get(int(gallery.pids[found]), flag)
            texts = [*_two_lines(gallery.names[found]), f"{ranking.distance[line, column]:.4f}", who]
            place = ((column + 1) * width + GAP + GAP // 2, top)
            _draw_cell(canvas, draw, place, picture(gallery.names[found]), flag, texts)
    return np.asarray(canvas)


def write_rank_lists(
    folder: Path | str,
    query: FeatureSet,
    gallery: FeatureSet,
    report: ReidReport,
    picture: PictureOf,
    *,
    method: str = "euclidean",
    count: int = 8,
    top: int = 10,
    kinds: Sequence[Kind] = KINDS,
    unit: bool = True,
) -> list[Path]:
    """Write ranklist_best.png, ranklist_worst.png and ranklist_failed.png of one row of a report.

    A kind without queries (nothing failed) has no file; one of an earlier report, as it was
    written, is removed.

    Args:
        method: a row of the report: a distance, a learned method, either one re-ranked.
        count: queries on a sheet.
        top: gallery images of each.
        unit: features are brought to length 1, as for the report.

    Raises:
        UserError: the report has no such row.
    """
    if method not in report.results:
        raise UserError(f"the report has no method {method!r}", f"choose one of {', '.join(report.results)}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for kind in kinds:
        path = folder / f"ranklist_{kind}.png"
        rows = choose_queries(report.results[method].scores, query.pids, kind, count)
        if not len(rows):
            remove_output(path)
            continue
        ranking = rank_list(query, gallery, report, method, rows, top, unit)
        sheet = draw_sheet(query, gallery, rows, ranking, picture, report.results[method].scores)
        write_output(path, encode_png(sheet))
        written.append(path)
    return written


def rank_list(
    query: FeatureSet,
    gallery: FeatureSet,
    report: ReidReport,
    method: str,
    rows: NDArray[np.int64],
    top: int,
    unit: bool = True,
) -> Ranking:
    """The ``top`` nearest gallery images of the queries ``rows`` (n,) under a row of the report.

    A re-ranked row lists what it kept (no junk, at most ``reidentification.LISTED``); others are searched.
    """
    kept = report.results[method].ranking
    if kept is None:
        distance = report.metrics.get(method, method)
        return search(query, gallery, distance=distance, unit=unit, top=top, queries=rows)
    part = rows[:, None], np.arange(min(top, kept.order.shape[1]))
    return Ranking(kept.order[part], kept.distance[part], kept.matches[part], kept.valid[part])


def _flag(ranking: Ranking, line: int, column: int, pid: int) -> str:
    if pid == -1:
        return "junk"
    if not ranking.valid[line, column]:
        return "same camera"
    return "match" if ranking.matches[line, column] else "miss"


def _draw_cell(
    canvas: Image.Image,
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    pixels: NDArray[np.uint8],
    flag: str,
    texts: Sequence[str],
) -> None:
    x, y = place
    box = (x, y, x + CELL[0] + 2 * FRAME - 1, y + CELL[1] + 2 * FRAME - 1)
    draw.rectangle(box, fill=COLORS[flag])
    resized = Image.fromarray(pixels).resize(CELL, Image.Resampling.BICUBIC)
    canvas.paste(resized, (x + FRAME, y + FRAME))
    font = ImageFont.load_default(9)
    for i, text in enumerate(texts):
        draw.text((x, y + CELL[1] + 2 * FRAME + 1 + 11 * i), text, fill=INK, font=font)


def _draw_legend(draw: ImageDraw.ImageDraw) -> None:
    font, x = ImageFont.load_default(11), GAP
    for text, flag in (("match", "match"), ("miss", "miss"), ("not counted: own camera or junk", "junk")):
        draw.rectangle((x, 5, x + 10, 15), fill=COLORS[flag])
        draw.text((x + 15, 4), text, fill=INK, font=font)
        x += 15 + int(draw.textlength(text, font=font)) + 2 * GAP


def _two_lines(name: str) -> tuple[str, str]:
    """A file name's stem, or its last 26 characters, in what fits under a picture."""
    stem = name.rpartition("/")[2].partition(".")[0]
    stem = stem if len(stem) <= 26 else "…" + stem[-25:]
    return stem[:13], stem[13:]
