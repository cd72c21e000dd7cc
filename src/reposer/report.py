"""One self-contained HTML page about a run: pictures, curves, metric tables, configuration, environment.

Reads only what a run folder holds (JSON, PNG), so that a report can be had of any run at any time. A folder
may also hold ``sections.json`` (reposer.sections), which comes first; the demo writes one.
"""

from __future__ import annotations

import base64
import io
import math
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from reposer.config import read_json
from reposer.errors import UserError
from reposer.sections import Fold, Picture, Section, Table, checked, read_sections
from reposer.storage.files import write_atomic
from reposer.storage.paths import RefusedFileError, contained, folder_name, no_folder, printable, read_regular
from reposer.storage.runs import read_metrics

REPORT_FILE = "report.html"
_MAX_TEXT, _MAX_PICTURE, _MAX_PAGE = 4 * 2**20, 64 * 2**20, 2**30  # bytes that are read of one file
_MOST_SECTIONS, _MOST_PICTURES, _MOST_CELLS = 1_000, 2_000, 1_000_000
_MARKS = (b'content="reposer"', b"--mark: #0b6e4f")  # of pages now, and of those before they were marked
_MARKED = 20_000  # bytes at whose start a page has its mark
# what a terminal or an editor would obey, and what turns the reading direction; line ends and tabs stay
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_MOST_CURVES, _MOST_POINTS = 120, 5_000  # panels; points of one, evenly thinned
_MOST = 1e300  # of a value that is drawn, which larger ones stand at: its range must be a number too
_LONGEST_NAME = 60  # characters of a curve's name
REID_COLUMNS = ("rank1", "rank5", "rank10", "rank20", "mAP_step", "mAP_trapezoid", "mINP")
SAMPLES_SHOWN = 3  # first, middle and last sample grid of a training


def write_report(run_dir: Path, title: str = "", lead: str = "") -> Path:
    """Write ``run_dir/report.html`` from what the folder holds and return its path.

    Raises:
        UserError: the folder is not there, or holds nothing that a report could show.
    """
    page = _template().render(
        title=title or f"Reposer: {folder_name(run_dir)}",
        lead=lead or "Everything on this page was read from the files of the run.",
        sections=report_sections(run_dir),
    )
    path = run_dir / REPORT_FILE
    _refuse_other_page(path)
    write_atomic(path, page.encode("utf-8", "backslashreplace"))
    return path


def report_sections(run_dir: Path) -> list[Section]:
    """What a page about a folder shows, its pictures as data URIs.

    Raises:
        UserError: as :func:`write_report`.
    """
    if not run_dir.is_dir():
        raise no_folder(run_dir, "give the folder of a run or of an evaluation")
    sections = read_sections(run_dir) + _run_sections(run_dir)
    if not sections:
        raise UserError(
            f"{printable(run_dir)}: holds no metrics.jsonl, samples/, image_quality.json,"
            " reidentification.json or sections.json",
            "give the folder that `reposer train`, `evaluate` or `reid evaluate` wrote",
        )
    _refuse_too_much(sections, run_dir)
    return [_embed_pictures(section, run_dir) for section in sections]


def _refuse_too_much(sections: list[Section], run_dir: Path) -> None:
    """What no browser could show is refused before it is read."""
    pictures = [picture for section in sections for picture in section.pictures]
    cells = sum(len(row) for section in sections for table in section.tables for row in table.rows)
    files = [contained(run_dir, picture.file) for picture in pictures if not picture.data]
    size = sum(len(picture.data) for picture in pictures)
    size += sum(os.path.getsize(file) for file in files if os.path.isfile(file))
    for number, most, what in (
        (len(sections), _MOST_SECTIONS, "sections"),
        (len(pictures), _MOST_PICTURES, "pictures"),
        (cells, _MOST_CELLS, "cells of tables"),
        (size, _MAX_PAGE // 2, "bytes of pictures"),
    ):
        if number > most:
            problem = f"{printable(run_dir)}: a report of {number:,} {what}, at most {most:,} are shown"
            raise UserError(problem, "give the folder of one run or evaluation")


def _refuse_other_page(path: Path) -> None:
    """Only a page of this program's is replaced."""
    if not os.path.lexists(path):
        return
    start = read_regular(path, max_bytes=_MAX_PAGE, root=path.parent)[:_MARKED]
    if not any(mark in start for mark in _MARKS):
        raise UserError(f"{printable(path)}: is no report of this program", "move it away")


def _run_sections(run_dir: Path) -> list[Section]:
    """The parts that follow from the files of a folder and of the runs in it."""
    qualities = sorted(run_dir.rglob("image_quality.json"))
    parts: list[Section | None] = []
    for path in qualities:
        with _own_content(path):
            parts += checked([_quality_section(path, run_dir)])
    for path in sorted(run_dir.rglob("reidentification.json")):
        with _own_content(path):
            parts += checked([part for part in _reid_sections(path, run_dir) if part is not None])
    for folder in (run_dir, *sorted(path.parent for path in run_dir.glob("*/metrics.jsonl"))):
        parts.append(_samples_section(folder, run_dir))
        with _own_content(folder / "metrics.jsonl"):
            parts.append(_curves_section(folder, run_dir))
        parts.append(_settings_section(folder, run_dir))
    return [part for part in parts if part is not None]


@contextmanager
def _own_content(path: Path) -> Iterator[None]:
    """Whatever a foreign file holds in place of what is written there is one clear line."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError) as error:
        problem = f"{printable(path)}: is not what this program writes under this name"
        raise UserError(problem, "make it again, or move it away") from error


def _titled(title: str, folder: Path, run_dir: Path) -> str:
    """The title, with the folder's name where it is not the whole page's."""
    return title if folder == run_dir else f"{title}: {printable(folder.relative_to(run_dir))}"


def _quality_section(path: Path, run_dir: Path) -> Section:
    """The table of an image-quality evaluation, with its protocols, its warnings and its grids."""
    quality = read_json(path, root=run_dir)
    metrics: dict[str, Any] = quality["metrics"]
    arrows = {"lower": "\u2193", "higher": "\u2191"}
    columns = ["method", *(f"{name} {arrows[info['better']]}" for name, info in metrics.items())]
    rows = [
        [method, *(_cell(cells.get(name)) for name in metrics)] for method, cells in quality["rows"].items()
    ]
    protocols = [[name, info["protocol"], info["reference"]] for name, info in metrics.items()]
    notes = {
        f"{name}: {cell['note']}"
        for cells in quality["rows"].values()
        for name, cell in cells.items()
        if cell["note"]
    }
    return Section(
        title=_titled("Image metrics", path.parent, run_dir),
        text=sorted(notes),
        pictures=[
            Picture(caption=printable(grid.stem.replace("_", " ")), file=str(grid.relative_to(run_dir)))
            for grid in sorted(path.parent.glob("*.png"))
        ],
        tables=[
            Table(
                columns, rows, f"{quality['settings']['pairs']:,} pairs; mean, below it the 95 % interval."
            ),
            Table(["metric", "protocol", "reference"], protocols, plain=True),
        ],
    )


def _cell(result: dict[str, Any] | None) -> str:
    """Value with its interval; the reason why there is none stands in the notes."""
    if result is None:
        return ""
    if result["value"] is None:
        return "not measured"
    text = f"{result['value']:.4g}"
    return text if result["low"] is None else f"{text}\n{result['low']:.4g} to {result['high']:.4g}"


def _reid_sections(path: Path, run_dir: Path) -> list[Section | None]:
    """The table of a Re-ID evaluation in percent with protocol and notes; its curves and rank lists."""
    reid = read_json(path, root=run_dir)
    rows = [
        [method, *(_percent(result, name) for name in REID_COLUMNS)]
        for method, result in reid["methods"].items()
    ]
    rows += [[method, *("not measured" for _ in REID_COLUMNS)] for method in reid["missing"]]
    table = Table(["method", *REID_COLUMNS], rows, f"Percent, below it the 95 % interval. {reid['protocol']}")
    pictures = [
        Picture(caption=caption, file=str(contained(path.parent, name).relative_to(run_dir)))
        for name, caption in reid["pictures"].items()
    ]
    return [
        Section(title=_titled("Re-identification", path.parent, run_dir), text=reid["notes"], tables=[table]),
        Section(title=_titled("Who is found", path.parent, run_dir), pictures=pictures) if pictures else None,
    ]


def _percent(result: dict[str, Any], name: str) -> str:
    if name not in result:  # rank20 of a report written before it was reported
        curve = result.get("cmc", [])
        return f"{100 * curve[19]:.2f}" if name == "rank20" and len(curve) >= 20 else "not reported"
    text, interval = f"{100 * result[name]:.2f}", result["intervals"][name]
    if interval is None and result.get("deviations"):
        return f"{text} ± {100 * result['deviations'][name]:.2f}"
    return text if interval is None else f"{text}\n{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def _samples_section(folder: Path, run_dir: Path) -> Section | None:
    grids = sorted((folder / "samples").glob("*.png"))
    if not grids:
        return None
    shown = {round(i * (len(grids) - 1) / (SAMPLES_SHOWN - 1)) for i in range(SAMPLES_SHOWN)}
    return Section(
        title=_titled("How the pictures grew", folder, run_dir),
        text=["The same fixed pairs at several moments of the training."],
        pictures=[
            Picture(
                caption=printable(grids[i].stem.replace("_", " ")), file=str(grids[i].relative_to(run_dir))
            )
            for i in sorted(shown)
        ],
    )


def _curves_section(folder: Path, run_dir: Path) -> Section | None:
    path = folder / "metrics.jsonl"
    if not path.exists():
        return None
    lines = read_metrics(folder, root=run_dir)
    names = sorted({k for line in lines for k, v in line.items() if k != "step" and _is_number(v)})
    if not names:
        return None
    if len(names) > _MOST_CURVES:
        problem = f"{printable(path)}: logs {len(names):,} different values, at most {_MOST_CURVES} are drawn"
        raise UserError(problem, "move it away, or give another folder")
    curves = {n: [(line["step"], line[n]) for line in lines if n in line] for n in names}
    return Section(
        title=_titled("Training curves", folder, run_dir),
        pictures=[Picture(caption="Every value that was logged, by step.", data=_plot(curves))],
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))


def _drawn(value: Any) -> float:
    """A logged value as a curve has it; NaN, which is a gap in it, for what is no finite number."""
    return max(-_MOST, min(_MOST, value)) if _is_number(value) else math.nan


def _plot(curves: dict[str, list[tuple[int, Any]]]) -> str:
    """Small multiples, one panel a value, as an SVG data URI; what is no finite number is a gap."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(3, len(curves))
    lines = -(-len(curves) // columns)
    # matplotlib's font has not every letter, a browser's have
    letters = "path" if all(name.isascii() for name in curves) else "none"
    with (
        pyplot.rc_context(
            {
                "font.size": 8,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "svg.hashsalt": "reposer",
                "svg.fonttype": letters,
            }
        ),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure, axes = pyplot.subplots(lines, columns, figsize=(3.3 * columns, 2.1 * lines), squeeze=False)
        for axis, (name, points) in zip(axes.flat, curves.items(), strict=False):
            points = points[:: -(-len(points) // _MOST_POINTS)]
            steps, values = ([_drawn(p[part]) for p in points] for part in (0, 1))
            axis.plot(steps, values, color="#0b6e4f", linewidth=1.1)
            axis.set_title(printable(name[:_LONGEST_NAME]), fontsize=8, loc="left", parse_math=False)
            axis.grid(alpha=0.25, linewidth=0.5)
        for axis in axes.flat[len(curves) :]:
            axis.remove()
        figure.tight_layout()
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        pyplot.close(figure)
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def _settings_section(folder: Path, run_dir: Path) -> Section | None:
    folds = [
        Fold(
            name.removesuffix(".json"),
            read_regular(folder / name, max_bytes=_MAX_TEXT, root=run_dir).decode("utf-8", "replace"),
        )
        for name in ("config.json", "environment.json")
        if os.path.lexists(folder / name)
    ]
    return (
        Section(title=_titled("Configuration and environment", folder, run_dir), folds=folds)
        if folds
        else None
    )


def _embed_pictures(section: Section, run_dir: Path) -> Section:
    """Put every picture's bytes into the page: the file can be sent to anybody alone."""
    pictures = [
        Picture(_shown(p.caption), data=p.data or _data_uri(contained(run_dir, p.file), run_dir))
        for p in section.pictures
    ]
    tables = [
        Table(_all_shown(t.columns), list(map(_all_shown, t.rows)), _shown(t.caption), t.plain)
        for t in section.tables
    ]
    folds = [Fold(_shown(fold.title), _shown(fold.text)) for fold in section.folds]
    return Section(_shown(section.title), _all_shown(section.text), pictures, tables, folds)


def _all_shown(texts: list[str]) -> list[str]:
    return list(map(_shown, texts))


def _shown(text: str) -> str:
    """A text as UTF-8 can hold it: lone surrogates, as of names that are no text, become escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _data_uri(path: Path, run_dir: Path) -> str:
    try:
        data = read_regular(path, max_bytes=_MAX_PICTURE, root=run_dir)
    except RefusedFileError as error:
        if error.rule != "missing":
            raise
        problem = f"{path}: the report names this picture, but it is not there"
        raise UserError(problem, "make the run's pictures again") from error
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise UserError(f"{path}: the report names this picture, but it is no PNG", "make it again")
    return "data:image/png;base64," + base64.b64encode(data).decode()


def _template() -> Any:
    from jinja2 import Environment

    source = files("reposer.assets").joinpath("report.html.j2").read_text()
    made = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_without_controls)
    return made.from_string(source)


def _without_controls(value: Any) -> Any:
    """A text as it may stand on a page: controls are shown, not obeyed."""
    if not isinstance(value, str) or not _CONTROLS.search(value):
        return value
    return type(value)(_CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), value))
