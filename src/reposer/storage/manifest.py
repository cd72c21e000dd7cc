"""The manifest of a job's folder: Parquet parts with their seals, a row for each file with its sha256.

:mod:`reposer.jobs.shards` writes it. The second half reads and checks whole folders of generated pictures
(``images/``); annotated folders are checked in :mod:`reposer.annotation.faults`. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import zlib
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import pyarrow as pa
import pyarrow.compute as pc

from reposer.config import read_json
from reposer.errors import LARGEST, UserError
from reposer.storage.files import sha256_bytes, sha256_file, write_atomic
from reposer.storage.outputs import SEAL, seal_faults, write_seal
from reposer.storage.paths import (
    RefusedFileError,
    check_relative,
    contained,
    made_folder,
    printable,
    read_regular,
    unlinked,
)
from reposer.storage.tables import parquet_bytes, read_table

SCHEMA_VERSION = 1
JOB, IMAGES, MANIFEST = "job.json", "images", "manifest"
FILE_COLUMNS = (("file", pa.string()), ("sha256", pa.string()))  # the first columns of every manifest
_UNSEALED = (SEAL, "forgetting.json", "decisions.json")  # people may decide again after the end
DECODING = ".packed_turn"  # in a set, while a training decodes its pictures; what a killed one leaves
STALE = ".stale"  # beside the manifest: which files of earlier rows are to go when the job is finished
_SMALL = 1 << 16  # bytes
_NAMES_AT_ONCE = 1_000_000  # in memory
MAX_PART_BYTES = 2**30

Columns = Sequence[tuple[str, pa.DataType]]
Outputs = Sequence[tuple[str, str]]  # pairs of columns: a made file, relative to the root, and its hash


@dataclass(frozen=True, slots=True)
class RowSchema:
    """What a reader of parts relies on."""

    columns: Columns  # after FILE_COLUMNS, of the types that their writer gives them
    gaps: Collection[str] = ()  # columns in which a value may be missing
    later: Collection[str] = ()  # columns that older parts, or those of other jobs, lack


def read_rows(folder: str | Path, schema: RowSchema | None = None) -> pa.Table:
    """The whole manifest of a finished job, in the order of its items.

    Args:
        schema: as for :func:`read_part`.

    Raises:
        UserError: there is none, it is not finished, or a part is damaged, or of another schema.
    """
    paths = list_parts(Path(folder))
    parts = [read_part(path, schema) for path in paths]
    for path, part in zip(paths, parts, strict=True):
        if not part.schema.equals(parts[0].schema):
            problem = f"{printable(path)}: its columns are not those of {paths[0].name}"
            raise UserError(problem, "restore this file, or write the set again")
    return pa.concat_tables(parts)


def find_faults(folder: str | Path) -> list[str]:
    """Everything in a finished folder that is not as it was written, a line each; empty when all is well.

    Raises:
        UserError: the folder holds no job, or an unfinished one.
    """
    folder = Path(folder)
    job, rows_read = read_json(folder / JOB), 0
    parts = list_parts(folder)
    faults = seal_faults(folder, job)
    for path in parts:
        try:
            rows = read_part(path)
        except UserError as error:
            faults.append(str(error))
            continue
        rows_read += rows.num_rows
        faults += [f"{IMAGES}/{name} {reason}" for name, reason in file_faults(folder, rows)]
        if {"camid", "donor_camid"} <= set(rows.column_names):  # in the colors of the donor's camera
            sides = (rows[name].to_pylist() for name in ("file", "camid", "donor_camid"))
            faults += [
                f"{MANIFEST}/{path.name}: {name}: camid is not that of its donor"
                for name, camid, donors in zip(*sides, strict=True)
                if camid != donors
            ]
        if "synthetic" in rows.column_names:
            marks = zip(rows["file"].to_pylist(), rows["synthetic"].to_pylist(), strict=True)
            faults += [
                f"{MANIFEST}/{path.name}: {name}: synthetic is not true"
                for name, said in marks
                if said is not True
            ]
    if not faults and rows_read != job["items"]:
        faults.append(f"{MANIFEST}: {rows_read:,} rows, not the {job['items']:,} of {JOB}")
    expected = {path.name for path in parts} | {seal_path(path).name for path in parts}
    foreign = sorted({*names_in(folder / MANIFEST)} - expected)
    faults += [f"{MANIFEST}/{name} does not belong to the manifest" for name in foreign]
    extra = unlisted_pictures(folder, parts)
    return faults + [f"{IMAGES}/{name} is in no readable part of the manifest" for name in extra]


def names_in(folder: Path) -> Iterator[str]:
    """What lies in a folder, in any order; nothing where it is gone, or is no folder."""
    try:
        entries = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    with entries:
        yield from (entry.name for entry in entries)


def unlisted_pictures(folder: Path, parts: Sequence[Path]) -> list[str]:
    """The names in ``images/`` that no readable one of these parts lists, sorted; in bounded memory.

    The names of both sides are counted and their hashes added up. Where these are equal, so are the names;
    else they are compared, a share at a time.
    """

    def listed() -> Iterator[str]:
        for path in parts:
            with suppress(UserError):
                yield from read_part(path)["file"].to_pylist()

    (count, total), (there, total_there) = _sum_of(listed()), _sum_of(names_in(folder / IMAGES))
    if (count, total) == (there, total_there):
        return []
    extra: list[str] = []
    shares = 1 + max(count, there) // _NAMES_AT_ONCE
    for share in range(shares):
        mine = {name for name in names_in(folder / IMAGES) if zlib.crc32(os.fsencode(name)) % shares == share}
        for name in listed():
            mine.discard(name)
        extra += mine
    return sorted(extra)


def _sum_of(names: Iterable[str]) -> tuple[int, int]:
    """How many, and the sum of their sha256: the same for the same names in any order."""
    count = total = 0
    for name in names:
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
        count, total = count + 1, total + int.from_bytes(digest)
    return count, total


def seal_job(folder: Path) -> None:
    """Seal a finished job: its record, its manifest, what lies beside; the manifest lists pictures."""
    beside = [
        entry.name
        for entry in folder.iterdir()
        if entry.is_file() and not entry.name.startswith(".") and entry.name not in _UNSEALED
    ]
    write_seal(folder, [*beside, *(f"{MANIFEST}/{path.name}" for path in (folder / MANIFEST).iterdir())])


def part_path(folder: Path, number: int) -> Path:
    """Where the rows of a shard are."""
    return folder / MANIFEST / f"part-{number:05d}.parquet"


def is_sealed(path: Path) -> bool:
    """Whether a part was written to its end."""
    return seal_path(path).is_file()


def write_part(
    path: Path,
    rows: list[dict[str, Any]],
    columns: Columns,
    *,
    synthetic: bool = True,
    seal: Callable[[Path, bytes], None] = write_atomic,
) -> None:
    """Write rows, then their seal: a file with the part's sha256, as ``sha256sum`` prints it.

    The same rows give the same bytes. Parquet readers pass over the seal, whose name begins with "_".

    Args:
        seal: puts the seal to its place.
    """
    metadata = {"reposer": json.dumps({"schema_version": SCHEMA_VERSION, "synthetic": synthetic})}
    table = pa.Table.from_pylist(rows, pa.schema([*FILE_COLUMNS, *columns], metadata))
    data = parquet_bytes(table, compression="zstd")
    write_atomic(path, data)
    seal(seal_path(path), f"{sha256_bytes(data)}  {path.name}\n".encode())


def read_part(path: Path, schema: RowSchema | None = None, *, sealed: bool = True) -> pa.Table:
    """Rows of one part, whose column "file" may be joined to a folder.

    Args:
        schema: what the rows must be; None: only FILE_COLUMNS are looked at.
        sealed: False: the seal is not asked for.

    Raises:
        UserError: it, or its seal, is missing, cut or changed, or the rows are others; names the column.
    """
    try:
        root = path.parent.parent if path.parent.name == MANIFEST else path.parent
        data = read_regular(path, max_bytes=MAX_PART_BYTES, root=root)
        if sealed:
            seal = read_regular(seal_path(path), max_bytes=_SMALL, root=root).decode("ascii").split()
            if seal[:1] != [sha256_bytes(data)]:
                raise ValueError("differs from its sha256")
        rows = checked_names(read_table(data))
    except RefusedFileError as error:
        raise UserError(
            f"{path}: is damaged: {error.reason}", "run the same command again to mend it"
        ) from error
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: is damaged: {reason}", "run the same command again to mend it") from error
    return rows if schema is None else fitted(rows, schema, path)


def note_stale(part: Path, outputs: Outputs, made: Container[str]) -> None:
    """Before a part is written again: note the files that only its earlier rows name, for ``stale_files``.

    Args:
        part: the earlier one, if there is one; what is noted of one before it stays.
        outputs: of the rows.
        made: the files that are made now.
    """
    try:
        rows = read_part(part, sealed=False).to_pylist()
    except UserError:
        return  # none, or a damaged one: what it named cannot be known
    kept = [row for row in rows if not row.get("left_out")]
    named = {row.get(place): row.get(digest) for row in kept for place, digest in outputs}
    stale = {place: digest for place, digest in named.items() if place and digest and place not in made}
    if stale:
        book = part.parent.parent
        made_folder(book, STALE)
        note = unlinked(book, f"{STALE}/{part.stem}.json")
        earlier = read_json(note) if note.exists() else {}
        write_atomic(note, f"{json.dumps({**earlier, **stale})}\n".encode())


def stale_files(book: Path) -> dict[str, str]:
    """Every noted file, relative to the root, and the sha256 that it was written with."""
    found: dict[str, str] = {}
    for note in sorted((book / STALE).glob("part-*.json")):
        found |= {str(place): str(digest) for place, digest in read_json(note).items()}
    return found


def checked_names(rows: pa.Table) -> pa.Table:
    """``rows``, whose column "file" may be joined to a folder, and whose texts can be decoded.

    Raises:
        ValueError: a column is there twice, or holds no values of its type; FILE_COLUMNS are missing, or no
            texts; a name is none, or could lead out of the folder; names the column, or the row.
    """
    for name, column in zip(rows.column_names, rows.columns, strict=True):
        place = f"column {printable(name)[:80]}"
        if rows.column_names.count(name) > 1:
            raise ValueError(f"{place} is there twice")
        try:
            column.validate(full=True)  # UTF-8 too
        except pa.ArrowException as error:
            raise ValueError(f"{place}: {_first_line(error)}") from error
    rows = _fitted(rows, RowSchema((), gaps=[name for name, _ in FILE_COLUMNS]))
    for row, name in enumerate(rows["file"].to_pylist(), start=1):
        try:
            check_relative(name)
        except ValueError as error:
            raise ValueError(f"row {row}, file: {error}") from error
    return rows


def fitted(rows: pa.Table, schema: RowSchema, path: Path) -> pa.Table:
    """``rows`` in the types of the schema; columns beyond it stay as they are.

    Args:
        rows: of :func:`checked_names`.
        path: where they are from, for messages.

    Raises:
        UserError: a column is missing, holds values of another kind, or lacks some; names the column.
    """
    try:
        return _fitted(rows, schema)
    except ValueError as error:
        raise UserError(f"{printable(path)}: {error}", "restore this file, or write the set again") from error


def _fitted(rows: pa.Table, schema: RowSchema) -> pa.Table:
    """As :func:`fitted`; raises ValueError."""
    for name, kind in (*FILE_COLUMNS, *schema.columns):
        if name not in rows.column_names:
            if name in schema.later:
                continue
            raise ValueError(f"column {name} is missing")
        column = rows[name]
        if column.type != kind:
            found = f"column {name} is of type {printable(str(column.type))[:80]}, not {kind}"
            if not _same_kind(column.type, kind):
                raise ValueError(found)
            try:
                column = column.cast(kind)
            except pa.ArrowException as error:
                raise ValueError(f"{found}: {_first_line(error)}") from error
            rows = rows.set_column(rows.column_names.index(name), pa.field(name, kind), column)
        if column.null_count and name not in schema.gaps:
            row = pc.index(pc.is_null(column), True).as_py() + 1
            raise ValueError(f"row {row}: {name} is missing")
    return rows


def _same_kind(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether values of a type mean the same in the other: no text is a number or a truth value."""
    if pa.types.is_dictionary(found):
        found = found.value_type
    if pa.types.is_null(found) or found == wanted:
        return True
    if pa.types.is_list(wanted):
        lists = (pa.types.is_list, pa.types.is_large_list)
        return any(one(found) for one in lists) and _same_kind(found.value_type, wanted.value_type)
    if pa.types.is_string(wanted):
        return any(one(found) for one in (pa.types.is_large_string, pa.types.is_string_view))
    if pa.types.is_floating(wanted):
        return bool(pa.types.is_floating(found) or pa.types.is_integer(found))
    return bool(pa.types.is_integer(wanted) and pa.types.is_integer(found))


def _first_line(error: Exception) -> str:
    return printable((str(error).splitlines() or [type(error).__name__])[0])[:200]


def file_faults(folder: Path, rows: pa.Table) -> Iterator[tuple[str, str]]:
    """Name and reason for every file of these rows that is missing or changed."""
    images = os.path.join(folder, IMAGES)
    for name, digest in zip(rows["file"].to_pylist(), rows["sha256"].to_pylist(), strict=True):
        path = f"{images}/{name}"  # a Path for each of a million files would be a third of the time
        try:
            mode = os.lstat(path).st_mode
        except OSError:
            yield name, "is missing"
            continue
        if not stat.S_ISREG(mode):  # a link too: nothing that was written here is one
            yield name, "is no regular file"
        elif _sha256_small(path) != digest:
            yield name, "differs from its sha256"


def _sha256_small(path: str) -> str:
    """As ``sha256_file``, which makes a large buffer for every file."""
    with open(path, "rb", buffering=0) as file:
        data = file.read(_SMALL)
    return sha256_bytes(data) if len(data) < _SMALL else sha256_file(path)


def job_settings(folder: Path) -> dict[str, Any]:
    """What the job of a folder was made with; another folder's record may hold anything below its keys.

    Raises:
        UserError: no record of a job, or its settings are no mapping.
    """
    settings = read_json(folder / JOB).get("settings", {})
    if not isinstance(settings, dict):
        raise UserError(f"{printable(folder / JOB)}: settings is no mapping", "restore this file")
    return settings


def _is_count(value: object, least: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= LARGEST


def list_parts(folder: Path) -> list[Path]:
    """Every part that the job must have."""
    for name in (MANIFEST, IMAGES):
        contained(folder, name)
    job = read_json(folder / JOB)
    items, per_part = job.get("items"), job.get("shard_items")
    if not _is_count(items, 0) or not _is_count(per_part, 1):
        raise UserError(
            f"{printable(folder / JOB)}: is no job of reposer",
            "choose a folder that generate or augment has written",
        )
    count = -(-items // per_part)
    there = sum(1 for _ in os.scandir(folder / MANIFEST)) if (folder / MANIFEST).is_dir() else 0
    if count > there:  # before so many are looked for
        raise UserError(
            f"{printable(folder)}: at least {count - there:,} of {count:,} shards are not there",
            "run the same command again to go on",
        )
    parts = [part_path(folder, n) for n in range(count)]
    missing = sum(not is_sealed(part) for part in parts)
    if missing:
        raise UserError(
            f"{folder}: {missing} of {len(parts)} shards are not there", "run the same command again to go on"
        )
    return parts


def seal_path(path: Path) -> Path:
    return path.with_name(f"_{path.stem}.sha256")
