"""Pictures of a Re-ID evaluation: CMC curves, maps of features, sheets of rank lists."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from reposer.errors import UserError, known
from reposer.evaluation.reid_comparison import RERANKED, ReidReport
from reposer.images import encode_png
from reposer.metrics.retrieval import QueryScores
from reposer.reid.distances import normalize
from reposer.reid.search import search
from reposer.storage.outputs import remove_output, write_output
from reposer.storage.paths import made_folder
from reposer.structures import FeatureSet, Ranking

# ---- CMC curves as a picture: the methods of a report, or anything else that has a curve.

RANKS = 20  # shown, of the 50 that a report holds
_COLORS = ("#0b6e4f", "#c8553d", "#2f5d9b", "#8a6d1d", "#7b3f8c", "#4a4a4a")  # apart for color-blind readers
_MARKS = "osD^vP"


def draw_cmc(report: ReidReport) -> bytes:
    """PNG bytes: share of queries found by rank, a line a method, its re-ranked twin dashed."""
    return draw_curves({name: result.cmc for name, result in report.results.items()}, "method")


def draw_curves(curves: Mapping[str, NDArray[np.float64]], what: str) -> bytes:
    """PNG bytes: a line for each name, (ranks,) shares in [0, 1]; the name's re-ranked twin is dashed.

    Colors, marks and line styles tell the lines apart, so that the plot can be read in gray.

    Args:
        what: the names are, for the legend.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.4), dpi=110, layout="constrained")
    axes = figure.subplots()
    bases = list(dict.fromkeys(name.removesuffix(RERANKED) for name in curves))
    for name, curve in curves.items():
        shown = curve[:RANKS]
        kind = bases.index(name.removesuffix(RERANKED))
        axes.plot(
            range(1, len(shown) + 1),
            100 * shown,
            color=_COLORS[kind % len(_COLORS)],
            marker=_MARKS[kind % len(_MARKS)],
            markersize=4,
            linewidth=1.4,
            linestyle="--" if name.endswith(RERANKED) else "-",
            label=f"{_legible(name)}: {100 * curve[0]:.1f}",
        )
    axes.set_xlabel("rank")
    axes.set_ylabel("queries with a match by that rank, %")
    axes.set_xticks([1, 5, 10, 15, 20])
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(title=f"{what}: rank-1", fontsize=8, title_fontsize=8, frameon=False, loc="lower right")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _legible(name: str) -> str:
    """A name as matplotlib draws it: no formula, not left out for its first letter, and of letters that its
    font has; others become \\u.. escapes."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties()))
    text = "".join(c if font.get_char_index(ord(c)) else c.encode("unicode_escape").decode() for c in name)
    return (f" {text}" if text.startswith("_") else text).replace("$", r"\$")


# ---- A map of features in the plane (t-SNE or UMAP), to look at: near each other, but not to be measured.
#
# Both methods keep neighborhoods and invent everything else: sizes of clusters and distances between them
# mean nothing (van der Maaten and Hinton, JMLR 2008; McInnes et al., arXiv 1802.03426).

MAPS = ("tsne", "umap")
MAX_POINTS = 3_000
COLORED = 20  # people with the most images; the others are gray
FEWEST = 5


def check_map(how: str) -> None:
    """Before anything is computed.

    Raises:
        UserError: an unknown map, or a package that is not installed.
    """
    known("feature map", how, MAPS)
    if how == "umap" and importlib.util.find_spec("umap") is None:
        raise UserError("the UMAP map needs umap-learn, not installed here", "pip install reposer[maps]")


def map_points(features: NDArray[np.floating], how: str, seed: int = 0) -> NDArray[np.float32]:
    """(N, D) features, brought to length 1, to (N, 2) places.

    Args:
        how: "tsne" (perplexity 30, or a third of few points) or "umap" (15 neighbors).
        seed: equal seeds, equal maps on one machine.

    Raises:
        UserError: as :func:`check_map`, or fewer than 5 points.
    """
    check_map(how)
    if len(features) < FEWEST:
        raise UserError(f"a map of {len(features)} features", f"give {FEWEST} or more")
    unit, neighbors = normalize(features), (len(features) - 1) / 3
    made: Any
    if how == "tsne":
        from sklearn.manifold import TSNE

        made = TSNE(perplexity=min(30.0, neighbors), init="pca", random_state=seed)
    else:
        from umap import UMAP

        made = UMAP(n_neighbors=min(15, len(features) - 1), random_state=seed, n_jobs=1)
    return np.asarray(made.fit_transform(unit), np.float32)


def draw_map(features: FeatureSet, how: str, seed: int = 0) -> bytes:
    """PNG bytes: a point an image, the 20 most photographed people in colors, junk and distractors left out.

    More than 3,000 images: as many of them, drawn by ``seed``.

    Raises:
        UserError: as :func:`map_points`.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    rows = np.flatnonzero(features.pids > 0)
    if len(rows) > MAX_POINTS:
        rows = np.sort(np.random.default_rng(seed).choice(rows, MAX_POINTS, replace=False))
    places, pids = map_points(features.features[rows], how, seed), features.pids[rows]
    people, counts = np.unique(pids, return_counts=True)
    shown = people[np.argsort(-counts, kind="stable")][:COLORED]
    figure = Figure(figsize=(8.6, 6.4), dpi=110, layout="constrained")
    axes = figure.subplots()
    x, y = places.T
    rest, others = ~np.isin(pids, shown), f"{len(people) - len(shown)} others"
    axes.scatter(x[rest], y[rest], s=8, color="#c9ced3", linewidths=0, label=others)
    for i, pid in enumerate(shown.tolist()):
        mark = "os^D"[i // 5]  # five colors of each mark: distinct without seeing all colors
        color, own = colormaps["tab10"](2 * (i % 5)), pids == pid
        axes.scatter(x[own], y[own], s=22, color=color, marker=mark, linewidths=0, label=str(pid))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.legend(
        title="person",
        fontsize=7,
        title_fontsize=8,
        frameon=False,
        loc="center left",
        bbox_to_anchor=(1, 0.5),
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


# ---- Rank-list sheets: queries with their nearest gallery images, framed by what they are.

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
    known("method of the report", method, report.results)
    folder = Path(folder)
    made_folder(folder)
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
