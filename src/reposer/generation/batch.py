"""Generate many pictures into a folder, from the pairs of a packed data set or of a folder of images.

Resumable and deterministic by the rules of :mod:`reposer.jobs.shards`. While the model computes a
batch, one thread reads the next and others encode, hash and write the last, so that the model does not wait
for files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch import Tensor

from reposer.data.problems import problems_csv
from reposer.errors import UserError
from reposer.generation.outputs import JPEG_QUALITY, check_format, encode_marked, output_names
from reposer.generation.pair_sources import PairSource
from reposer.generation.pose_transfer import PoseTransfer
from reposer.generation.stitching import check_background
from reposer.jobs.shards import Job, OutputFile, WorkUnit, WriteReport, write_job
from reposer.storage.files import write_atomic

PROBLEMS = "problems.csv"  # beside job.json: what was left out, and why
# of a file, not of the weights, whose hash is "checkpoint"
_STORAGE = {"weights_dtype", "weights_sha256", "images_hash"}
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


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """How pictures are made and stored."""

    background: str = "generated"  # one of stitching.BACKGROUNDS
    file_format: str = "png"  # one of outputs.FORMATS
    batch_size: int = 32  # pairs in one forward pass; part of the job, since it may change low bits
    shard_items: int = 512  # pictures made durable at once, rounded down to whole batches
    encoders: int = 2  # threads; the bytes do not depend on them


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
        UserError: another size, no usable pair, a pair twice, or ``out`` holds something else.
        DiskError: the disk is full or faulty; a later call goes on.
    """
    options, out = options or GenerateOptions(), Path(out)
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
    with ThreadPoolExecutor(1) as reader:
        job = Job(
            settings=_settings(pose_transfer, pairs, options),
            environment=environment(pose_transfer),
            items=len(names),
            columns=COLUMNS,
            produce=partial(_produce, pose_transfer, pairs, options, names, reader),
            shard_items=max(1, options.shard_items // options.batch_size) * options.batch_size,
        )

        def after(report: WriteReport) -> None:
            if pairs.problems:
                write_atomic(out / PROBLEMS, problems_csv(pairs.problems))

        report = write_job(out, job, threads=options.encoders, on_progress=on_progress, after=after)
    if told := pose_transfer.told(options.background):
        report.notes.append(told)
    if pairs.problems:
        report.notes.append(f"{len(pairs.problems)} problems, see {PROBLEMS}; the first: {pairs.problems[0]}")
    return report


def _settings(pose_transfer: PoseTransfer, pairs: PairSource, options: GenerateOptions) -> dict[str, Any]:
    """Everything that the bytes of the job depend on, apart from versions and machine."""
    return {
        "generator": pose_transfer.config.model_dump(mode="json", exclude=_STORAGE),
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


def _produce(
    pose_transfer: PoseTransfer,
    pairs: PairSource,
    options: GenerateOptions,
    names: list[str],
    reader: ThreadPoolExecutor,
    items: range,
) -> Iterator[WorkUnit]:
    """The batches of a shard, always cut at the same places; the next one is read while the model works."""
    same = {"checkpoint": pose_transfer.weights_hash, "background": options.background, "synthetic": True}
    batches = [items[i : i + options.batch_size] for i in range(0, len(items), options.batch_size)]
    ahead = reader.submit(pairs.read, batches[0])
    for number, batch in enumerate(batches):
        people = ahead.result()
        if number + 1 < len(batches):
            ahead = reader.submit(pairs.read, batches[number + 1])
        pictures = pose_transfer(people, options.background)
        rows = [row | same for row in pairs.rows(batch)]
        files = [names[i] for i in batch]
        yield WorkUnit(len(batch), partial(encode_batch, pictures, files, rows, options.file_format))


def encode_batch(
    pictures: Tensor, names: list[str], rows: list[dict[str, Any]], file_format: str
) -> list[OutputFile]:
    """pictures (B, 3, H, W) uint8 -> their files."""
    pixels = pictures.permute(0, 2, 3, 1).contiguous().numpy()
    encoded = (encode_marked(picture, file_format) for picture in pixels)
    return [OutputFile(*file) for file in zip(names, encoded, rows, strict=True)]
