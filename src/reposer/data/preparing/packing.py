"""Write a packed folder: decode, resize and store every image and annotation once, streaming, all or nothing.

The folder is filled under a temporary name beside its place, synchronized and renamed; what a killed run left
is removed by the next one, which starts again. Rows are appended to the files, so memory does not grow with
the data set.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from reposer.data.keypoints import Pose, scale_keypoints
from reposer.data.label_files import PLAIN, MapRules
from reposer.data.packed import ARRAYS, HEADER, ROWS, SCHEMA_VERSION
from reposer.data.parsing import read_as_lip
from reposer.data.records import AnnotationError, AnnotationProblem
from reposer.errors import UserError, known
from reposer.images import decode
from reposer.storage.files import (
    atomic_folder,
    clean_up_after_killed,
    refuse_foreign,
    require_space,
    sha256_file,
)
from reposer.storage.paths import RefusedFileError, contained, made_folder
from reposer.storage.tables import parquet_sink
from reposer.structures import MISSING_LABEL, NUM_JOINTS, PersonRecord

# ---- Brings pictures of any size to one size: squeeze, pad or crop; maps, masks and keypoints go along.
#
# resize   the whole picture is squeezed into the size; shapes change (GFLA's way, and SAN's at 256x256)
# pad      scaled to fit, the shape kept, white around it (PISE's way)
# crop     scaled to cover, the shape kept, the middle taken (PATN's way: 256x256 to 256x176)

Fit = Literal["resize", "pad", "crop"]
FITS: tuple[Fit, ...] = ("resize", "pad", "crop")
WHITE = 255  # of padded pictures: In-shop photographs have a white background


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a picture lies on the canvas: its scaled size and the place of its corner, negative when cut."""

    original: tuple[int, int]  # (H, W) of the picture
    size: tuple[int, int]  # (H, W) of the canvas
    scaled: tuple[int, int]  # (H, W) of the scaled picture
    top: int
    left: int

    @classmethod
    def of(cls, original: tuple[int, int], size: tuple[int, int], fit: Fit = "resize") -> Self:
        """The placement of a picture of (H, W) ``original`` on a canvas of (H, W) ``size``."""
        if fit == "resize":
            return cls(original, size, size, 0, 0)
        ratios = [side / was for side, was in zip(size, original, strict=True)]
        ratio = min(ratios) if fit == "pad" else max(ratios)
        height, width = (max(1, round(side * ratio)) for side in original)
        # integer halves, so that 256x256 is cut to its columns 40 to 215 as PATN does
        return cls(original, size, (height, width), (size[0] - height) // 2, (size[1] - width) // 2)

    def picture(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W, 3) at the size, bilinear with antialiasing."""
        return self._placed(image, Image.Resampling.BILINEAR, WHITE)

    def labels(self, array: NDArray[np.uint8], outside: int = 0) -> NDArray[np.uint8]:
        """(H, W) labels at the size, by nearest neighbor; ``outside`` fills what is padded."""
        return self._placed(array, Image.Resampling.NEAREST, outside)

    def keypoints(self, pose: Pose) -> Pose:
        """(J, 2) in pixels of the canvas; a joint that is cut off is missing."""
        if self.scaled == self.original and self.scaled == self.size:
            return pose
        moved = scale_keypoints(pose, self.original, self.scaled)
        moved = moved + np.array([self.left, self.top], np.float32)
        if self.scaled == self.size:
            return np.asarray(moved, np.float32)
        limit = np.array([self.size[1], self.size[0]], np.float32) - 0.5
        outside = ((moved < -0.5) | (moved >= limit)).any(axis=-1, keepdims=True)  # NaN is never outside
        return np.where(outside, np.float32(np.nan), moved).astype(np.float32)

    def _placed(self, array: NDArray[np.uint8], how: Image.Resampling, outside: int) -> NDArray[np.uint8]:
        if array.shape[:2] != self.scaled:
            resized = Image.fromarray(array).resize((self.scaled[1], self.scaled[0]), how)
            array = np.asarray(resized)  # Pillow's bilinear antialiases
        if self.scaled == self.size:
            return array
        canvas = np.full((*self.size, *array.shape[2:]), outside, np.uint8)
        (to_y, from_y), (to_x, from_x) = (
            (slice(max(start, 0), min(start + length, side)), slice(max(-start, 0), max(-start, 0) + side))
            for start, length, side in zip((self.top, self.left), self.scaled, self.size, strict=True)
        )
        canvas[to_y, to_x] = array[from_y, from_x][: to_y.stop - to_y.start, : to_x.stop - to_x.start]
        return canvas


def known_fit(name: str) -> Fit:
    """The name itself.

    Raises:
        UserError: it is none of FITS.
    """
    return known("fit", name, FITS)


# ---- Streams people into the arrays of a packed folder; their number need not be known before.


class ArrayWriter:
    """Appends people to images.npy, parsing.npy and mask.npy, whose headers get the count at the end."""

    def __init__(self, folder: Path, size: tuple[int, int]) -> None:
        self.shapes = {"images": (*size, 3), "parsing": size, "mask": size}
        self.dtypes = {"images": np.uint8, "parsing": np.uint8, "mask": np.bool_}
        self.count = 0
        self.files = {name: (folder / f"{name}.npy").open("xb") for name in ARRAYS}

    def __enter__(self) -> Self:
        self._write_headers()
        return self

    def __exit__(self, *exception: object) -> None:
        for file in self.files.values():
            file.seek(0)
        try:
            self._write_headers()
        finally:
            for file in self.files.values():
                file.close()

    def append(self, image: NDArray[np.uint8], parsing: NDArray[np.uint8], mask: NDArray[np.bool_]) -> None:
        """Write one person at the end of each file."""
        for name, array in zip(ARRAYS, (image, parsing, mask), strict=True):
            if array.shape != self.shapes[name] or array.dtype != self.dtypes[name]:
                raise TypeError(f"{name} is {array.dtype} {array.shape}")
            self.files[name].write(array.tobytes())
        self.count += 1

    def _write_headers(self) -> None:
        """NumPy pads the first axis ("growth axis") to a fixed width: a header can be rewritten in place."""
        for name, file in self.files.items():
            header = {
                "descr": np.lib.format.dtype_to_descr(np.dtype(self.dtypes[name])),
                "fortran_order": False,
                "shape": (self.count, *self.shapes[name]),
            }
            np.lib.format.write_array_header_1_0(file, header)


MaskSource = Literal["mask", "parsing", "union"]
MASK_SOURCES: tuple[MaskSource, ...] = ("mask", "parsing", "union")

_CHUNK = 128  # people decoded ahead of the writer; bounds memory
_ROWS_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("pid", pa.int64()),
        ("camid", pa.int64()),
        ("split", pa.string()),
        ("sha256", pa.string()),  # of the original image file
        # x, y of each joint, pixels of the packed size, NaN missing
        (
            "keypoints",
            pa.list_(pa.float32(), NUM_JOINTS * 2),
        ),
        ("has_parsing", pa.bool_()),
        ("mask_source", pa.string()),  # "mask", "parsing" (its labels other than background), "union", "ones"
    ]
)


@dataclass(frozen=True, slots=True)
class PackReport:
    """What ``pack`` wrote, and what it could not use."""

    count: int  # people packed
    missing_parsing: int  # of them, without a usable parsing map: filled with MISSING_LABEL
    mask_sources: dict[str, int]  # people by "mask", "parsing", "union", "ones"
    # unreadable images (left out), unusable maps and masks (treated as missing)
    problems: list[AnnotationProblem]


@dataclass(frozen=True, slots=True)
class Packing:
    """How pictures and annotations become arrays of one size."""

    size: tuple[int, int]  # (H, W)
    fit: Fit = "resize"  # one of FITS
    mask_source: MaskSource = "mask"  # the files first, the parsing alone, or both together
    rules: MapRules = PLAIN  # what maps and masks mean


@dataclass(slots=True)
class _Person:
    """One person at the packed size."""

    record: PersonRecord
    image: NDArray[np.uint8] | None  # (H, W, 3); None when the image cannot be read
    parsing: NDArray[np.uint8]  # (H, W)
    mask: NDArray[np.bool_]  # (H, W)
    keypoints: Pose  # (J, 2)
    has_parsing: bool
    mask_source: str
    problems: list[AnnotationProblem] = field(default_factory=list)


def pack(
    records: Sequence[PersonRecord],
    root: str | Path,
    out: str | Path,
    size: tuple[int, int] | Packing,
    *,
    threads: int = 4,
    on_progress: Callable[[int, int], None] | None = None,
) -> PackReport:
    """Write the packed folder ``out`` in the order of ``records``; ``PackedPeople.open`` reads it.

    Images of another size are fitted (bilinear with antialiasing), maps and masks by nearest neighbor,
    keypoints by the same mapping. A person without a mask gets the parsing's labels other than background,
    else all ones (docs/explanation/san.md).

    Args:
        root: folder that the records' paths are relative to; it is only read.
        size: (H, W) of the packed arrays, or more about how they are made.
        threads: decoding threads; the result does not depend on them.
        on_progress: called with (people done, people in all).

    Raises:
        UserError: no records, a name twice, no readable image, or the disk is full.
    """
    out = Path(out)
    how = size if isinstance(size, Packing) else Packing(size)
    repeated = [name for name, times in Counter(record.name for record in records).items() if times > 1]
    if repeated:
        raise UserError(
            f"{root}: {len(repeated)} names occur more than once, first {repeated[0]}", "rename the files"
        )
    if not records:
        raise UserError(f"{root}: the data set is empty", "check the folder")
    made_folder(out.parent)
    clean_up_after_killed(out, always=True)
    height, width = how.size
    require_space(out.parent, len(records) * height * width * 5)
    with atomic_folder(out, _refuse_foreign) as folder:
        with ArrayWriter(folder, how.size) as writer:
            rows, report = _write_people(
                _read_people(records, Path(root), how, threads), writer, len(records), on_progress
            )
        if not report.count:
            raise UserError(f"{root}: none of {len(records)} images can be read", str(report.problems[0]))
        schema = _ROWS_SCHEMA
        if any(row["clothes"] >= 0 for row in rows):
            schema = schema.append(pa.field("clothes", pa.int64()))
        with parquet_sink(folder / ROWS) as sink:
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
        _write_header(folder, how, report)
    return report


def _refuse_foreign(out: Path) -> None:
    own = {HEADER, ROWS, *(f"{name}.npy" for name in ARRAYS)}
    refuse_foreign(out, own.__contains__, "a packed folder")


def _write_people(
    people: Iterator[_Person],
    writer: ArrayWriter,
    total: int,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[list[dict[str, Any]], PackReport]:
    rows: list[dict[str, Any]] = []
    problems: list[AnnotationProblem] = []
    for done, person in enumerate(people, start=1):
        problems += person.problems
        if person.image is not None:
            writer.append(person.image, person.parsing, person.mask)
            rows.append(_row(person))
        if on_progress is not None:
            on_progress(done, total)
    masks = Counter(str(row["mask_source"]) for row in rows)
    missing = sum(not row["has_parsing"] for row in rows)
    return rows, PackReport(len(rows), missing, dict(sorted(masks.items())), problems)


def _row(person: _Person) -> dict[str, Any]:
    record = person.record
    return {
        **{name: getattr(record, name) for name in ("name", "pid", "camid", "split", "sha256", "clothes")},
        "keypoints": person.keypoints.ravel(),
        "has_parsing": person.has_parsing,
        "mask_source": person.mask_source,
    }


def _read_people(
    records: Sequence[PersonRecord], root: Path, how: Packing, threads: int
) -> Iterator[_Person]:
    """People in the order of the records, ``_CHUNK`` decoded ahead (Pillow decodes outside the GIL)."""
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(records), _CHUNK):
            yield from pool.map(partial(_read_person, root=root, how=how), records[start : start + _CHUNK])


def _read_person(record: PersonRecord, root: Path, how: Packing) -> _Person:
    problems: list[AnnotationProblem] = []
    image = parsing = mask = None
    with _listed(problems, record.path, "image", "the person is left out"):
        image = decode(contained(root, record.path), root)
    original = (record.height, record.width) if image is None else (image.shape[0], image.shape[1])
    if image is not None and record.parsing is not None:
        with _listed(problems, record.parsing, "parsing", "treated as missing"):
            parsing, _ = read_as_lip(contained(root, record.parsing), original, how.rules.labels, root)
    if image is not None and record.mask is not None and how.mask_source != "parsing":
        with _listed(problems, record.mask, "mask", "treated as missing"):
            mask = how.rules.mask(contained(root, record.mask), original, root)
    person, mask_source = _person_mask(mask, parsing, original, how.mask_source)
    labels = np.full(original, MISSING_LABEL, np.uint8) if parsing is None else parsing
    keypoints = np.full((NUM_JOINTS, 2), np.nan, np.float32) if record.keypoints is None else record.keypoints
    place = Placement.of(original, how.size, how.fit)
    return _Person(
        record=record,
        image=None if image is None else place.picture(image),
        parsing=place.labels(labels, outside=MISSING_LABEL if parsing is None else 0),
        mask=place.labels(person.astype(np.uint8)).astype(np.bool_),
        keypoints=place.keypoints(keypoints),
        has_parsing=parsing is not None,
        mask_source=mask_source,
        problems=problems,
    )


def _person_mask(
    mask: NDArray[np.bool_] | None,
    parsing: NDArray[np.uint8] | None,
    size: tuple[int, int],
    source: MaskSource,
) -> tuple[NDArray[np.bool_], str]:
    """(H, W) True on the person, and what it was made of."""
    parsed = parsing != 0 if parsing is not None and parsing.any() else None
    if mask is not None and parsed is not None and source == "union":
        return mask | parsed, "union"
    if mask is not None:
        return mask, "mask"
    return (np.ones(size, np.bool_), "ones") if parsed is None else (parsed, "parsing")


@contextmanager
def _listed(problems: list[AnnotationProblem], file: str, what: str, consequence: str) -> Iterator[None]:
    """Turn the refusal of one file into a line of the report."""
    try:
        yield
    except UserError as error:
        reason = error.problem
        if isinstance(error, RefusedFileError):
            reason = error.reason
        elif isinstance(error, AnnotationError):
            reason = f"{error.listed.field} {error.listed.message}"
        problems.append(AnnotationProblem(file, 0, what, f"{reason}; {consequence}"))


def _write_header(folder: Path, how: Packing, report: PackReport) -> None:
    hashes = {name: sha256_file(folder / name) for name in (*(f"{array}.npy" for array in ARRAYS), ROWS)}
    header = {
        "schema_version": SCHEMA_VERSION,
        "size": list(how.size),
        "fit": how.fit,
        "count": report.count,
        "labels": "lip20",
        "missing_parsing": report.missing_parsing,
        "mask_sources": report.mask_sources,
        "problems": len(report.problems),
        "sha256": hashes,
        "content_hash": hashlib.sha256("\n".join(hashes.values()).encode()).hexdigest(),
    }
    (folder / HEADER).write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")
