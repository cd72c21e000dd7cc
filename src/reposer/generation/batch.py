"""Generate many pictures into a folder, from the pairs of a packed data set or of a folder of images.

Resumable and deterministic by the rules of :mod:`reposer.jobs.shards`. While the model computes a
batch, one thread reads the next and others encode, hash and write the last, so that the model does not wait
for files. The result is a plain folder: job.json, manifest/ with a row for each picture, images/<file>.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from reposer.data.problems import problems_csv
from reposer.errors import UserError
from reposer.generation.pair_sources import PairSource
from reposer.generation.pose_transfer import PoseTransfer
from reposer.generation.stitching import check_background
from reposer.images import encode_jpeg, encode_png
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
    run_job,
)
from reposer.storage.files import write_atomic
from reposer.storage.manifest import IMAGES, JOB, MANIFEST, SCHEMA_VERSION, file_faults, read_part, seal_job
from reposer.storage.paths import made_folder, printable
from reposer.structures import PairBatch

# ---- Generated pictures as files: portable names, encoded bytes, and the mark that says a machine made them.
#
# The mark is IPTC's digital source type ``trainedAlgorithmicMedia`` in an XMP packet: the machine-readable
# marking that needs no signing key (IPTC Photo Metadata Standard 2023.1; EU AI Act, Art. 50(2)). It is put
# into the encoded bytes, so it does not depend on the encoder, and nothing of the input file's metadata can
# come along.

FORMATS = ("png", "jpg")
JPEG_QUALITY = 95
MAX_NAME_BYTES = 100  # so that a path still fits everywhere (tar's name field, Windows' 260 characters)
SEPARATOR = "___"  # the field's habit for pairs (PATN, SPGNet)
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"

_PACKET = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
    f' Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPE}"'
    ' xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:CreatorTool="reposer"/>'
    '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
).encode()
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_PNG_START, _PNG_HEADER_END = b"\x89PNG\r\n\x1a\n", 33  # signature 8 + IHDR 25
_JPEG_START, _XMP_NAMESPACE = b"\xff\xd8", b"http://ns.adobe.com/xap/1.0/\0"


def check_format(file_format: str) -> str:
    """``file_format`` itself if pictures can be written in it.

    Raises:
        UserError: it is not one of FORMATS.
    """
    if file_format not in FORMATS:
        raise UserError(f"format {file_format}: unknown", f"choose from {', '.join(FORMATS)}")
    return file_format


def encode_marked(pixels: NDArray[np.uint8], file_format: str) -> bytes:
    """(H, W, 3) uint8 RGB -> bytes of a PNG, or of a JPEG of quality 95 without chroma subsampling, with the
    mark.
    """
    if check_format(file_format) == "png":
        return mark(encode_png(pixels, level=1))
    return mark(encode_jpeg(pixels, JPEG_QUALITY))


def mark(data: bytes) -> bytes:
    """The PNG or JPEG with the XMP packet as the first thing after its header."""
    if data.startswith(_PNG_START):
        body = b"iTXt" + b"XML:com.adobe.xmp\0\0\0\0\0" + _PACKET  # uncompressed, no language, no translation
        chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        return data[:_PNG_HEADER_END] + chunk + data[_PNG_HEADER_END:]
    if data.startswith(_JPEG_START):
        segment = _XMP_NAMESPACE + _PACKET
        header = 2
        if data[2:4] == b"\xff\xe0":  # JFIF's segment must stay the first
            header += 2 + struct.unpack(">H", data[4:6])[0]
        return data[:header] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[header:]
    raise ValueError("neither PNG nor JPEG")


MARKED_BYTES = 4096  # at the start of a file; the mark lies within


def is_marked(data: bytes) -> bool:
    """Whether a PNG or JPEG carries our packet at the place where :func:`mark` puts it."""
    return _PACKET in data[: _PNG_HEADER_END + len(_PACKET) + 256]


def write_picture(path: str | Path, pixels: NDArray[np.uint8]) -> None:
    """Write one generated picture, marked; .png, .jpg or .jpeg.

    Args:
        pixels: (H, W, 3) uint8 RGB.

    Raises:
        UserError: another extension, or the disk refuses.
    """
    path = Path(path)
    suffix = path.suffix.lower().removeprefix(".").replace("jpeg", "jpg")
    if suffix not in FORMATS:
        raise UserError(f"{path}: pictures are written as .png or .jpg", "give the file such a name")
    made_folder(path.parent)
    if os.path.lexists(path) and not (path.is_file() and is_marked(path.read_bytes()[:MARKED_BYTES])):
        raise UserError(
            f"{printable(path)}: is there already, and is no generated picture", "choose another name"
        )
    write_atomic(path, encode_marked(pixels, suffix))


def output_names(pairs: Sequence[tuple[str, str]], file_format: str) -> list[str]:
    """File names ``<source stem>___<donor stem>.<format>`` for pairs of image names, all different.

    A name with other characters than A-Z a-z 0-9 . _ - has them replaced by _, a long one is cut; then, and
    where two names would be one on a disk that ignores case, a hash of the pair is added. A name depends on
    nothing but the names of the job.

    Raises:
        UserError: a pair occurs twice.
    """
    twice = [pair for pair, times in Counter(pairs).items() if times > 1]
    if twice:
        raise UserError(
            f"{len(twice)} pairs occur more than once, first {twice[0][0]} -> {twice[0][1]}",
            "list each pair once",
        )
    plain = [SEPARATOR.join(PurePosixPath(name).stem for name in pair) for pair in pairs]
    times = Counter(name.lower() for name in plain)
    names = []
    for pair, name in zip(pairs, plain, strict=True):
        safe = _UNSAFE.sub("_", name).lstrip(".-")
        fits = safe == name and len(safe) + 1 + len(file_format) <= MAX_NAME_BYTES
        if not fits or times[name.lower()] > 1:
            tag = hashlib.sha256("\0".join(pair).encode("utf-8", "surrogateescape")).hexdigest()[:12]
            safe = f"{safe[: MAX_NAME_BYTES - len(tag) - 2 - len(file_format)]}-{tag}"
        names.append(f"{safe}.{file_format}")
    return names


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


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """How pictures are made and stored."""

    background: str = "generated"  # one of stitching.BACKGROUNDS
    file_format: str = "png"  # one of outputs.FORMATS
    batch_size: int = 32  # pairs in one forward pass; part of the job, since it may change low bits
    shard_items: int = 512  # pictures made durable at once, rounded down to whole batches
    encoders: int = ENCODERS  # threads; the bytes do not depend on them


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
    job = PictureJob(
        Folder(out, out, COLUMNS, synthetic=True),
        _settings(pose_transfer, pairs, options),
        environment(pose_transfer),
        items=len(names),
        shard_items=whole_batches(options.shard_items, options.batch_size),
    )

    def after(report: WriteReport) -> None:
        if pairs.problems:
            write_atomic(out / PROBLEMS, problems_csv(pairs.problems))

    maker = _PairMaker(pose_transfer, pairs, options, names)
    executor = in_this_process(lambda: maker, options.encoders)
    report = write_pictures(job, executor, on_progress=on_progress, after=after)
    if told := pose_transfer.told(options.background):
        report.notes.append(told)
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

    def read(self, items: range) -> Iterator[PairsRead]:
        return read_pairs(self.pairs, items, self.options.batch_size)

    def make(self, batch: PairsRead) -> Encode:
        background = self.options.background
        pictures = self.pose_transfer(batch.pairs, background)
        checkpoint = self.pose_transfer.weights_hash
        same = {"checkpoint": checkpoint, "background": background, "synthetic": True}
        rows = [row | same for row in self.pairs.rows(batch.items)]
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

    def document(self) -> dict[str, Any]:
        """See Job."""
        sizes = {"items": self.items, "shard_items": self.shard_items}
        return {"schema_version": SCHEMA_VERSION, **sizes, "settings": dict(self.settings)}

    def refuse_foreign(self) -> None:
        """See Job: what a killed start left may be there."""
        names = (entry.name for entry in self.folder.root.iterdir())
        foreign = sorted(name for name in names if not name.startswith(f".{JOB}.tmp-"))
        if foreign:
            raise UserError(f"{self.folder.root}: is not empty (holds {foreign[0]})", "choose a new folder")

    def ranges(self) -> list[Shard]:
        """The fixed ranges of items."""
        starts = range(0, self.items, self.shard_items)
        ends = (min(start + self.shard_items, self.items) for start in starts)
        return [Shard(n, range(*ends)) for n, ends in enumerate(zip(starts, ends, strict=True))]

    def shards(self, notes: list[str]) -> list[Shard]:
        """See Job."""
        made_folder(self.folder.root, IMAGES)
        return self.ranges()

    def fault(self, part: Path, shard: Shard) -> str:
        """See Job."""
        try:
            rows = read_part(part)
        except UserError as error:
            return str(error)
        if rows.num_rows != len(shard.items):
            return f"{part.name} has {rows.num_rows} rows, not {len(shard.items)}"
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
        there = f", {self.kept:,} were there already" if self.kept else ""
        lines = [f"{self.folder}: {self.written:,} pictures written{self.speed()}{there}", *self.notes]
        lines.append(f"pictures in {IMAGES}/, a row for each in {MANIFEST}/*.parquet, settings in {JOB}")
        return "\n".join(lines)


def write_pictures(
    job: PictureJob,
    executor: Executor,
    *,
    on_progress: Progress = None,
    before: Callable[[WriteReport], None] = lambda report: None,
    after: Callable[[WriteReport], None] = lambda report: None,
) -> WriteReport:
    """Do the job, or what is left of it, and seal its folder; see :func:`~reposer.jobs.shards.run_job`."""
    report = WriteReport(job.items, folder=job.folder.root)

    def end() -> None:
        after(report)
        seal_job(job.folder.root)

    run_job(job, executor, report, on_progress=on_progress, before=lambda: before(report), after=end)
    return report


def whole_batches(shard_items: int, batch_size: int) -> int:
    """Items of a shard, rounded down to whole batches."""
    return max(1, shard_items // batch_size) * batch_size
