"""What a study tells beside its table, as sections: facts about arms, CMC curves, pictures, rank sheets."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reposer.config import read_json
from reposer.data.records import kept_by_hand
from reposer.evaluation.plots import draw_curves, write_rank_lists
from reposer.generation.augmented_rows import set_schema
from reposer.images import decode, encode_png
from reposer.metrics.intervals import mean_interval
from reposer.reid.features import read_features
from reposer.sections import Fold, Picture, Section, Table, draw_grid, markdown_page, write_sections
from reposer.storage.manifest import IMAGES, read_rows
from reposer.storage.outputs import write_output
from reposer.storage.paths import contained, made_folder, unlinked
from reposer.storage.tables import parquet_bytes, read_table
from reposer.studies import camera_pairs
from reposer.studies.config import STUDY_FILE, Arm, Budget
from reposer.studies.mistakes import FACTORS, MARGIN, MISTAKEN_PICTURES, MISTAKES
from reposer.studies.plan import Cell, Coverage, StudyPlan
from reposer.studies.results import ArmResult, Block, Results, block_cells, title_of, what_was_found
from reposer.studies.study_stages import COVERAGE, FEATURES, IDENTITY, REPORT, SET, SUMMARY, score_features

# ---- The table of mistaken pictures: shares with 95 % intervals over people, by what is known of a picture.

MARKDOWN, PARQUET = "mistakes.md", "mistakes.parquet"
WRITTEN = (MARKDOWN, PARQUET, camera_pairs.MARKDOWN, camera_pairs.PARQUET)
TITLE = "Which pictures are mistaken for another person?"
ALL = "all"
_WORDS = {
    "filter": "filter",
    "donor": "donor",
    "turn": "turn from source to donor",
    "source_lower": "source's lower garment",
    "source_sharpness": "source's sharpness",
    "map_agreement": "overlap of source's and donor's maps",
    "own_distance": "distance to the person's nearest real image",
}
_SCHEMA = pa.schema(
    [
        ("budget", pa.float64()),
        *((name, pa.string()) for name in ("arm", "factor", "bin")),
        *((name, pa.int64()) for name in ("pictures", "people")),
        *((name, pa.float64()) for name in ("mistaken", "low", "high")),  # share, 95 % interval or null
        *((name, pa.float64()) for name in (MARGIN, "margin_low", "margin_high")),  # mean, 95 % interval
    ]
)


def write_mistakes(plan: StudyPlan, root: Path) -> Section | None:
    """Write mistakes.parquet and mistakes.md of a finished study; returns the section of its report."""
    rows: list[dict[str, Any]] = [
        {"budget": part.budget.share, "arm": part.name} | row
        for part in plan.mistakes
        for row in shares(read_table(plan.cache.file(part.stage, MISTAKES)))
    ]
    if not rows:
        return None
    write_output(root / PARQUET, parquet_bytes(pa.Table.from_pylist(rows, _SCHEMA)))
    text = [
        "Share of pictures whose nearest real training image, the source left out, shows another person,"
        " under the network of the first seed that was trained on the budget's real images only; 95 %"
        " interval over people (bootstrap); number of pictures. At most"
        f" {MISTAKEN_PICTURES:,} of each set, kept and dropped ones. No interval: one person, or all alike.",
        "Real images are judged by a network that has learned them: a floor. Lines are related to each"
        " other, so none is a cause by itself; the distance to one's own is part of the verdict.",
    ]
    shown: list[tuple[str, Callable[[dict[str, Any]], str]]] = [("", _cell)]
    if any(row[MARGIN] is not None for row in rows):
        shown.append((", mean margin", _margin_cell))
        text.append(
            "Margin: distance to the nearest real image of another person minus that to the nearest of one's"
            " own; below 0 a picture is mistaken, and a small margin teaches little. Of length-1 features, so"
            " within -2 and 2. Sets that an earlier version judged have none."
        )
    budgets = list(dict.fromkeys(row["budget"] for row in rows))
    tables = [_table(rows, share, words, cell) for words, cell in shown for share in budgets]
    write_output(root / MARKDOWN, markdown_page(TITLE, text, tables))
    return Section(TITLE, text, tables=tables)


def shares(table: pa.Table) -> list[dict[str, Any]]:
    """A row for all pictures of a set and one for each bin that has any.

    Args:
        table: of ``mistakes_stage``.
    """
    bins = [
        (factor, name) for factor, names in FACTORS.items() if factor in table.column_names for name in names
    ]
    parts = [(ALL, ALL, table)]
    parts += [(factor, name, table.filter(pc.equal(table[factor], name))) for factor, name in bins]
    return [_share(factor, name, part) for factor, name, part in parts if part.num_rows]


def _share(factor: str, name: str, part: pa.Table) -> dict[str, Any]:
    mistaken, pids = part["mistaken"].to_numpy().astype(np.float64), part["pid"].to_numpy()
    found = mean_interval(mistaken, pids) if 0 < mistaken.mean() < 1 else None
    low, high = found or (None, None)  # drawing from equal values tells no spread
    row = {"factor": factor, "bin": name, "pictures": len(pids), "people": len(np.unique(pids))}
    row |= {"mistaken": float(mistaken.mean()), "low": low, "high": high}
    return row | dict(zip((MARGIN, "margin_low", "margin_high"), _margin(part), strict=True))


def _margin(part: pa.Table) -> tuple[float | None, float | None, float | None]:
    """Mean margin and its 95 % interval over people; None where nothing tells it."""
    if MARGIN not in part.column_names:
        return None, None, None
    values, pids = part[MARGIN].to_numpy(), part["pid"].to_numpy()
    known = np.isfinite(values)
    if not known.any():
        return None, None, None
    return float(values[known].mean()), *(mean_interval(values[known], pids[known]) or (None, None))


def _table(
    rows: Sequence[dict[str, Any]], budget: float, words: str, cell: Callable[[dict[str, Any]], str]
) -> Table:
    """Of one budget: a line for each bin, a column for each set."""
    here = [row for row in rows if row["budget"] == budget]
    arms = list(dict.fromkeys(row["arm"] for row in here))
    cells = {(row["arm"], row["factor"], row["bin"]): cell(row) for row in here}
    lines = [["all pictures", *(cells[arm, ALL, ALL] for arm in arms)]]
    for factor, names in FACTORS.items():
        for name in names:
            found = [cells.get((arm, factor, name), "") for arm in arms]
            if any(found):
                lines.append([f"{_WORDS[factor]}: {name}", *found])
    return Table(["pictures", *arms], lines, f"{100 * budget:g} % of the images{words}")


def _cell(row: dict[str, Any]) -> str:
    interval = "" if row["low"] is None else f" [{100 * row['low']:.0f}, {100 * row['high']:.0f}]"
    return f"{100 * row['mistaken']:.0f} %{interval} ({row['pictures']:,})"


def _margin_cell(row: dict[str, Any]) -> str:
    if row[MARGIN] is None:
        return "not measured"
    interval = "" if row["margin_low"] is None else f" [{row['margin_low']:.3f}, {row['margin_high']:.3f}]"
    return f"{row[MARGIN]:.3f}{interval}"


PICTURES = "pictures"
_SHOWN = 16  # pictures of an arm on its sheet
_SHEET_QUERIES = 6


def study_notes(plan: StudyPlan) -> list[str]:
    """How the table was made and how to read it, a sentence or two each."""
    study, people = plan.study, plan.people
    trained = people.pids[(people.splits == "train") & (people.pids > 0)]
    notes = [
        f"Every training: {study.steps} optimizer steps, the same for all arms; seeds"
        f" {', '.join(map(str, study.seeds))}. Numbers are percent, mean ± standard deviation over seeds.",
        f"Trained on {len(trained):,} real images of {len(np.unique(trained)):,} people (100 %); learned"
        " distances are fitted on real images only.",
        "Differences: paired bootstrap over test people, seeds pooled (docs/explanation/reid.md): 95 %"
        " interval, p; Holm: adjusted for the arms of a table; seeds: trainings drawn too.",
    ]
    notes += _told_of_repeated(plan)
    for budget in study.budgets:
        if budget.share < 1 and plan.coverage:
            share = f"{100 * budget.share:g} %"
            notes.append(f"{share} of the images: donors, filter and Re-ID training saw that share only.")
            notes += _learned_from(plan, budget)
    return notes


def _learned_from(plan: StudyPlan, budget: Budget) -> list[str]:
    """What the networks behind the pictures of a budget had seen, a sentence for each pair of them."""
    painted = {arm.name: plan.study.painter_of(arm, budget) for arm in plan.study.arms if arm.painted}
    words = {painter: painter.learned_from(plan.people) for painter in set(painted.values())}
    arms = dict[str, list[str]]()
    for name, painter in painted.items():
        arms.setdefault(words[painter], []).append(name)
    return [f"{', '.join(names)}: {seen}." for seen, names in arms.items() if seen]


def write_report_parts(plan: StudyPlan, results: Results, notes: Sequence[str], root: Path) -> None:
    """Write the pictures of a finished study and its sections.json; ``reposer.report`` makes the page."""
    made_folder(root, PICTURES)
    sections = [
        Section("What was found", [what_was_found(results)]),
        Section("What was compared", list(notes), tables=[_arms_table(plan)]),
        *_block_sections(plan, results, root),
        _identity_section(plan),
        write_mistakes(plan, root),
        camera_pairs.write_cameras(plan, root),
        _generated_section(plan, root),
        _sheets_section(plan, root),
        Section("Configuration", folds=[Fold("study", (root / STUDY_FILE).read_text())]),
    ]
    write_sections(root, [part for part in sections if part is not None])


def _arms_table(plan: StudyPlan) -> Table:
    """Each arm and budget: how many pictures, how many fell, which poses came in."""
    found = {(c.budget.share, c.arm.name): c for c in plan.coverage}
    rows = []
    for budget in plan.study.budgets:
        for arm in plan.study.arms:
            key = (budget.share, arm.name)
            facts = _json(plan, found[key], COVERAGE) if key in found else None
            row = [f"{100 * budget.share:g} %", arm.name, str(arm.factor)]
            if facts is None:
                row += ["" if arm.factor == 1 else "the sources again", *[""] * 4, _settings(arm)]
            else:
                before, after = facts["before"], facts["after"]
                row += [arm.policy, arm.background, _kept(plan, found[key])]
                row += [_change(before, after, key) for key in ("orientations", "pose_gap")]
                row += [_settings(arm)]
            rows.append(row)
    columns = ["budget", "arm", "factor", "donors", "background", "pictures kept"]
    columns += ["orientations a person (of 8)", "pose gap (torso lengths)", "settings"]
    caption = "Poses: real images → with the pictures, each taken to have its donor's pose."
    return Table(columns, rows, caption, plain=True)


def _told_of_repeated(plan: StudyPlan) -> list[str]:
    """What repeated images differ from real ones by, in the same training: chance, or nearly."""
    lines = []
    for arm in plan.study.arms:
        real = [one.name for one in plan.study.arms if one.factor == 1 and one.settings == arm.settings]
        if not (arm.repeated and real):
            continue
        drawn = {cell.training.inputs["recipe"]["data"]["sampler"] for cell in plan.cells if cell.arm == arm}
        grouped = " or ".join(sorted(drawn - {"images"}))
        copies = f", and that a batch of {grouped} may hold an image and its copy" if grouped else ""
        lines.append(
            f"With equal steps a repeated image brings nothing new: what {arm.name} differs from {real[0]} by"
            f" is chance{copies}."
        )
    return lines


def _settings(arm: Arm) -> str:
    """What an arm asks for beside donors and background, in words; its overrides as they are."""
    words = [f"{arm.sources} sources"] if arm.sources > 1 else []
    words += ["the donor's camera"] if arm.camera == "donor" else []
    if (arm.start, arm.stop) != (0, 1):
        words.append(f"generated images from {100 * arm.start:g} to {100 * arm.stop:g} % of the steps")
    return ", ".join([*words, *arm.settings])


def _kept(plan: StudyPlan, part: Coverage) -> str:
    """What is trained on, and what was dropped: ``69 of 96 (20 identity, 6 pose, +1 by hand)``."""
    summary = read_json(plan.cache.file(part.stage.needs[0], SUMMARY))
    facts = _json(plan, part, COVERAGE)
    reasons = [f"{count:,} {reason}" for reason, count in summary["dropped"].items()]
    by_hand = summary["kept"] - facts["kept"]  # below 0: taken back
    reasons += [f"{by_hand:+,} by hand"] if by_hand else []
    return f"{facts['kept']:,} of {facts['generated']:,}" + (f" ({', '.join(reasons)})" if reasons else "")


def _change(before: dict[str, Any], after: dict[str, Any], key: str) -> str:
    values = [before[key], after[key]]
    return "" if None in values else f"{values[0]:.2f} → {values[1]:.2f}"


def _block_sections(plan: StudyPlan, results: Results, root: Path) -> list[Section]:
    """The table and the CMC curves of every block."""
    sections = []
    for number, (block, arms) in enumerate(results.items()):
        header, *rows = ([_in_lines(cell) for cell in cells] for cells in _whole_table(arms))
        curves = {arm.arm: _mean_curve(plan, block, arm.arm) for arm in arms}
        name = f"{PICTURES}/cmc_{number:02d}.png"
        write_output(unlinked(root, name), draw_curves(curves, "arm"))
        picture = Picture("Share of queries whose person is found by that rank, mean over seeds.", name)
        sections.append(Section(title_of(block), pictures=[picture], tables=[Table(header, rows)]))
    return sections


def _whole_table(arms: Sequence[ArmResult]) -> list[list[str]]:
    header, rows = block_cells(arms)
    return [header, *rows]


def _in_lines(cell: str) -> str:
    """A difference, its p and the adjusted ones under each other: a page breaks cells nowhere else."""
    for mark in (", p", " (Holm", " - "):
        cell = cell.replace(mark, "\n" + mark.lstrip(", "))
    return cell


def _mean_curve(plan: StudyPlan, block: Block, arm: str) -> Any:
    reports = [
        json.loads(plan.cache.file(cell.scores, REPORT).read_text())
        for cell in plan.cells
        if (cell.recipe.preset, cell.budget.share, cell.arm.name) == (block.recipe, block.budget, arm)
    ]
    return np.mean([report["methods"][block.method]["cmc"] for report in reports], axis=0)


def _identity_section(plan: StudyPlan) -> Section | None:
    """Rank-1 of real and generated queries under a network that has seen real images only."""
    rows = []
    for part in plan.judgments:
        document = _json(plan, part, IDENTITY)
        for name, result in document["rows"].items():
            values = [f"{100 * result[key]:.1f}" for key in ("rank1", "mAP_step")]
            rows.append([f"{100 * part.budget.share:g} %", ", ".join(part.arms), name, *values])
    if not rows:
        return None
    text = (
        "Test people re-posed and looked for among real images, by the network of the first seed that was"
        " trained on real images only. Nothing here is trained on."
    )
    table = Table(["budget", "pictures of", "queries", "rank-1", "mAP (step)"], rows, plain=True)
    return Section("Is it still the same person?", [text], tables=[table])


def _generated_section(plan: StudyPlan, root: Path) -> Section | None:
    """A sheet of each arm's pictures at the first budget: kept ones, and dropped ones where there are."""
    pictures = []
    for part in plan.coverage:
        if part.budget is plan.study.budgets[0]:
            for kept, word in ((True, "trained on"), (False, "dropped")):
                name = f"{PICTURES}/{part.arm.name}_{'kept' if kept else 'dropped'}.png"
                if _draw_pictures(plan, part, kept, unlinked(root, name)):
                    caption = f"{part.arm.name}: source, donor, picture; {word}."
                    pictures.append(Picture(caption, name))
    return Section("Generated pictures", pictures=pictures) if pictures else None


def _draw_pictures(plan: StudyPlan, part: Coverage, kept: bool, path: Path) -> bool:
    """Evenly spread pictures of a set with their source and donor; False where there is none."""
    folder = plan.cache.folder(part.stage.needs[0]) / SET
    table, people = read_rows(folder, set_schema(folder)), plan.people
    columns = (table[name].to_pylist() for name in ("file", "sha256", "kept"))
    rows = np.flatnonzero(kept_by_hand(folder, *columns) == kept)
    if not len(rows):
        return False
    lines = []
    for row in rows[np.unique(np.linspace(0, len(rows) - 1, _SHOWN).round().astype(int))].tolist():
        source, donor = (
            people.images[people.index(table[side][row].as_py())] for side in ("source", "donor")
        )
        lines.append(
            [source, donor, decode(contained(folder, f"{IMAGES}/{table['file'][row].as_py()}"), folder)]
        )
    titles = ["source", "donor", "picture"]
    write_output(path, encode_png(draw_grid(lines, titles, scale=1, groups=4)))
    return True


def _sheets_section(plan: StudyPlan, root: Path) -> Section | None:
    """The deepest failures of the first control and the first other arm with pictures: first cell of each."""
    study = plan.study
    control, painted = study.controls[:1], [arm.name for arm in study.arms if arm.painted]
    names = [*control, *[name for name in painted if name not in control][:1]]
    pictures = []
    for name in names:
        cell = next(c for c in plan.cells if c.arm.name == name)
        method = cell.recipe.methods[0]
        for path in _draw_sheet(plan, cell, method, unlinked(root, f"{PICTURES}/ranks_{name}")):
            caption = f"{name}, {method}, seed {cell.seed}: queries whose match comes latest."
            pictures.append(Picture(caption, str(path.relative_to(root))))
    return Section("Where it fails", pictures=pictures) if pictures else None


def _draw_sheet(plan: StudyPlan, cell: Cell, method: str, folder: Path) -> list[Path]:
    path, people = plan.cache.file(cell.features, FEATURES), plan.people
    sets, report = read_features(path), score_features(path, [method], False)
    return write_rank_lists(
        folder,
        sets["query"],
        sets["gallery"],
        report,
        lambda name: people.images[people.index(name)],
        method=method,
        count=_SHEET_QUERIES,
        kinds=("failed",),
    )


def _json(plan: StudyPlan, part: Any, name: str) -> dict[str, Any]:
    return read_json(plan.cache.file(part.stage, name))
