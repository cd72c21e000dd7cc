"""Is an annotated folder still what was written? Every file against its hash, every row against its file.

What is checked: the journals (of the annotations, and of the people cut out of photos), every map, mask and
image, keypoints.csv, problems.csv and report.json. The report page is not: it is drawn from these.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from reposer.annotation.journal import (
    BOOK,
    KEYPOINTS,
    PHOTOS,
    PLAN,
    PROBLEMS,
    REPORT,
    count,
    listed_poses,
    place_fault,
    read_beside,
    read_shards,
    row_problems,
    source_hash,
)
from reposer.annotation.makers import CROP_COLUMNS, PHOTO_COLUMNS
from reposer.annotation.overview import FLAGS
from reposer.config import read_json
from reposer.data.keypoints import write_keypoints_csv
from reposer.data.layouts.folder_scan import drop_shadowed, split_folders, without_suffix
from reposer.data.layouts.identity_folders import annotation_folders, list_images
from reposer.data.records import AnnotationProblem, text_cell
from reposer.errors import UserError
from reposer.jobs.shards import STAGING, Rows
from reposer.storage.manifest import (
    FILE_COLUMNS,
    JOB,
    MANIFEST,
    Columns,
    RowSchema,
    fitted,
    is_sealed,
    part_path,
    read_part,
    seal_path,
)
from reposer.storage.outputs import SEAL, seal_faults, write_seal
from reposer.storage.paths import RefusedFileError, check_relative, printable, read_regular
from reposer.structures import NUM_JOINTS, NUM_LABELS

# ---- Does a row of the manifest agree with itself, its image's name and the settings of its job?


def row_faults(row: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a row, each beginning with the field; its files are not looked at."""
    if row["left_out"]:
        full = [field for field in ("parsing", "mask", "keypoints") if row[field] is not None]
        yield from (f"{field}: the image was left out, and yet has it" for field in full)
        return
    stem = without_suffix(row["file"])
    for field, maker in (("parsing", "parser"), ("mask", "mask")):
        wanted, there = settings.get(maker, {}).get("name") != "none", row[field] is not None
        if there and not wanted:
            yield f"{field}: this job makes none"
        elif there and row[field] != f"{field}/{stem}.png":
            yield f"{field}: {row[field]} is not the place of this image's"
        elif wanted and not there and not (field == "mask" and _lacks(row, "mask")):
            yield f"{field}: is empty"
    yield from _number_faults(row)
    unknown = [flag for flag in row["flags"] if flag not in FLAGS]
    yield from (f"flags: {flag!r} is none" for flag in unknown)


def _number_faults(row: Mapping[str, Any]) -> Iterator[str]:
    """Counts that must add up."""
    pixels, points, scores = row["label_pixels"], row["keypoints"], row["joint_scores"]
    if row["parsing"] is not None:
        area = row["width"] * row["height"]
        if pixels is None or len(pixels) != NUM_LABELS or sum(pixels) != area:
            yield f"label_pixels: are not {area:,} pixels of {NUM_LABELS} labels"
    if (row["mask"] is None) != (row["mask_area"] is None):
        yield "mask_area: mask and area are not both there"
    elif row["mask_area"] is not None and not 0 <= row["mask_area"] <= 1:
        yield f"mask_area: {row['mask_area']} is no share"
    if points is None:
        return
    if len(points) != 2 * NUM_JOINTS or scores is None or len(scores) != NUM_JOINTS:
        yield f"keypoints: are not {NUM_JOINTS} joints with a score each"
    elif row["joints"] != sum(not math.isnan(x) for x in points[::2]):
        yield f"joints: {row['joints']} is not the number of joints that are there"


def _lacks(row: Mapping[str, Any], field: str) -> bool:
    """Whether the row says that the user has no usable file for it."""
    return any(problem["field"] == field for problem in row["problems"])


# ---- Are keypoints.csv, problems.csv and report.json what the rows of the manifest say?

_MAX_BYTES = 1_000_000_000  # of a CSV


def result_faults(root: Path, rows: Rows, *, with_keypoints: bool) -> Iterator[str]:
    """What differs, naming file and line or field.

    Args:
        root: the annotated folder.
        rows: the whole manifest.
        with_keypoints: whether the job looks for keypoints.
    """
    listed = row_problems(rows)
    if with_keypoints:
        poses, unfit = listed_poses([row for row in rows if not row["left_out"]])
        listed += unfit
        with TemporaryDirectory() as scratch:
            write_keypoints_csv(Path(scratch) / KEYPOINTS, poses)
            expected = (Path(scratch) / KEYPOINTS).read_bytes().split(b"\n")
        yield from _line_faults(root / KEYPOINTS, expected)
    yield from _problem_faults(root / BOOK / PROBLEMS, listed)
    try:
        report = read_json(root / BOOK / REPORT)
    except UserError as error:
        yield error.problem.removeprefix(f"{root}/")
        return
    for field, expected_count in count(rows, listed).items():
        if field != "rules" and report.get(field) != expected_count:  # rules: of lines without a row, too
            yield f"{BOOK}/{REPORT}, {field}: is not that of the manifest"


def _line_faults(path: Path, expected: list[bytes]) -> Iterator[str]:
    """The first line that differs."""
    try:
        found = read_regular(path, max_bytes=_MAX_BYTES).split(b"\n")
    except RefusedFileError as error:
        yield f"{path.name}: {error.reason}"
        return
    if found != expected:
        pairs = enumerate(zip(found, expected, strict=False), start=1)
        at = next((n for n, (a, b) in pairs if a != b), min(len(found), len(expected)) + 1)
        line = expected[at - 1] if at <= len(expected) else found[at - 1]
        name = line.split(b":")[0].decode("utf-8", "replace")
        yield f"{path.name}, row {at}, {name}: is not what the manifest says"


def _problem_faults(path: Path, listed: Iterable[AnnotationProblem]) -> Iterator[str]:
    """Every problem of a row must stand in problems.csv, which has others too."""
    try:
        text = read_regular(path, max_bytes=_MAX_BYTES).decode("utf-8", "replace")
        lines = [line for line in csv.reader(io.StringIO(text)) if len(line) == 5]
    except RefusedFileError as error:
        yield f"{BOOK}/{path.name}: {error.reason}"
        return
    except csv.Error as error:
        yield f"{BOOK}/{path.name}: is no CSV ({error})"
        return
    if lines[:1] != [["file", "row", "field", "rule", "message"]]:
        yield f"{BOOK}/{path.name}, row 1: is not its header"
    there = Counter((line[0], line[3]) for line in lines)
    for file, rule in sorted(Counter((text_cell(one.file), one.rule) for one in listed) - there):
        yield f"{BOOK}/{path.name}: has no line for {file}, {rule}"


_AGAIN = "run the same `reposer annotate` command again"


def is_annotated(folder: Path) -> bool:
    """Whether ``reposer annotate`` has written in this folder."""
    book = folder / BOOK
    return any((place / name).exists() for place in (book, book / PHOTOS) for name in (JOB, PLAN, MANIFEST))


def seal_annotations(root: Path) -> None:
    """Seal what was written in an annotated folder: both journals, and the files made of them."""
    book = root / BOOK
    names = [f"{BOOK}/{name}" for name in (JOB, PLAN, REPORT, "problems.csv")] + ["keypoints.csv"]
    names += [f"{BOOK}/{PHOTOS}/{name}" for name in (JOB, PLAN)]
    for place in (book / MANIFEST, book / PHOTOS / MANIFEST):
        names += [path.relative_to(root).as_posix() for path in place.iterdir()] if place.is_dir() else []
    write_seal(root, names, place=f"{BOOK}/{SEAL}")


def annotation_faults(root: str | Path) -> list[str]:
    """Everything in a finished annotated folder that is not as it was written, a line each, with what to do.

    Raises:
        UserError: the job has not ended.
    """
    root = Path(root)
    book = root / BOOK
    if not (book / REPORT).exists():
        _refuse_unfinished(root)
    main = _Book(root, book, CROP_COLUMNS)
    faults = main.faults
    sealed = seal_faults(root, main.record, place=f"{BOOK}/{SEAL}")
    faults += (f"{fault.removeprefix(f'{root}/')}; {_AGAIN}" for fault in sealed)
    if main.settings.get("kind") != "annotation":
        return [*faults, f"{BOOK}/{JOB}: kind is not that of an annotation; {_restart()}"]
    for where, row in main.rows():
        try:
            faults += (f"{where}, {fault}; {_AGAIN}" for fault in row_faults(row, main.settings))
            faults += _file_faults(root, where, row, apart=main.settings.get("images") != ".")
        except (TypeError, ValueError, AttributeError) as error:  # a cell that is never empty is
            faults.append(f"{where}: holds a value of the wrong kind ({error}); {_AGAIN}")
    faults += main.missing_rows()
    if (book / PHOTOS).is_dir():
        faults += _photo_faults(root, main)
    faults += _foreign(root, main)
    if main.complete:
        found = result_faults(
            root, list(main.found.values()), with_keypoints=_looks_for_keypoints(main.settings)
        )
        faults += (f"{fault}; {_AGAIN}" for fault in found)
    return faults


class _Book:
    """A journal as it is on the disk; what cannot be read is a fault, and the rest goes on."""

    def __init__(self, root: Path, book: Path, columns: Columns) -> None:
        self.faults: list[str] = []
        self.settings: Mapping[str, Any] = {}
        self.record: Mapping[str, Any] = {}
        self.complete = True  # every part could be read
        self.found: dict[str, dict[str, Any]] = {}  # by image: its last row
        self._name = book.relative_to(root).as_posix()
        self._book, self._columns = book, columns
        try:
            self.record = read_json(book / JOB)
            self.settings = self.record.get("settings", {})
            self.shards, self.beside = read_shards(book / PLAN), set(read_beside(book / PLAN))
        except UserError as error:
            self.faults.append(f"{self._name}: {error.problem}; {_restart()}")
            self.shards, self.beside, self.complete = [], set(), False
        self.images = {image for shard in self.shards for image in shard}
        self.unread: set[str] = set()  # images of parts that cannot be read

    def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every row that can be read, and where it stands; notes the faults of parts."""
        for number, images in enumerate(self.shards):
            table = self._read(number, images)
            for at, row in enumerate(table, start=1):
                where = (
                    f"{self._name}/{MANIFEST}/{part_path(self._book, number).name}: row {at}, {row['file']}"
                )
                if row["file"] not in images:
                    self.faults.append(f"{where}: is no image of this part; {_AGAIN}")
                if row["file"] in self.found and self._columns is CROP_COLUMNS:
                    self.faults.append(f"{where}: stands in the manifest twice; {_AGAIN}")
                self.found[row["file"]] = row
                yield where, row

    def missing_rows(self) -> Iterator[str]:
        """Images of the plan without a row, and files of the manifest that belong to nothing."""
        for number, images in enumerate(self.shards):
            part = f"{self._name}/{MANIFEST}/{part_path(self._book, number).name}"
            lost = [image for image in images if image not in self.found and image not in self.unread]
            yield from (f"{part}: has no row for {image}; {_AGAIN}" for image in lost)
        folder = self._book / MANIFEST
        own = {place.name for n in range(len(self.shards)) for place in _places(self._book, n)}
        for name in sorted(set(os.listdir(folder)) - own) if folder.is_dir() and self.shards else ():
            yield f"{self._name}/{MANIFEST}/{name}: does not belong to the manifest; delete it"
        if (self._book / STAGING).exists():
            yield f"{self._name}/{STAGING}: is left of a call that was stopped; {_AGAIN}"

    def _read(self, number: int, images: list[str]) -> Rows:
        path = part_path(self._book, number)
        place = f"{self._name}/{MANIFEST}/{path.name}"
        try:
            if not is_sealed(path):
                raise UserError(f"{place}: is not there, or not its seal")
            table, names = read_part(path), [name for name, _ in (*FILE_COLUMNS, *self._columns)]
            if of_this_version := table.column_names == names:
                table = fitted(table, RowSchema(self._columns, gaps=names), path)
        except UserError as error:
            problem = error.problem.replace(str(path), place)
            self.faults.append(f"{problem}; it describes {images[0]} and {len(images) - 1} more; {_AGAIN}")
        else:
            if of_this_version:
                rows: Rows = table.to_pylist()
                return rows
            self.faults.append(f"{place}: its columns are those of another version; {_AGAIN}")
        self.complete = False
        self.unread |= set(images)
        return []


def _refuse_unfinished(root: Path) -> None:
    """A job without a report has not ended."""
    for book in (root / BOOK, root / BOOK / PHOTOS):
        if (book / PLAN).is_file():
            shards = read_shards(book / PLAN)
            missing = sum(not is_sealed(part_path(book, n)) for n in range(len(shards)))
            reason = (
                f"{missing} of {len(shards)} shards are not there" if missing else f"there is no {REPORT}"
            )
            raise UserError(f"{root}: {reason}", f"{_AGAIN} to go on")
    raise UserError(f"{root}: nothing is annotated yet", f"{_AGAIN} to go on")


def _file_faults(root: Path, where: str, row: Mapping[str, Any], *, apart: bool) -> Iterator[str]:
    """An image, its map and its mask against the hashes of the row."""
    image = row["file"]
    if not row["left_out"]:
        for field in ("parsing", "mask"):
            fault = place_fault(root, row[field], row[f"{field}_sha256"]) if row[field] else ""
            if fault:
                yield f"{row[field]}: {fault} ({where}, {field}_sha256); {_AGAIN}"
        fault = place_fault(root, image, row["sha256"])
        if fault:
            what = "the copy" if apart else "the image"
            yield f"{image}: {what} {fault} ({where}, sha256); {_AGAIN}"
    elif not apart and _source_hash(root, image) != row["sha256"]:
        yield f"{image}: the image differs from its sha256 ({where}, sha256); {_AGAIN}"


def _source_hash(root: Path, image: str) -> str | None:
    """:func:`journal.source_hash`; None for what is no path of an image."""
    try:
        return source_hash(root / check_relative(image), root)
    except ValueError:
        return None


def _photo_faults(root: Path, main: _Book) -> list[str]:
    """The journal of the cutting, against the crops that were annotated."""
    photos = _Book(root, root / BOOK / PHOTOS, PHOTO_COLUMNS)
    crops = set()
    for where, row in photos.rows():
        crop = row["crop"]
        if not crop:
            continue
        crops.add(crop)
        annotated = main.found.get(crop)
        if crop not in main.images:
            photos.faults.append(f"{where}, crop: {crop} is not annotated; {_AGAIN}")
        elif annotated is not None:
            pairs = {"sha256": "crop_sha256", "photo": "file", "photo_sha256": "sha256", "box": "box"}
            for field, other in pairs.items():
                if annotated[field] != row[other]:
                    photos.faults.append(f"{where}, {other}: is not what {crop} was made from; {_AGAIN}")
    photos.faults += photos.missing_rows()
    if photos.complete:
        used = {crop for crop, row in main.found.items() if not row["left_out"]}
        alien = sorted(used - crops)
        photos.faults += [f"{crop}: comes from no photo of the manifest; delete it" for crop in alien]
    return photos.faults


def _foreign(root: Path, main: _Book) -> Iterator[str]:
    """Files without a row; those of parts that cannot be read are not judged."""
    if not main.shards:
        return
    stems = {without_suffix(image) for image in main.unread}
    for field in ("parsing", "mask"):
        known = {row[field] for row in main.found.values() if row[field]}
        known |= {f"{field}/{stem}.png" for stem in stems}
        for place in sorted(_below(root, field) - known):
            yield f"{printable(place)}: is in no row of the manifest; delete it"
    skip = main.beside  # the same folders as in annotate.py
    skip |= set(annotation_folders(root, ["", *split_folders(root).values()], skip, [], ""))
    paths = list_images(root, [], skip=skip)
    images, _ = drop_shadowed(paths)
    own = main.settings.get("images") == "."
    advice = _AGAIN if own and not (root / BOOK / PHOTOS).is_dir() else "delete it"
    for image, _ in images:
        if image not in main.images:
            yield f"{image}: the image is in no row of the manifest; {advice}"
        elif not own and main.found.get(image, {}).get("left_out"):
            yield f"{image}: the copy of an image that was left out; delete it"


def _looks_for_keypoints(settings: Mapping[str, Any]) -> bool:
    return bool(settings.get("keypoints", {}).get("name", "none") != "none")


def _places(book: Path, number: int) -> tuple[Path, Path]:
    part = part_path(book, number)
    return part, seal_path(part)


def _below(root: Path, folder: str) -> set[str]:
    """Every file below a folder, relative to the root."""
    return {
        (Path(place) / name).relative_to(root).as_posix()
        for place, _, names in os.walk(root / folder)
        for name in names
    }


def _restart() -> str:
    return f"put it back, or delete {BOOK} with the annotations beside it and start again"
