"""``reposer study ablations``: what each part of SAN brings to the pictures (the paper's figures 7 and 8).

Every row is a training of one generator with one part changed, all with the same number of steps, pairs and
seeds, scored on the same validation pairs. Stages are shared and resumable as those of any study.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import pyarrow as pa
from pydantic import AfterValidator, Field, model_validator

from reposer.config import Config, apply_overrides, check_each_once, load_config, one_of, read_json, validated
from reposer.data.packed import PackedPeople
from reposer.data.preparing.prepare import PACKED, PAIRS
from reposer.errors import MOST_SIDE_BY_SIDE, find
from reposer.evaluation.image_quality import DEFAULT_METRICS
from reposer.evaluation.image_sets import PER_IMAGE, REPORT_FILE
from reposer.generation.pose_transfer import PoseTransfer
from reposer.jobs.stages import Stage, StageCache, in_order, make_all, seal_study
from reposer.metrics.intervals import Difference, paired_bootstrap
from reposer.metrics.protocols import METRICS, find_metric, known_hashes
from reposer.runtime import setup
from reposer.sections import SECTIONS_FILE, Fold, Picture, Section, Table, markdown_row, write_sections
from reposer.storage.files import sha256_file
from reposer.storage.outputs import write_output
from reposer.storage.paths import check_name, contained, made_folder
from reposer.storage.tables import parquet_bytes, read_table
from reposer.studies.config import STUDY_FILE, Device, check_kept, check_trainings, claim_study, save_study
from reposer.studies.results import LATEX, MARKDOWN, PARQUET, TABLES, p_text, tex
from reposer.trained.networks import EMBEDDING, of_run
from reposer.training.gan.config import GanConfig
from reposer.training.gan.task import Beginning
from reposer.training.loop import train
from reposer.workflows.evaluate import PICTURE, evaluate_model, read_named_pairs
from reposer.workflows.gan_presets import find_preset

# ---- The table of ablations: a row a generator, a column an image metric; Parquet, Markdown, LaTeX.

_ARROWS = {"lower": "↓", "higher": "↑"}


@dataclass(frozen=True)
class AblationCell:
    """A metric of a row."""

    mean: float  # over seeds
    deviation: float | None  # standard deviation over seeds; None with one seed
    better: str  # "lower" or "higher"
    difference: Difference | None  # to the first row; None for it, and for metrics of whole sets


@dataclass(frozen=True)
class AblationRow:
    """A generator; a metric that was not measured has None."""

    name: str
    cells: dict[str, AblationCell | None]


def write_ablation_table(folder: Path, rows: Sequence[AblationRow], notes: Sequence[str]) -> None:
    """Write table.parquet, table.md and table.tex into ``folder``; each appears whole or not at all."""
    write_output(folder / PARQUET, parquet_bytes(_long(rows)))
    header, cells = cells_of(rows)
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *cells]
    table = [markdown_row(*line) for line in lines]
    write_output(folder / MARKDOWN, ("\n".join([*table, "", *(f"- {n}" for n in notes)]) + "\n").encode())
    write_output(folder / LATEX, latex_table(header, cells).encode())


def cells_of(rows: Sequence[AblationRow]) -> tuple[list[str], list[list[str]]]:
    """Header and cells: mean, standard deviation over seeds, and the difference to the first row."""
    header = ["generator"]
    for metric in rows[0].cells:
        found = next((row.cells[metric] for row in rows if row.cells[metric]), None)
        header.append(f"{metric} {_ARROWS[found.better]}" if found else metric)
    return header, [[row.name, *(_cell(cell) for cell in row.cells.values())] for row in rows]


def _cell(cell: AblationCell | None) -> str:
    if cell is None:
        return "not measured"
    text = f"{cell.mean:.4f}" + ("" if cell.deviation is None else f" ± {cell.deviation:.4f}")
    d = cell.difference
    return text if d is None else f"{text} ({d.value:+.4f} [{d.low:+.4f}, {d.high:+.4f}], p {p_text(d.p)})"


def _long(rows: Sequence[AblationRow]) -> pa.Table:
    names = ("difference", "low", "high", "p", "p_seeds")
    lines = []
    for row in rows:
        for metric, cell in row.cells.items():
            if cell is not None:
                d = cell.difference
                values = (None,) * 5 if d is None else (d.value, d.low, d.high, d.p, d.p_seeds)
                line = {"row": row.name, "metric": metric, "mean": cell.mean, "sd": cell.deviation}
                lines.append(line | {"better": cell.better} | dict(zip(names, values, strict=True)))
    texts = [(name, pa.string()) for name in ("row", "metric", "better")]
    numbers = [(name, pa.float64()) for name in ("mean", "sd", *names)]
    return pa.Table.from_pylist(lines, pa.schema([*texts, *numbers]))


def latex_table(header: Sequence[str], cells: Sequence[Sequence[str]], *, whole: bool = False) -> str:
    """A tabular of such cells; what stands in parentheses is left out, unless they are wanted whole."""
    arrows = {"↓": r"$\downarrow$", "↑": r"$\uparrow$", "±": r"$\pm$"}

    def line(parts: Sequence[str]) -> str:
        text = " & ".join(tex(part if whole else part.split(" (")[0]) for part in parts)
        for sign, command in arrows.items():
            text = text.replace(sign, command)
        return text + r" \\"

    columns = "l" + "r" * (len(header) - 1)
    body = [rf"\begin{{tabular}}{{{columns}}}", r"\hline", line(header), r"\hline", *map(line, cells)]
    return "\n".join([*body, r"\hline", r"\end{tabular}"]) + "\n"


RUN = "run"
_VERSION = 1


class AblationArm(Config):
    """A row: the base recipe with some settings changed."""

    name: Annotated[str, AfterValidator(check_name)]
    settings: tuple[str, ...] = ()  # overrides of the base, as generator_args.use_mask=false


class AblationConfig(Config):
    """Everything that the table depends on. The first arm is the one that the others are compared with."""

    data: Path  # written by `reposer prepare`, with training and validation pairs
    preset: str = "san_market_small"  # a key of PRESETS
    settings: tuple[str, ...] = ()  # overrides of the preset, for every row
    arms: tuple[AblationArm, ...] = (
        AblationArm(name="full"),
        AblationArm(name="no perceptual loss", settings=("weights.perceptual=0",)),
        AblationArm(name="no mask", settings=("generator_args.use_mask=false",)),
        *(AblationArm(name=f"{n} blocks", settings=(f"generator_args.blocks={n}",)) for n in (1, 5, 7)),
    )
    steps: int = Field(default=300, ge=1)  # optimizer steps of every row
    seeds: tuple[int, ...] = (0,)
    pairs: int | None = Field(default=1000, ge=1)  # validation pairs that are scored; None: all
    metrics: tuple[Annotated[str, one_of("metric", METRICS)], ...] = DEFAULT_METRICS
    # CPU threads of each worker; results depend on it
    threads: int | None = Field(default=1, ge=1, le=MOST_SIDE_BY_SIDE)
    device: Device = "auto"  # auto, cpu, cuda or mps; results depend on it

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        check_trainings(arms=self.arms, seeds=self.seeds)
        check_each_once(arms=[arm.name for arm in self.arms], seeds=self.seeds, metrics=self.metrics)
        return self


@dataclass(frozen=True)
class Trial:
    """One training and its pictures' scores."""

    arm: AblationArm
    seed: int
    training: Stage
    quality: Stage


def ablations(data: Path, arms: Sequence[str] = (), overrides: Sequence[str] = ()) -> AblationConfig:
    """The ablations on a prepared folder.

    Args:
        arms: names of rows; empty: all.
        overrides: "a.b=c".

    Raises:
        UserError: an unknown row or setting.
    """
    config = AblationConfig(data=data)
    known = {arm.name: arm for arm in config.arms}
    if arms:
        rows = [find("--arms: row", name, known).model_dump(mode="json") for name in arms]
        config = validated(AblationConfig, {"data": str(data), "arms": rows}, "--arms")
    return apply_overrides(config, overrides)


def run_ablations(config: AblationConfig, out: Path, *, workers: int = 1) -> Path:
    """Run the rows into ``out``, or go on with them: table.{parquet,md,tex} and sections.json.

    Raises:
        UserError: what is wrong with the data, the weights of the perceptual loss, the settings, or a stage.
    """
    people = PackedPeople.open(config.data / PACKED)
    read_named_pairs(contained(config.data, PAIRS["val"]), people)  # none to measure on: told before training
    trials = list(_trials(config, out))
    claim_study(out, (*TABLES, SECTIONS_FILE))
    made_folder(out)
    save_study(config, out)
    make_all(out, plan_ablations, workers=workers, threads=config.threads)
    cache = StageCache(out)
    rows, notes = _rows(config, cache, trials), _notes(config)
    write_ablation_table(out, rows, notes)
    _write_sections(config, cache, trials, rows, notes, out)
    seal_study(out)
    return out


def plan_ablations(root: Path) -> Sequence[Stage]:
    """The stages of the ablations whose configuration lies in ``root``."""
    config = load_config(AblationConfig, root / STUDY_FILE)
    return in_order([trial.quality for trial in _trials(config, root)])


def _trials(config: AblationConfig, root: Path) -> Iterator[Trial]:
    cache = StageCache(root)
    data = str(PackedPeople.open(config.data / PACKED).header["content_hash"])
    # None: not on this machine; what it is for is measured once it is there
    weights = {name: known_hashes(name) for name in config.metrics if find_metric(name).weights}
    for seed in config.seeds:
        for arm in config.arms:
            recipe = generator_config(config, arm, seed)
            inputs = {
                "version": _VERSION,
                "data": data,
                "recipe": described_training(recipe),
                "device": config.device,
            }
            make: Callable[[Path], Sequence[str]] = partial(_train, recipe, config.device)
            training = Stage("generator", f"{arm.name}, seed {seed}", inputs, make)
            inputs = {
                "version": _VERSION,
                "data": data,
                "pairs": config.pairs,
                "metrics": list(config.metrics),
            }
            inputs |= {"weights": weights} if weights else {}  # as in earlier studies
            if recipe.data.validation_pairs != PAIRS["val"]:  # else the training's key holds it
                inputs["list"] = sha256_file(contained(config.data, PAIRS["val"]))
            make = partial(_evaluate, cache, training, config)
            quality = Stage("quality", f"pictures of {training.title}", inputs, make, (training,))
            yield Trial(arm, seed, training, quality)


def generator_config(config: AblationConfig, arm: AblationArm, seed: int) -> GanConfig:
    """The training of a row: the schedule keeps its shape in ``config.steps`` steps."""
    recipe = find_preset(config.preset)
    recipe = recipe.changed(data=recipe.data.changed(folder=config.data), threads=config.threads, seed=seed)
    recipe = apply_overrides(recipe, [*config.settings, *arm.settings])
    check_kept(recipe, {"data.folder": config.data, "seed": seed}, f"row {arm.name}")
    recipe = recipe.with_steps(config.steps)
    every = recipe.output.changed(sample_every=config.steps, validate_every=config.steps)
    return recipe.changed(output=every)


def described_training(recipe: GanConfig) -> dict[str, Any]:
    """The settings of a training, with hashes of content in place of paths.

    Raises:
        UserError: a network that it names is not there.
    """
    settings = recipe.model_dump(mode="json")
    settings["data"].pop("folder")
    for name in ("pairs", "validation_pairs"):
        if getattr(recipe.data, name):  # validation pairs may be none
            settings["data"][name] = sha256_file(recipe.data.folder / getattr(recipe.data, name))
    if recipe.perceptual.path is not None:
        settings["perceptual"]["path"] = sha256_file(recipe.perceptual.path)
    if recipe.identity.network is not None:
        settings["identity"]["network"] = of_run(EMBEDDING, recipe.identity.network).weights_hash
    if recipe.start_from is not None:
        settings["start_from"] = Beginning.of(recipe.start_from, recipe.generator).fingerprint
    return settings


def _train(recipe: GanConfig, device: str, folder: Path) -> Sequence[str]:
    train(recipe, folder / RUN, device=device)
    return [f"{RUN}/config.json"]


def _evaluate(cache: StageCache, training: Stage, config: AblationConfig, folder: Path) -> Sequence[str]:
    model = PoseTransfer.from_pretrained(
        cache.folder(training) / RUN, setup(config.device, threads=config.threads)
    )
    evaluate_model(model, config.data, folder, metrics=config.metrics, limit=config.pairs)
    return [REPORT_FILE, PER_IMAGE, PICTURE]


# ---- the table


def _rows(config: AblationConfig, cache: StageCache, trials: Sequence[Trial]) -> list[AblationRow]:
    """Means over seeds of every metric; per-image metrics compared with the first arm, pair by pair."""
    rows = []
    base = config.arms[0].name
    tables = {arm.name: [_per_image(cache, t) for t in trials if t.arm == arm] for arm in config.arms}
    for arm in config.arms:
        cells = dict[str, AblationCell | None]()
        reports = [read_json(cache.file(t.quality, REPORT_FILE)) for t in trials if t.arm == arm]
        for metric in config.metrics:
            values = [report["rows"]["model"][metric]["value"] for report in reports]
            if None in values:
                cells[metric] = None
                continue
            compared = None
            if arm.name != base and metric in tables[base][0].column_names:
                compared = _compare(tables[arm.name], tables[base], metric)
            spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
            better = reports[0]["metrics"][metric]["better"]
            cells[metric] = AblationCell(float(np.mean(values)), spread, better, compared)
        rows.append(AblationRow(arm.name, cells))
    return rows


def _per_image(cache: StageCache, trial: Trial) -> pa.Table:
    table = read_table(cache.file(trial.quality, PER_IMAGE))
    return table.filter(pa.compute.equal(table["method"], "model"))


def _compare(arm: Sequence[pa.Table], base: Sequence[pa.Table], metric: str) -> Any:
    """Paired bootstrap over the people of the pairs; pairs without a finite value on a side are left out."""
    sides = [
        np.stack([t[metric].to_numpy(zero_copy_only=False).astype(float) for t in side])
        for side in (arm, base)
    ]
    finite = np.isfinite(sides[0]).all(0) & np.isfinite(sides[1]).all(0)
    pids = base[0]["pid"].to_numpy()[finite]
    if len(np.unique(pids)) < 2:
        return None
    return paired_bootstrap(sides[0][:, finite], sides[1][:, finite], pids)


def _notes(config: AblationConfig) -> list[str]:
    seeds = ", ".join(map(str, config.seeds))
    return [
        f"Every row: {config.preset}, {config.steps} optimizer steps, seeds {seeds}; equal validation pairs.",
        f"Differences to {config.arms[0].name}: paired bootstrap over the pairs' people"
        " (docs/explanation/reid.md).",
        "A short training says what a part brings early, not what it brings in the end.",
    ]


def _write_sections(
    config: AblationConfig,
    cache: StageCache,
    trials: Sequence[Trial],
    rows: Sequence[AblationRow],
    notes: Sequence[str],
    out: Path,
) -> None:
    header, cells = cells_of(rows)
    pictures = [
        Picture(
            f"{t.arm.name}, seed {t.seed}: source, target map, generated, true target.",
            str(path.relative_to(out)),
        )
        for t in trials
        if t.seed == config.seeds[0] and (path := cache.file(t.quality, PICTURE))
    ]
    folds = [Fold("study", json.dumps(config.model_dump(mode="json"), indent=1))]
    write_sections(
        out,
        [
            Section("What each part brings", list(notes), tables=[Table(header, cells)]),
            Section("The pictures", pictures=pictures),
            Section("Configuration", folds=folds),
        ],
    )
