"""The table of generators: what is compared by what rule, and what its stages do: how many steps fit the
minutes, trainings, pictures and what they cost. Each stage works in its folder and names the files to seal.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, model_validator
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from reposer.config import Config, apply_overrides, check_each_once, one_of, read_json
from reposer.data.packed import PackedPeople
from reposer.data.preparing.prepare import PACKED, PAIRS
from reposer.errors import MOST_SIDE_BY_SIDE
from reposer.evaluation.image_quality import evaluate_pairs, nearest_donors
from reposer.evaluation.image_sets import REPORT_FILE
from reposer.generation.donors import POLICIES
from reposer.generation.pose_transfer import PoseTransfer
from reposer.images import encode_png
from reposer.jobs.stages import Stage, StageCache
from reposer.metrics.protocols import METRICS
from reposer.runtime import setup
from reposer.storage.files import remove_tree, write_atomic
from reposer.storage.paths import check_name
from reposer.studies.ablations import RUN
from reposer.studies.config import Device, StudyRecipe, check_kept, check_trainings
from reposer.studies.paper_report import sheet_pairs
from reposer.studies.study import REAL, REPEATED
from reposer.training.gan.config import GanConfig
from reposer.training.loop import train
from reposer.workflows.gan_presets import find_preset

# ---- What is compared, and by what rule.

PACE, COST, SHEET = "pace.json", "cost.json", "people.png"
MODEL = "model"  # a row's method in its own report
_TRIALS, REFERENCES = "trials", "references"  # folders inside a stage's
VERSION = 1
# rows that stand in every table -> a key of CONTROLS
TRIVIAL = {"copy of the source": "paste", "label colors": "colors", "transport only": "transport"}
_TRIAL = 0.02  # of the budget: what is tried, at least, to learn how long a step takes
_MOST_TRIED = 1024  # steps of a trial
AT_ONCE, _SECONDS, _CALLS = 16, 3.0, (3, 50)  # of timing: pictures a call, seconds, fewest and most calls
EXAMPLE = "'slim=san settings=[\"generator_args.blocks=3\"]'"


class TableRow(Config):
    """A generator: trained here by a preset, or given as it is."""

    name: Annotated[str, AfterValidator(check_name)]
    title: str = ""  # as it is printed; empty: the name
    preset: str = ""  # a key of PRESETS
    settings: tuple[str, ...] = ()  # overrides of the preset
    run: str = ""  # in its place: a run folder, an exported or imported one, or a hub id
    generator: str = ""  # that ``run`` must hold, a key of GENERATORS; empty: any

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if bool(self.preset) == bool(self.run):
            raise ValueError(f"row {self.name}: is trained by a preset, or given as a run: one of the two")
        if self.run and self.settings:
            raise ValueError(f"row {self.name}: a run that is given has no settings")
        return self


def _row(name: str, title: str, stem: str = "") -> TableRow:
    return TableRow(name=name, title=title, preset=f"{stem or name}_market_small", generator=name)


ROWS = (  # Table 1 of the paper, the others of its Re-ID section, and what is ours
    _row("vunet", "VU-Net"),
    _row("def_gan", "Def-GAN"),
    _row("intro_flow_keypoints", "Intro-Flow with key-point flow (not SMPL)"),
    _row("gfla", "GFLA"),
    _row("pg2", "PG2"),
    _row("dpig", "DPIG"),
    _row("patn", "PATN"),
    _row("san", "SAN"),
    _row("rsa_gan", "RSA-GAN (reconstruction from the abstract)", "rsa"),
    _row("transport_unet", "Transport generator", "transport"),
)


class PaperTableConfig(Config):
    """Everything that the table depends on."""

    data: Path  # written by `reposer prepare`, with training pairs and people to test on
    rows: tuple[TableRow, ...] = ROWS
    settings: tuple[str, ...] = ()  # overrides of every preset
    minutes: float = Field(default=45, gt=0)  # of each training, times ``threads`` cores of a CPU
    # of each training, in place of minutes
    steps: int | None = Field(default=None, ge=1)
    seed: int = 0  # of the trainings
    pair_list: Path | None = None  # columns from,to; none: the validation pairs of the folder
    pairs: int | None = Field(default=2000, ge=1)  # the first so many of the list; none: all
    metrics: tuple[Annotated[str, one_of("metric", METRICS)], ...] = (
        *("fid_gfla", "fid", "frechet_mobilenetv2", "lpips_alex_v0.0", "lpips_like_squeeze"),
        *("mask_lpips", "mask_lpips_like_squeeze", "ssim", "mask_ssim", "psnr", "l1", "mask_l1"),
    )
    weights: Path | None = None  # folder with .safetensors files of metric networks
    augment: bool = True  # false: no Re-ID training with pictures; the judge of identity alone
    recipes: tuple[StudyRecipe, ...] = (StudyRecipe(preset="ide_small"),)  # the first one's network judges
    reid_settings: tuple[str, ...] = ()  # overrides of every recipe, as initial_path=FILE
    reid_steps: int = Field(default=300, ge=1)  # of every Re-ID training
    reid_seeds: tuple[int, ...] = (0, 1, 2)
    # of each training person's images: what donors and Re-ID trainings see; generators and judge see all
    reid_budget: float = Field(default=1.0, gt=0, le=1)
    factor: int = Field(default=2, ge=2, le=1000)  # images after augmentation per real one
    policy: Annotated[str, one_of("policy", POLICIES)] = "any"  # of donors: the same for all rows
    threads: int | None = Field(default=1, ge=1, le=MOST_SIDE_BY_SIDE)  # of each worker
    device: Device = "auto"  # auto, cpu, cuda or mps; results depend on it

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_trainings(rows=self.rows, recipes=self.recipes, reid_seeds=self.reid_seeds)
        names = [row.name for row in self.rows]
        taken = [*TRIVIAL, REAL.name, REPEATED.name, *TRIVIAL.values()]
        for number, name in enumerate(names):
            if name in names[:number]:
                raise ValueError(f"rows: {name} is named twice")
            if name in taken:
                raise ValueError(f"rows: {name} is the name of a row that stands in every table")
        if not names:
            raise ValueError("rows: one or more are needed")
        presets = [recipe.preset for recipe in self.recipes]
        check_each_once(metrics=self.metrics, recipes=presets, reid_seeds=self.reid_seeds)
        return self


def recipe_of(config: PaperTableConfig, row: TableRow, steps: int) -> GanConfig:
    """The training of a row in so many steps, at least one for each of its stages."""
    recipe = find_preset(row.preset)
    watched = PAIRS["val"] if (config.data / PAIRS["val"]).is_file() else ""
    data = recipe.data.changed(folder=config.data, validation_pairs=watched)
    recipe = recipe.changed(data=data, threads=config.threads)
    recipe = apply_overrides(recipe.changed(seed=config.seed), [*config.settings, *row.settings])
    check_kept(recipe, {"data.folder": config.data, "seed": config.seed}, f"row {row.name}")
    steps = max(steps, len(recipe.schedule.stages))
    every = recipe.output.changed(sample_every=steps, validate_every=steps)
    return recipe.with_steps(steps).changed(output=every)


# ---- What the stages do.


def pace_stage(config: PaperTableConfig, row: TableRow, folder: Path) -> Sequence[str]:
    """How many steps fit the minutes: short trainings of the same shape, so that each stage has its share.

    On a CPU its own time counts, divided by the threads: what else the machine does makes no difference.
    """
    own = setup(config.device, threads=config.threads).device.type == "cpu"
    clock = time.process_time if own else time.perf_counter
    threads = torch.get_num_threads() if own else 1

    def seconds(steps: int) -> float:
        recipe = recipe_of(config, row, steps)
        watched = recipe.output.changed(validate_pairs=1, sample_pairs=1)
        remove_tree(folder / _TRIALS)
        started = clock()
        train(recipe.changed(output=watched), folder / _TRIALS, device=config.device)
        return (clock() - started) / threads

    stages, budget = len(recipe_of(config, row, 1).schedule.stages), 60 * config.minutes
    few = more = max(2, stages)
    seconds(few)  # the first one warms up
    first = seconds(few)
    step = 0.0
    while more < _MOST_TRIED and step * (more - few) < _TRIAL * budget:
        more *= 4
        step = max((seconds(more) - first) / (more - few), 1e-6)
    remove_tree(folder / _TRIALS)
    found = {"seconds_per_step": step, "steps": max(int(budget / step), stages, 1)}
    write_atomic(folder / PACE, json.dumps(found | {"threads": threads}, indent=1).encode())
    return [PACE]


def generator_stage(
    config: PaperTableConfig, row: TableRow, cache: StageCache, pace: Stage | None, folder: Path
) -> Sequence[str]:
    """The training of a row, which goes on where a kill left it."""
    steps = config.steps if pace is None else int(read_json(cache.file(pace, PACE))["steps"])
    assert steps is not None, "minutes have a pace"
    train(recipe_of(config, row, steps), folder / RUN, device=config.device)
    return [f"{RUN}/config.json"]


def pictures_stage(
    config: PaperTableConfig,
    pairs: NDArray[np.int64],
    weights: dict[str, Path],
    network: str | None,
    references: Path | None,
    folder: Path,
) -> Sequence[str]:
    """Metrics of a row, what a picture costs, and its pictures of the sheet."""
    runtime, people = setup(config.device, threads=config.threads), PackedPeople.open(config.data / PACKED)
    model = PoseTransfer.from_pretrained(network, runtime).at_size(people.size) if network else None
    training = np.flatnonzero(people.splits == "train")
    shown = sheet_pairs(pairs, people.pids)
    report = evaluate_pairs(
        {MODEL: model} if model else {},
        people,
        pairs,
        config.metrics,
        training=training,
        weights=weights,
        device=runtime.device,
        cache=references or folder / REFERENCES,
        beside=model is None,
    )
    report.write(folder)
    if model is None:
        donors = nearest_donors(people, shown[:, 1], training)
        pictures = np.where((donors >= 0)[:, None, None, None], people.images[donors], 128).astype(np.uint8)
    else:
        pictures = model(people.pair_batch(*shown.T)).permute(0, 2, 3, 1).numpy()
    write_atomic(folder / SHEET, encode_png(pictures.reshape(-1, *pictures.shape[2:])))
    cost = cost_of(model, people, pairs) if model else {}
    write_atomic(folder / COST, json.dumps(cost, indent=1).encode())
    return [REPORT_FILE, SHEET, COST]


def cost_of(model: PoseTransfer, people: PackedPeople, pairs: NDArray[np.int64]) -> dict[str, float]:
    """Parameters; 1e9 multiply-adds of convolutions and matrix products for a picture; pictures a second, the
    median of calls with 16 pairs.
    """
    one, many = (people.pair_batch(*pairs[:size].T) for size in (1, AT_ONCE))
    # a CPU's fused attention is none of the operations that are counted
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        model(one)
    times: list[float] = []
    while len(times) < _CALLS[0] or (sum(times) < _SECONDS and len(times) < _CALLS[1]):
        started = time.perf_counter()
        model(many)
        times.append(time.perf_counter() - started)
    return {
        "parameters": sum(parameter.numel() for parameter in model.generator.parameters()),
        "gmac": counted.get_total_flops() / 2e9,
        "pictures_per_second": len(many) / float(np.median(times[1:])),
    }
