"""Is an annotated folder still what was written? Every file against its hash, every row against its file.

What is checked: the journals (of the annotations, and of the people cut out of photos), every map, mask and
image, key-points.csv, problems.csv and report.json. The report page is not: it is drawn from these.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from reposer.annotation.crop_maker import COLUMNS
from reposer.annotation.journal import (
    BOOK,
    PHOTOS,
    PLAN,
    STAGING,
    Rows,
    place_fault,
    read_beside,
    read_shards,
    source_hash,
)
from reposer.annotation.photo_maker import COLUMNS as PHOTO_COLUMNS
from reposer.annotation.result_faults import result_faults
from reposer.annotation.results import REPORT
from reposer.annotation.row_checks import row_faults
from reposer.config import read_json
from reposer.data.generated.files import (
    FILE_COLUMNS,
    JOB,
    MANIFEST,
    Columns,
    is_sealed,
    part_path,
    read_part,
    seal_path,
)
from reposer.data.layouts.folder_scan import drop_collisions, without_suffix
from reposer.data.layouts.identity_folders import annotation_folders, list_images, split_folders
from reposer.errors import UserError
from reposer.paths import check_relative, printable
from reposer.seals import SEAL, seal_faults, write_seal

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
    main = _Book(root, book, COLUMNS)
    faults = main.faults
    sealed = seal_faults(root, main.record, place=f"{BOOK}/{SEAL}")
    faults += (f"{fault.removeprefix(f'{root}/')}; {_AGAIN}" for fault in sealed)
    if main.settings.get("kind") != "annotation":
        return [*faults, f"{BOOK}/{JOB}: kind is not that of an annotation; {_restart()}"]
    for where, row in main.rows():
        faults += (f"{where}, {fault}; {_AGAIN}" for fault in row_faults(row, main.settings))
        faults += _file_faults(root, where, row, apart=main.settings.get("images") != ".")
    faults += main.missing_rows()
    if (book / PHOTOS).is_dir():
        faults += _photo_faults(root, main)
    faults += _foreign(root, main)
    if main.complete:
        told = result_faults(
            root, list(main.found.values()), with_keypoints=_looks_for_keypoints(main.settings)
        )
        faults += (f"{fault}; {_AGAIN}" for fault in told)
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
                if row["file"] in self.found and self._columns is COLUMNS:
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
            table = read_part(path)
        except UserError as error:
            told = error.problem.replace(str(path), place)
            self.faults.append(f"{told}; it describes {images[0]} and {len(images) - 1} more; {_AGAIN}")
        else:
            if table.column_names == [name for name, _ in (*FILE_COLUMNS, *self._columns)]:
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
            told = f"{missing} of {len(shards)} shards are not there" if missing else f"there is no {REPORT}"
            raise UserError(f"{root}: {told}", f"{_AGAIN} to go on")
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
    elif not apart and source_hash(root / check_relative(image), root) != row["sha256"]:
        yield f"{image}: the image differs from its sha256 ({where}, sha256); {_AGAIN}"


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
    images, _ = drop_collisions((path, without_suffix(path)) for path in paths)
    own = main.settings.get("images") == "."
    advice = _AGAIN if own and not (root / BOOK / PHOTOS).is_dir() else "delete it"
    for image, _ in images:
        if image not in main.images:
            yield f"{image}: the image is in no row of the manifest; {advice}"


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
