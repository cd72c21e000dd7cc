"""Generate many pictures into a folder, from the pairs of a packed data set or of a folder of images.

Resumable and deterministic by the rules of :mod:`reposer.jobs.shards`. While the model computes a
batch, one thread reads the next and others encode, hash and write the last, so that the model does not wait
for files. The result is a plain folder: job.json, manifest/ with a row for each picture, images/<file>.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch import Tensor

from reposer.data.records import problems_csv
from reposer.errors import UserError
from reposer.generation.augmented_rows import FURTHER_COLUMNS
from reposer.generation.camera_colors import CameraColors, camera_settings, check_camera
from reposer.generation.pair_sources import PairSource
from reposer.generation.pictures import JPEG_QUALITY, check_format, encode_marked, output_names
from reposer.generation.pose_transfer import PoseTransfer
from reposer.generation.stitching import check_background
from reposer.jobs.executors import in_this_process
from reposer.jobs.shards import (
    ENCODERS,
    Encode,
    Executor,
    Folder,
    Job,
    Progress,
    Put,
    Rows,
    Shard,
    Work,
)
from reposer.jobs.workers import Step, take_step
from reposer.storage.files import write_atomic
from reposer.storage.lock import LOCK
from reposer.storage.manifest import (
    IMAGES,
    JOB,
    MANIFEST,
    SCHEMA_VERSION,
    RowSchema,
    file_faults,
    read_part,
    seal_job,
)
from reposer.storage.paths import made_folder
from reposer.structures import PairBatch

PROBLEMS = "problems.csv"  # beside job.json: what was left out, and why
# of a generator's file, not of its weights, whose hash is "checkpoint"
STORAGE = {"weights_dtype", "weights_sha256", "images_hash"}
COLUMNS = (
    ("source", pa.string()),
    ("source_sha256", pa.string()),  # of the original image file
    ("source_pid", pa.int64()),  # who is on the picture; -1 where unknown
    ("source_camid", pa.int64()),
    ("donor", pa.string()),
    ("donor_sha256", pa.string()),
    ("donor_pid", pa.int64()),
    ("donor_camid", pa.int64()),
    ("checkpoint", pa.string()),  # PoseTransfer.weights_hash
    ("background", pa.string()),
    ("synthetic", pa.bool_()),  # always true: a row says it even without its file
)
# after these, where pictures are in the donor's colors: its camera, which they are to count as seen by
CAMERA_COLUMNS = (("camid", pa.int64()),)


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """How pictures are made and stored."""

    background: str = "generated"  # one of stitching.BACKGROUNDS
    file_format: str = "png"  # one of pictures.FORMATS
    batch_size: int = 32  # pairs in one forward pass; part of the job, since it may change low bits
    shard_items: int = 512  # pictures made durable at once, rounded down to whole batches
    encoders: int = ENCODERS  # threads; the bytes do not depend on them
    camera: str = "source"  # one of camera_colors.CAMERAS; "donor" belongs to the donor's background


def generate(
    pose_transfer: PoseTransfer,
    pairs: PairSource,
    out: str | Path,
    options: GenerateOptions | None = None,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> WriteReport:
    """Re-pose the first person of each pair by the second: ``images/<source stem>___<donor stem>.<format>``.

    Args:
        pairs: :class:`~reposer.generation.pair_sources.PackedPairs` or ``FolderPairs``, at the model's size.
        out: new, empty, or the folder of the same job, which then goes on where it stopped.
        on_progress: called with (pictures done, pictures in all).

    Returns:
        A summary to print. What could not be used is listed in ``out``/problems.csv and counted there.

    Raises:
        UserError: another size, no usable pair, a pair twice, cameras whose colors are not known, or ``out``
            holds something else.
        DiskError: the disk is full or faulty; a later call goes on.
    """
    options, out = options or GenerateOptions(), Path(out)
    check_camera(options.camera, options.background)
    pose_transfer = pose_transfer.at_size(pairs.size)
    names = output_names(pairs.names, check_format(options.file_format))
    if not names:
        reason = f": {pairs.problems[0]}" if pairs.problems else ""
        raise UserError(
            f"{out}: there is no pair to generate{reason}", "check the pairs and their annotations"
        )
    if pairs.size != pose_transfer.size:
        wanted = "x".join(map(str, pose_transfer.size))
        raise UserError(
            f"the people are of size {pairs.size}, the model {pose_transfer.size}", f"prepare at {wanted}"
        )
    colors, told = pairs.camera_colors() if options.camera == "donor" else (None, [])
    columns = (*COLUMNS, *(CAMERA_COLUMNS if colors else ()), *(FURTHER_COLUMNS if pairs.several else ()))
    job = PictureJob(
        Folder(out, out, columns, synthetic=True),
        _settings(pose_transfer, pairs, options) | camera_settings(colors),
        environment(pose_transfer),
        items=len(names),
        shard_items=whole_batches(options.shard_items, options.batch_size),
        names=names,
    )

    def after(report: WriteReport) -> None:
        if pairs.problems:
            write_atomic(out / PROBLEMS, problems_csv(pairs.problems))

    maker = _PairMaker(pose_transfer, pairs, options, names, colors)
    executor = in_this_process(lambda: maker, options.encoders)
    report = write_pictures(job, executor, on_progress=on_progress, after=after)
    if origin := pose_transfer.provenance(options.background):
        report.notes.append(origin)
    report.notes += told
    if pairs.problems:
        report.notes.append(f"{len(pairs.problems)} problems, see {PROBLEMS}; the first: {pairs.problems[0]}")
    return report


def _settings(pose_transfer: PoseTransfer, pairs: PairSource, options: GenerateOptions) -> dict[str, Any]:
    """Everything that the bytes of the job depend on, apart from versions and machine."""
    return {
        "generator": pose_transfer.config.model_dump(mode="json", exclude=STORAGE),
        "checkpoint": pose_transfer.weights_hash,
        "precision": pose_transfer.runtime.precision,
        "background": check_background(options.background),
        "format": f"jpg {JPEG_QUALITY}" if options.file_format == "jpg" else options.file_format,
        "batch_size": options.batch_size,
        "inputs": pairs.fingerprint(),
        **predictor_settings(pose_transfer),
    }


def predictor_settings(pose_transfer: PoseTransfer) -> dict[str, Any]:
    """What the pictures depend on where target maps can be predicted; empty without a predictor."""
    if pose_transfer.predictor is None:
        return {}
    return {"maps": pose_transfer.maps, "predictor": pose_transfer.predictor.weights_hash}


def environment(pose_transfer: PoseTransfer) -> dict[str, Any]:
    """What the low bits of a picture depend on besides the job."""
    found = pose_transfer.runtime.describe()
    return {key: found[key] for key in ("torch", "device", "gpu", "threads")}


@dataclass(frozen=True, slots=True)
class PairsRead:
    """Some items of a job, and their pairs."""

    items: range
    pairs: PairBatch

    def __len__(self) -> int:
        return len(self.items)


def read_pairs(pairs: PairSource, items: range, batch_size: int) -> Iterator[PairsRead]:
    """The batches of a shard, always cut at the same places."""
    for start in range(0, len(items), batch_size):
        batch = items[start : start + batch_size]
        yield PairsRead(batch, pairs.read(batch))


@dataclass(frozen=True, slots=True)
class _PairMaker:
    """A Maker of the pictures of pairs."""

    pose_transfer: PoseTransfer
    pairs: PairSource
    options: GenerateOptions
    names: list[str]  # of the files
    colors: CameraColors | None  # of the donors' cameras; None: as generated

    def read(self, items: range) -> Iterator[PairsRead]:
        return read_pairs(self.pairs, items, self.options.batch_size)

    def make(self, batch: PairsRead) -> Encode:
        background, rows = self.options.background, self.pairs.rows(batch.items)
        people = self.pose_transfer.completed(batch.pairs, background)
        colors = self.colors.of_rows(rows) if self.colors else None
        pictures = self.pose_transfer.paint(people, background, colors)
        checkpoint = self.pose_transfer.weights_hash
        same = {"checkpoint": checkpoint, "background": background, "synthetic": True}
        rows = [row | same | ({"camid": row["donor_camid"]} if self.colors else {}) for row in rows]
        files = [self.names[i] for i in batch.items]
        return partial(encode_batch, pictures, files, rows, self.options.file_format)


def encode_batch(pictures: Tensor, names: list[str], rows: Rows, file_format: str, put: Put) -> Rows:
    """pictures (B, 3, H, W) uint8 -> their files and whole rows; ``rows``: the columns after FILE_COLUMNS."""
    pixels = pictures.permute(0, 2, 3, 1).contiguous().numpy()
    return [
        {"file": name, "sha256": put(f"{IMAGES}/{name}", encode_marked(picture, file_format)), **row}
        for name, picture, row in zip(names, pixels, rows, strict=True)
    ]


# ---- the format of a job that makes pictures


@dataclass(frozen=True)
class PictureJob(Job):
    """New pictures in images/, each made of one item; its rows are about the pictures."""

    unit = "pictures"
    drift = "pictures may differ by 1/255"
    another = ("holds another job", "choose another folder, or the settings the job was started with")

    items: int
    shard_items: int
    names: Sequence[str] = ()  # of the files, in the items' order; (): not known beforehand

    def document(self) -> dict[str, Any]:
        """See Job."""
        sizes = {"items": self.items, "shard_items": self.shard_items}
        return {"schema_version": SCHEMA_VERSION, **sizes, "settings": dict(self.settings)}

    def refuse_foreign(self) -> None:
        """See Job: what a killed start left may be there."""
        names = (entry.name for entry in self.folder.root.iterdir())
        foreign = sorted(name for name in names if name != LOCK and not name.startswith(f".{JOB}.tmp-"))
        if foreign:
            raise UserError(f"{self.folder.root}: is not empty (holds {foreign[0]})", "choose a new folder")

    def planned(self) -> list[Shard]:
        """See Job: fixed ranges of items."""
        starts = range(0, self.items, self.shard_items)
        ends = (min(start + self.shard_items, self.items) for start in starts)
        return [Shard(n, range(*ends)) for n, ends in enumerate(zip(starts, ends, strict=True))]

    def shards(self, notes: list[str]) -> list[Shard]:
        """See Job."""
        made_folder(self.folder.root, IMAGES)
        return self.planned()

    def fault(self, part: Path, shard: Shard) -> str:
        """See Job."""
        columns = self.folder.columns
        names = [name for name, _ in columns]
        try:
            rows = read_part(part, RowSchema(columns, gaps=names, later=names))
        except UserError as error:
            return str(error)
        if rows.num_rows != len(shard.items):
            return f"{part.name} has {rows.num_rows} rows, not {len(shard.items)}"
        if self.names and rows["file"].to_pylist() != [self.names[item] for item in shard.items]:
            return f"{part.name} is of another plan: it names other pictures"
        weights = self.settings.get("checkpoint")
        if weights and "checkpoint" in rows.column_names and set(rows["checkpoint"].to_pylist()) != {weights}:
            return f"{part.name} is of another plan: other weights made it"
        faults = file_faults(self.folder.root, rows)
        return next((f"{IMAGES}/{name} {reason}" for name, reason in faults), "")

    def again(self, shard: Shard, fault: str) -> str:
        """See Job."""
        return f"shard {shard.number} is made again: {fault}"


@dataclass(slots=True)
class WriteReport(Work):
    """What a call of ``write_pictures`` did."""

    folder: Path = Path()

    def __str__(self) -> str:
        if self.said:
            return "\n".join([f"{self.folder}: {self.said}", *self.notes])
        there = f", {self.kept:,} were there already" if self.kept else ""
        lines = [f"{self.folder}: {self.written:,} pictures written{self.speed()}{there}", *self.notes]
        lines.append(f"pictures in {IMAGES}/, a row for each in {MANIFEST}/*.parquet, settings in {JOB}")
        return "\n".join(lines)


def write_pictures(
    job: PictureJob,
    executor: Executor,
    step: Step | None = None,
    *,
    on_progress: Progress = None,
    before: Callable[[WriteReport], None] = lambda report: None,
    after: Callable[[WriteReport], None] = lambda report: None,
) -> WriteReport:
    """Do the job, or a step of it, and seal its folder; see :func:`~reposer.jobs.workers.take_step`."""
    report = WriteReport(job.items, folder=job.folder.root)

    def end() -> None:
        after(report)
        seal_job(job.folder.root)

    hooks = {"before": lambda: before(report), "after": end}
    take_step(step or Step(), job, executor, report, on_progress=on_progress, **hooks)
    return report


def whole_batches(shard_items: int, batch_size: int) -> int:
    """Items of a shard, rounded down to whole batches."""
    return max(1, shard_items // batch_size) * batch_size
