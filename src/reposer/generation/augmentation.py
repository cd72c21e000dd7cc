"""Enlarge a Re-ID training set: for each real image, factor - 1 pictures of its person in donors' poses.

The result is a plain folder (docs/data.md, "Augmented sets"):

    job.json                      settings: everything that the bytes depend on
    images/<source stem>_gNN.jpg  generated pictures, marked as such
    manifest/part-*.parquet       a row for each: whose, in whose pose, by which weights, scores, kept or not
    real/<name>, real.parquet     links to the real images, and their list
    summary.json                  counts

Written by the rules of :mod:`reposer.generation.shards`: kill -9 at any moment, any number of processes, the
same bytes. Only people of the split "train" are sources or donors.
"""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from reposer.data.budgets import budget_rows
from reposer.data.generated.checks import RealSet
from reposer.data.generated.names import is_generated
from reposer.data.packed import PackedPeople
from reposer.data.preparing.prepare import PACKED
from reposer.errors import UserError
from reposer.generation.augmented_job import SPLIT, AugmentedPictures
from reposer.generation.augmented_job import AugmentOptions as AugmentOptions
from reposer.generation.augmented_rows import write_summary
from reposer.generation.donors import DonorPlan, choose_donors
from reposer.generation.export import GeneratorConfig
from reposer.generation.filters import Parser, PictureFilter
from reposer.generation.forgetting import refuse_removed
from reposer.generation.map_prediction import MapPredictor
from reposer.generation.outputs import check_format
from reposer.generation.pose_transfer import PoseTransfer
from reposer.generation.processes import help_ranks, write_in_processes, write_with_ranks
from reposer.generation.real_images import PLACEMENTS, RealImages
from reposer.generation.shards import Job, Progress, ShardWriter, WriteReport, write_job
from reposer.generation.stitching import check_background
from reposer.runtime import setup


def augment(
    pose_transfer: PoseTransfer,
    prepared: str | Path,
    out: str | Path,
    options: AugmentOptions,
    *,
    images: str | Path | None = None,
    processes: int = 1,
    parser: Parser | None = None,
    on_progress: Progress = None,
) -> WriteReport:
    """Write the augmented set of a prepared folder's training people.

    Under torchrun every process calls this with the same arguments, and each writes whole shards.

    Args:
        pose_transfer: a generator trained on nobody whom the prepared folder holds out.
        prepared: of ``reposer prepare``, at the generator's size.
        out: new, empty, or the folder of the same job, which then goes on where it stopped.
        options: what to make.
        images: the data set that ``prepared`` was made of, for ``options.real`` "link" and "copy":
            a folder that a file names is not opened.
        processes: that generate side by side, each with the threads of ``pose_transfer.runtime``.
        parser: for the filter of poses; with several processes it is pickled.
        on_progress: called with (pictures done, pictures in all).

    Returns:
        A summary to print.

    Raises:
        UserError: an option out of range, another size, a generator that was trained on held-out people, no
            donor, a real image that is gone or changed, or ``out`` holds something else.
        DiskError: the disk is full or faulty; a later call goes on.
    """
    prepared, out, runtime = Path(prepared), Path(out), pose_transfer.runtime
    _check(options, processes)
    people = PackedPeople.open(prepared / PACKED)
    notes = check_generator(pose_transfer, people)
    rows = budget_rows(people, options.budget, options.budget_seed, (SPLIT,))
    _refuse_generated(people, rows)
    if pose_transfer.maps == "predicted":
        rows = _with_key_points(people, rows, notes)
    plan = choose_donors(people, options.policy, options.factor, seed=options.seed, rows=rows)
    picture_filter = None
    if options.filters is not None:
        picture_filter = PictureFilter.fit(people, rows, options.filters, parser=parser)
    job = AugmentedPictures(pose_transfer, people, options, plan, picture_filter).job()
    root = None if images is None else Path(images)
    real = RealImages.of(prepared, people, rows.tolist(), root, options.real)
    if runtime.rank:
        return help_ranks(out, job, runtime, options.encoders)

    def before(report: WriteReport) -> None:
        refuse_removed(out)
        told = pose_transfer.told(options.background)
        report.notes += [*([told] if told else []), *notes, *plan.notes, *real.place(out, options.real)]

    def after(report: WriteReport) -> None:
        report.notes.append(_told(write_summary(out)))

    return write_job(
        out,
        job,
        threads=options.encoders,
        on_progress=on_progress,
        writer=_writer(pose_transfer, prepared, options, plan, picture_filter, processes),
        before=before,
        after=after,
    )


# ---- several processes


def _writer(
    pose_transfer: PoseTransfer,
    prepared: Path,
    options: AugmentOptions,
    plan: DonorPlan,
    picture_filter: PictureFilter | None,
    processes: int,
) -> ShardWriter | None:
    """Who makes the shards; None: this process."""
    runtime = pose_transfer.runtime
    if runtime.world_size > 1:
        return partial(write_with_ranks, runtime)
    if processes == 1:
        return None
    generator = copy.deepcopy(pose_transfer.generator).cpu()
    where = (runtime.device.type, runtime.precision, runtime.threads, runtime.seed)
    predictor = pose_transfer.predictor
    completion = (copy.deepcopy(predictor.network).cpu(), predictor.config) if predictor else None
    rest = (completion, pose_transfer.maps, prepared, options, plan, picture_filter)
    make = partial(_job_in_process, generator, pose_transfer.config, where, *rest)
    return partial(write_in_processes, make, processes)


def _job_in_process(
    generator: nn.Module,
    config: GeneratorConfig,
    where: tuple[str, str, int, int],
    completion: tuple[nn.Module, GeneratorConfig] | None,
    maps: str,
    prepared: Path,
    options: AugmentOptions,
    plan: DonorPlan,
    picture_filter: PictureFilter | None,
) -> Job:
    """The same job in a new process."""
    runtime = setup(*where)
    predictor = MapPredictor(*completion, runtime) if completion else None
    pose_transfer = PoseTransfer(generator, config, runtime, predictor, maps)
    people = PackedPeople.open(prepared / PACKED)
    return AugmentedPictures(pose_transfer, people, options, plan, picture_filter).job()


# ---- refusals


def _check(options: AugmentOptions, processes: int) -> None:
    check_background(options.background)
    check_format(options.file_format)
    if options.real not in PLACEMENTS:
        raise UserError(f"real {options.real}: unknown", f"choose from {', '.join(PLACEMENTS)}")
    for name, value in (("processes", processes), ("batch size", options.batch_size)):
        if value < 1:
            raise UserError(f"{name} {value}: at least 1 is wanted")


def check_generator(pose_transfer: PoseTransfer, people: PackedPeople) -> list[str]:
    """Notes about whom a generator and its predictor were trained on.

    Raises:
        UserError: the generator is of another size, or one of them has seen people that ``people`` holds out.
    """
    if people.size != pose_transfer.size:
        wanted = "x".join(map(str, pose_transfer.size))
        raise UserError(
            f"the people are of size {people.size}, the model {pose_transfer.size}", f"prepare at {wanted}"
        )
    notes, leaks = [], RealSet(people, (SPLIT,)).trainings_with_test_people()
    trained = {"generator": pose_transfer.config}
    if pose_transfer.predictor is not None:
        trained["predictor"] = pose_transfer.predictor.config
    for name, config in trained.items():
        seen = config.identity_hash
        if seen in leaks:
            raise UserError(
                f"the {name} was trained on people that this data set holds out ({leaks[seen]})",
                "train it on this prepared folder, or use one trained on another data set",
            )
        if not seen:
            notes.append(f"whom the {name} was trained on is not recorded")
        elif seen != people.identity_hash(SPLIT):
            notes.append(f"the {name} was trained on other people than this set's training people")
        elif config.images_hash not in ("", people.images_hash(SPLIT)):
            notes.append(
                f"the {name} was trained on other images of people of the same numbers: whether held-out"
                " people were among them is not known"
            )
    return notes


def _with_key_points(people: PackedPeople, rows: NDArray[np.int64], notes: list[str]) -> NDArray[np.int64]:
    """The rows that maps can be predicted from and for; the others are counted in ``notes``."""
    known = ~np.isnan(people.keypoints[rows]).all((1, 2))
    if not known.any():
        raise UserError(f"{people.folder}: no image has key-points to predict maps from", "prepare them")
    if not known.all():
        notes.append(f"{int((~known).sum()):,} images have no key-points and are left out")
    return rows[known]


def _refuse_generated(people: PackedPeople, rows: NDArray[np.int64]) -> None:
    generated = [people.names[row] for row in rows.tolist() if is_generated(people.names[row])]
    if generated:
        raise UserError(
            f"{people.folder}: {len(generated)} images are generated themselves, first {generated[0]}",
            "augment the real data set",
        )


def _told(summary: dict[str, Any]) -> str:
    fell = "; ".join(f"{count:,} {reason}" for reason, count in summary["dropped"].items())
    return (
        f"{summary['real']:,} real and {summary['generated']:,} generated images of {summary['people']:,}"
        f" people; {summary['kept']:,} generated ones are kept" + (f", dropped: {fell}" if fell else "")
    )
