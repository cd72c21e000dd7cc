"""Enlarge a Re-ID training set: for each real image, factor - 1 pictures of its person in donors' poses.

The result is a plain folder (docs/how-to/augment.md):

    job.json                      settings: everything that the bytes depend on
    images/<source stem>_gNN.jpg  generated pictures, marked as such
    manifest/part-*.parquet       a row for each: whose, in whose pose, by which weights, scores, kept or not
    real/<name>, real.parquet     links to the real images, and their list
    summary.json                  counts

Written by the rules of :mod:`reposer.jobs.shards`: kill -9 at any moment, any number of processes, the
same bytes. Only people of the split "train" are sources or donors.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from reposer.data.layouts.market1501 import is_generated
from reposer.data.packed import PackedPeople
from reposer.data.preparing.prepare import MANIFEST, PACKED
from reposer.data.records import DECISIONS, kept_by_hand, read_decisions, read_manifest
from reposer.data.samplers import budget_rows
from reposer.data.sources import check_sources
from reposer.data.synthetic.people import RealSet
from reposer.errors import UserError, known
from reposer.generation.augmented_rows import (
    KIND,
    PLACEMENTS,
    RealImages,
    columns_of,
    score_columns,
    write_summary,
)
from reposer.generation.batch import (
    STORAGE,
    PairsRead,
    PictureJob,
    WriteReport,
    encode_batch,
    environment,
    predictor_settings,
    read_pairs,
    whole_batches,
    write_pictures,
)
from reposer.generation.camera_colors import CameraColors, camera_settings, check_camera
from reposer.generation.donors import DonorPlan, PictureNames, choose_donors
from reposer.generation.filters import FilterOptions, PictureFilter
from reposer.generation.forgetting import refuse_removed
from reposer.generation.pair_sources import PackedPairs
from reposer.generation.picture_scores import Parser
from reposer.generation.pictures import JPEG_QUALITY, check_format
from reposer.generation.pose_transfer import MapPredictor, PoseTransfer
from reposer.generation.stitching import check_background
from reposer.jobs.executors import help_ranks, in_processes, in_this_process, with_ranks
from reposer.jobs.shards import ENCODERS, Encode, Executor, Folder, Progress
from reposer.jobs.workers import Step, refuse_groups
from reposer.runtime import setup
from reposer.storage.paths import contained
from reposer.structures import PairBatch
from reposer.trained.networks import GeneratorConfig

# ---- The pictures of a donor plan as a job: options, settings, batches, filters, rows of the manifest.

SPLIT = "train"  # the only people that are sources or donors
_PLAIN = {"factor", "policy", "seed", "background", "batch_size", "real", "budget", "budget_seed"}


@dataclass(frozen=True, slots=True)
class AugmentOptions:
    """How a training set is enlarged."""

    factor: int = 2  # images afterwards per real one (the paper's alpha): 1 real + factor - 1 generated
    policy: str = "any"  # a key of donors.POLICIES
    seed: int = 0  # of the donors
    background: str = "generated"  # one of stitching.BACKGROUNDS
    batch_size: int = 32  # pairs in one forward pass; part of the job, since it may change low bits
    file_format: str = "jpg"  # one of pictures.FORMATS; other Re-ID programs look for *.jpg only
    sources: int = 1  # images of the person that a picture is made from, at most
    camera: str = "source"  # one of camera_colors.CAMERAS; "donor" belongs to the donor's background
    real: str = "link"  # one of augmented_rows.PLACEMENTS
    filters: FilterOptions | None = None  # which pictures are dropped; None: none
    budget: float = 1.0  # share of the real images that may be used, in (0, 1]
    budget_seed: int = 0
    shard_items: int = 512  # pictures made durable at once, rounded down to whole batches
    encoders: int = ENCODERS  # threads; the bytes do not depend on them


class AugmentedPictures:
    """A Maker of the pictures of a plan, which are the items of a job."""

    def __init__(
        self,
        pose_transfer: PoseTransfer,
        people: PackedPeople,
        options: AugmentOptions,
        plan: DonorPlan,
        picture_filter: PictureFilter | None,
    ) -> None:
        self._model, self._people, self._options = pose_transfer, people, options
        self._plan, self._filter = plan, picture_filter
        pairs = np.stack([plan.source, plan.donor], axis=1)
        # the sources of the plan are the images of the budget: no picture is made from others
        self._pairs = PackedPairs(people, pairs, options.sources, plan.source)
        if self._pairs.problems:
            raise UserError(f"{self._pairs.problems[0]}", "choose donors among images with a parsing map")
        self._colors: CameraColors | None = None
        self.notes: list[str] = []
        if options.camera == "donor":
            self._colors, self.notes = self._pairs.camera_colors()
        self._names = PictureNames(people.names, plan, options.file_format)
        self._settings = self._describe()
        self._scores = score_columns(self._settings)

    def job(self, out: Path) -> PictureJob:
        """To be done in a folder."""
        options = self._options
        return PictureJob(
            Folder(out, out, columns_of(self._settings), synthetic=True),
            self._settings,
            environment(self._model),
            items=len(self._names),
            shard_items=whole_batches(options.shard_items, options.batch_size),
            names=self._names,
        )

    def read(self, items: range) -> Iterator[PairsRead]:
        """See Maker."""
        return read_pairs(self._pairs, items, self._options.batch_size)

    def make(self, batch: PairsRead) -> Encode:
        """See Maker; the filters judge here, too."""
        people = self._model.completed(batch.pairs, self._options.background)
        pairs = self._pairs.rows(batch.items)
        colors = self._colors.of_rows(pairs) if self._colors else None
        pictures = self._model.paint(people, self._options.background, colors)
        rows = self._manifest_rows(batch.items, pairs, self._judge(pictures, people, batch.items))
        files = [self._names[i] for i in batch.items]
        return partial(encode_batch, pictures, files, rows, self._options.file_format)

    def _describe(self) -> dict[str, Any]:
        """Everything that the bytes of the job depend on, apart from versions and machine."""
        model, people, options, plan = self._model, self._people, self._options, self._plan
        return {
            "kind": KIND,
            "generator": model.config.model_dump(mode="json", exclude=STORAGE),
            "checkpoint": model.weights_hash,
            "precision": model.runtime.precision,
            "trained_on": model.config.identity_hash,
            "training_people": people.identity_hash(SPLIT),
            "prepared": people.header["content_hash"],
            "plan": plan.sha256(),
            "format": f"jpg {JPEG_QUALITY}" if options.file_format == "jpg" else options.file_format,
            "filters": None if self._filter is None else self._filter.describe(),
            **{key: getattr(options, key) for key in _PLAIN},
            **({"sources": options.sources} if options.sources > 1 else {}),
            **camera_settings(self._colors),
            **predictor_settings(model),
        }

    def _judge(self, pictures: Tensor, people: PairBatch, items: range) -> list[dict[str, Any]]:
        """The verdict and scores of each picture of a batch; a score that cannot be known is null."""
        if self._filter is None:
            return [{"kept": True, "dropped_because": None, **dict.fromkeys(self._scores)} for _ in items]
        here = slice(items.start, items.stop)
        scores = self._filter.score(pictures, people, self._plan.source[here])
        reasons = self._filter.decide(scores)
        known = {
            name: [float(v) if np.isfinite(v) else None for v in values] for name, values in scores.items()
        }
        return [
            {"kept": reason is None, "dropped_because": reason}
            | {name: known[name][i] if name in known else None for name in self._scores}
            for i, reason in enumerate(reasons)
        ]

    def _manifest_rows(
        self, items: range, pairs: list[dict[str, Any]], verdicts: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        options = self._options
        same = {
            "policy": options.policy,
            "background": options.background,
            "checkpoint": self._model.weights_hash,
            "trained_on": self._model.config.identity_hash,
            "seed": options.seed,
            "synthetic": True,
        }
        return [
            pair
            | {"pid": pair["source_pid"], "camid": pair[f"{options.camera}_camid"]}
            | {"copy": int(self._plan.copy[item])}
            | same
            | verdict
            for item, pair, verdict in zip(items, pairs, verdicts, strict=True)
        ]


def augment(
    pose_transfer: PoseTransfer,
    prepared: str | Path,
    out: str | Path,
    options: AugmentOptions,
    *,
    images: str | Path | None = None,
    processes: int = 1,
    reid_run: Path | None = None,
    parser: Parser | None = None,
    step: Step | None = None,
    on_progress: Progress = None,
) -> WriteReport:
    """Write the augmented set of a prepared folder's training people.

    Under torchrun every process calls this with the same arguments, and each writes whole shards. With a
    step of :mod:`reposer.jobs.workers`, any number of workers on any number of machines share the job.

    Args:
        pose_transfer: a generator that was trained on none of the people held out by the prepared folder.
        prepared: of ``reposer prepare``, at the generator's size.
        out: new, empty, or the folder of the same job, which then goes on where it stopped.
        options: what to make.
        images: the data set that ``prepared`` was made of, for ``options.real`` "link" and "copy":
            a folder that a file names is not opened.
        processes: that generate side by side, each with the threads of ``pose_transfer.runtime``.
        reid_run: a Re-ID training on the real training images, for a filter that needs one.
        parser: for a filter that needs one; with several processes it is pickled.
        step: which part of the job to do; None: all of it.
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
    refuse_groups(step, processes, runtime.world_size)
    people = PackedPeople.open(prepared / PACKED)
    pose_transfer = pose_transfer.at_size(people.size)
    notes = check_generator(pose_transfer, people)
    rows = budget_rows(people, options.budget, options.budget_seed, (SPLIT,))
    _refuse_generated(people, rows)
    rows = _without_dropped(people, prepared, None if images is None else Path(images), rows, notes)
    if pose_transfer.maps == "predicted":
        rows = _with_keypoints(people, rows, notes)
    plan = choose_donors(people, options.policy, options.factor, seed=options.seed, rows=rows)
    picture_filter = None
    if options.filters is not None:
        picture_filter = PictureFilter.fit(people, rows, options.filters, reid_run=reid_run, parser=parser)
    elif reid_run or parser:
        raise UserError("a Re-ID run or a parser is named, and no filter", "choose one, or leave it out")
    maker = AugmentedPictures(pose_transfer, people, options, plan, picture_filter)
    job = maker.job(out)
    root, real = None if images is None else Path(images), None
    if step is None or step.name in ("all", "plan"):
        real = RealImages.of(prepared, people, rows.tolist(), root, options.real)
    if runtime.rank:
        written = help_ranks(runtime, job.folder, job.planned(), maker, options.encoders)
        return WriteReport(written, written=written, folder=out)

    def before(report: WriteReport) -> None:
        refuse_removed(out)
        origin = pose_transfer.provenance(options.background)
        told = [*([origin] if origin else []), *notes, *plan.notes, *maker.notes]
        report.notes += [*told, *(real.place(out, options.real) if real else ())]

    def after(report: WriteReport) -> None:
        report.notes.append(_counted(write_summary(out)))

    executor = in_this_process(lambda: maker, options.encoders)
    if runtime.world_size > 1:
        executor = with_ranks(runtime, maker, options.encoders)
    elif processes > 1:
        executor = _in_processes(pose_transfer, prepared, options, plan, picture_filter, processes)
    return write_pictures(job, executor, step, on_progress=on_progress, before=before, after=after)


# ---- several processes


def _in_processes(
    pose_transfer: PoseTransfer,
    prepared: Path,
    options: AugmentOptions,
    plan: DonorPlan,
    picture_filter: PictureFilter | None,
    processes: int,
) -> Executor:
    runtime, predictor = pose_transfer.runtime, pose_transfer.predictor
    generator = copy.deepcopy(pose_transfer.generator).cpu()
    where = (runtime.device.type, runtime.precision, runtime.threads, runtime.seed)
    completion = (copy.deepcopy(predictor.network).cpu(), predictor.config) if predictor else None
    rest = (completion, pose_transfer.maps, prepared, options, plan, picture_filter)
    make = partial(_maker_in_process, generator, pose_transfer.config, where, *rest)
    return in_processes(make, processes, options.encoders)


def _maker_in_process(
    generator: nn.Module,
    config: GeneratorConfig,
    where: tuple[str, str, int, int],
    completion: tuple[nn.Module, GeneratorConfig] | None,
    maps: str,
    prepared: Path,
    options: AugmentOptions,
    plan: DonorPlan,
    picture_filter: PictureFilter | None,
) -> AugmentedPictures:
    """The same Maker in a new process."""
    runtime = setup(*where)
    predictor = MapPredictor(*completion, runtime) if completion else None
    pose_transfer = PoseTransfer(generator, config, runtime, predictor, maps)
    people = PackedPeople.open(prepared / PACKED)
    return AugmentedPictures(pose_transfer, people, options, plan, picture_filter)


# ---- refusals


def _check(options: AugmentOptions, processes: int) -> None:
    check_background(options.background)
    check_camera(options.camera, options.background)
    check_format(options.file_format)
    known("real", options.real, PLACEMENTS)
    check_sources(options.sources)
    for name, value in (("processes", processes), ("batch size", options.batch_size)):
        if value < 1:
            raise UserError(f"{name} {value}: at least 1 is wanted")


def check_generator(pose_transfer: PoseTransfer, people: PackedPeople) -> list[str]:
    """Notes about the people a generator and its predictor were trained on.

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
        if not seen and (name != "generator" or pose_transfer.learned):
            notes.append(f"who the {name} was trained on is not recorded")
        elif seen and seen != people.identity_hash(SPLIT):
            notes.append(f"the {name} was trained on other people than this set's training people")
        elif seen and config.images_hash not in ("", people.images_hash(SPLIT)):
            notes.append(
                f"the {name} was trained on other images of people of the same numbers: whether held-out"
                " people were among them is not known"
            )
    return notes


def _with_keypoints(people: PackedPeople, rows: NDArray[np.int64], notes: list[str]) -> NDArray[np.int64]:
    """The rows that maps can be predicted from and for; the others are counted in ``notes``."""
    known = ~np.isnan(people.keypoints[rows]).all((1, 2))
    if not known.any():
        raise UserError(f"{people.folder}: no image has keypoints to predict label maps from", "prepare them")
    if not known.all():
        notes.append(f"{int((~known).sum()):,} images have no keypoints and are left out")
    return rows[known]


def _without_dropped(
    people: PackedPeople,
    prepared: Path,
    images: Path | None,
    rows: NDArray[np.int64],
    notes: list[str],
) -> NDArray[np.int64]:
    """The rows whose images nobody dropped by hand in the data set; the others are counted in ``notes``."""
    if images is None or not read_decisions(images):
        return rows
    paths = {record.name: record.path for record in read_manifest(contained(prepared, MANIFEST))}
    chosen = rows.tolist()
    names, digests = [paths[people.names[row]] for row in chosen], [people.sha256[row] for row in chosen]
    kept = kept_by_hand(images, names, digests, np.ones(len(chosen), np.bool_))
    if not kept.any():
        raise UserError(f"{images}: every training image was dropped by hand", f"look at {DECISIONS}")
    if not kept.all():
        notes.append(f"{int((~kept).sum()):,} images were dropped by hand ({DECISIONS}) and are left out")
    return rows[kept]


def _refuse_generated(people: PackedPeople, rows: NDArray[np.int64]) -> None:
    generated = [people.names[row] for row in rows.tolist() if is_generated(people.names[row])]
    if generated:
        raise UserError(
            f"{people.folder}: {len(generated)} images are generated themselves, first {generated[0]}",
            "augment the real data set",
        )


def _counted(summary: dict[str, Any]) -> str:
    fell = "; ".join(f"{count:,} {reason}" for reason, count in summary["dropped"].items())
    return (
        f"{summary['real']:,} real and {summary['generated']:,} generated images of {summary['people']:,}"
        f" people; {summary['kept']:,} generated ones are kept" + (f", dropped: {fell}" if fell else "")
    )
