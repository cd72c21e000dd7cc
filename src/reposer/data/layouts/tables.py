"""Any data set as a table: CSV or Parquet with the columns path, pid, camid, split; others are ignored.

And the way there from a packed set: its images as files, with a table.
"""

from __future__ import annotations

import csv
import io
import re
import tarfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from reposer.config import foreign_values
from reposer.data.layouts.labeled_files import LabeledFile, Listing, Problems, labeled
from reposer.data.records import SPLITS, AnnotationProblem
from reposer.errors import UserError, known
from reposer.images import MAX_FILE_BYTES
from reposer.storage.files import Bucket, atomic_folder, is_remote, sha256_bytes, write_new
from reposer.storage.manifest import IMAGES
from reposer.storage.paths import (
    check_name,
    check_relative,
    contained,
    delete,
    made_folder,
    printable,
    read_regular,
    require_regular,
    unlinked,
)
from reposer.storage.tables import check_decoded, parquet_source, read_table

# Other words for a split; "test" is the gallery beside "query", otherwise nobody knows what it is.
_SPLIT_WORDS = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "probe": "query"}
COLUMNS = ("path", "pid", "camid", "split")
EXCESS = "<cells>"  # key of a row whose cells are more than the header's
_MAX_FILE_BYTES = 2_000_000_000
_MAX_CSV_BYTES, MAX_ROWS = 1_000_000_000, 5_000_000  # the largest sets of persons have 4 million images
_MAX_LINE, _MAX_COLUMNS = 1_000_000, 1000  # characters of a row, cells
_MAX_TEXT_BYTES = 1_000_000_000  # of a Parquet table, unpacked


def list_table(root: Path, table: str | Path, zero_based: bool = False, split: str = "") -> Listing:
    """The rows of a table; bad ones are listed by their number (the CSV's header is row 1).

    Args:
        root: folder that the paths are relative to.
        table: .csv (UTF-8, with a header) or .parquet; pid -1 junk, 0 distractor; split one of
            train, val, query, gallery (or "test" beside "query", "valid", "probe"; see ``split_words``).
        zero_based: people are counted from 0: 1 is added to every number from 0 on.
        split: of all rows, of a table without such a column, as `reposer unpack-set` writes one.

    Raises:
        UserError: another kind of file, damaged, or a column is missing, or there beside ``split``.
    """
    if split:
        known("split", split, SPLITS)
    table = Path(table)
    problems: Problems = []
    files: list[LabeledFile] = []
    seen: dict[str, int] = {}
    first, rows = read_rows(table, COLUMNS[:3] if split else COLUMNS, ("split",) if split else ())
    for number, row in enumerate(rows, start=first):
        if split and any(row.values()):
            if row["split"]:
                raise UserError(f"{printable(table)}: has a column split", "leave out --split")
            row["split"] = split
        if not any(row.values()):  # a blank line, as editors and spreadsheets leave them at the end
            continue
        if wrong := row_problem(row, seen):
            field, message, rule = wrong
            problems.append(AnnotationProblem(table.name, number, field, f"{message}; left out", rule))
            continue
        seen[row["path"]] = number
        pid = int(row["pid"]) + (zero_based and int(row["pid"]) >= 0)
        files.append(labeled(_spelled(root, row["path"]), pid, int(row["camid"]), row["split"]))
    return files, problems


def read_rows(
    table: Path, required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> tuple[int, Iterator[dict[str, str]]]:
    """The number of the first row of a CSV or Parquet file, and its rows as text; no value is "".

    A row of a CSV with more cells than the header has, the key EXCESS with their number, wherever they moved.

    A CSV's separator is the comma, semicolon or tab of its header, whose letter case counts for nothing. Of
    the values, "\\" and "./" of a path, "1.0" of a number and other words for a split are put right.

    Args:
        required: columns that the table must have, once each.
        optional: columns that it may have; "" where it has not.

    Raises:
        UserError: another kind of file, damaged, no column of a required name or more than one.
    """
    data = read_regular(table, max_bytes=_MAX_FILE_BYTES)
    if table.suffix.lower() == ".csv":
        return 2, _put_right(_csv_rows(table, data, required, optional))
    if table.suffix.lower() in (".tsv", ".txt"):
        return 2, _put_right(_csv_rows(table, data, required, optional))
    if table.suffix.lower() == ".parquet":
        return 1, _put_right(_parquet_rows(table, data, required, optional))
    raise UserError(f"{printable(table)}: unknown kind of table", "give a .csv, .tsv or .parquet file")


def row_problem(row: dict[str, str], seen: dict[str, int]) -> tuple[str, str, str] | None:
    """Field, message and rule of the first thing wrong with a row; ``seen``: rows of earlier paths."""
    if EXCESS in row:
        return "row", f"has {row[EXCESS]}: quote a value that holds the separator", "bad-label"
    try:
        check_relative(row["path"])
    except ValueError as error:
        return "path", f"{printable(row['path'][:80])}: {error}", "bad-path"
    for field, pattern in (("pid", "-1|[0-9]{1,9}"), ("camid", "[0-9]{1,9}")):
        if not re.fullmatch(pattern, row[field], re.ASCII):
            return field, f"{printable(row[field][:80])!r} is no {field}", "bad-label"
    if row["split"] not in SPLITS:
        advice = ": write gallery, or val" if row["split"].lower() == "test" else ""
        words = f"{printable(row['split'][:80])!r} is none of {', '.join(SPLITS)}{advice}"
        return "split", words, "bad-label"
    if row["path"] in seen:
        message = f"{printable(row['path'])} stands in row {seen[row['path']]} already"
        return "path", message, "repeated-path"
    return None


def split_words(words: Collection[str], names: Collection[str] = SPLITS) -> dict[str, str]:
    """The split of ``names`` that each of a table's words means; a word that means none stays as it is."""
    plain = {word: word.strip().lower() for word in words}
    meant = {word: _SPLIT_WORDS.get(text, text) for word, text in plain.items()}
    meant = {word: split if split in names else word for word, split in meant.items()}
    if "query" in meant.values() and "gallery" not in meant.values():
        meant |= {word: "gallery" for word, text in plain.items() if text in ("test", "testing")}
    return meant


def _put_right(rows: Iterator[dict[str, str]]) -> Iterator[dict[str, str]]:
    """Rows as spreadsheets, Windows and other programs write them, as this program does."""
    content = list(rows)
    meant = split_words({row["split"] for row in content if "split" in row})
    for row in content:
        for field in row.keys() & {"pid", "camid"}:
            if re.fullmatch(r"-?[0-9]+\.0*", row[field], re.ASCII):
                row[field] = row[field].partition(".")[0]
        row["path"] = row["path"].replace("\\", "/")
        while row["path"].startswith("./"):
            row["path"] = row["path"][2:].lstrip("/")
        if "split" in row:
            row["split"] = meant[row["split"]]
        yield row


def _spelled(root: Path, path: str) -> str:
    """The path as the disk spells it: a table in Unicode NFC may name a file in NFD, and the other way."""
    spellings = (path, *(unicodedata.normalize(form, path) for form in ("NFC", "NFD")))
    return next((spelling for spelling in spellings if (root / spelling).exists()), path)


def _csv_rows(
    table: Path, data: bytes, required: tuple[str, ...], optional: tuple[str, ...]
) -> Iterator[dict[str, str]]:
    if len(data) > _MAX_CSV_BYTES:
        raise UserError(f"{printable(table)}: larger than {_MAX_CSV_BYTES:,} bytes", "split it")
    first = data[:_MAX_LINE].decode("utf-8-sig", "ignore").lstrip("\r\n").partition("\n")[0]
    separator = max(",;\t", key=first.count)  # of equal counts the comma
    lines = _Lines(data)
    reader = csv.reader(lines, delimiter=separator)
    rows: list[list[str]] = []
    longer: dict[int, str] = {}  # place in rows -> what is said of it
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        if len(header) > _MAX_COLUMNS:
            raise csv.Error(f"more than {_MAX_COLUMNS:,} columns")
        found = _found_columns(table, header, required, optional)
        places = [header.index(name) for name in found]
        for cells in reader:
            lines.held = 0
            rows.append([cells[place].strip() if place < len(cells) else "" for place in places])
            if any(cell.strip() for cell in cells[len(header) :]):
                longer[len(rows) - 1] = f"{len(cells)} cells, the header {len(header)}"
            if len(rows) > MAX_ROWS:
                raise csv.Error(f"more than {MAX_ROWS:,} rows")
    except UnicodeDecodeError as error:
        raise UserError(f"{printable(table)}: is not UTF-8 ({error})", "save it as UTF-8") from error
    except csv.Error as error:
        raise UserError(f"{printable(table)}, row {reader.line_num}: {error}", "correct the row") from error
    for number, values in enumerate(rows):
        excess = {EXCESS: longer[number]} if number in longer else {}
        yield dict.fromkeys(optional, "") | dict(zip(found, values, strict=True)) | excess


class _Lines:
    """The lines of a CSV file; what one row takes, quoted line ends and all, is bounded."""

    def __init__(self, data: bytes) -> None:
        self._file = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline="")
        self.held = 0  # characters since the last whole row

    def __iter__(self) -> Iterator[str]:
        while line := self._file.readline(_MAX_LINE + 1):
            self.held += len(line)
            if self.held > _MAX_LINE:
                raise csv.Error(f"longer than {_MAX_LINE:,} characters")
            yield line


def _parquet_rows(
    table: Path, data: bytes, required: tuple[str, ...], optional: tuple[str, ...]
) -> Iterator[dict[str, str]]:
    try:
        opened = pa.BufferReader(data)
        file = pq.ParquetFile(opened)
        check_decoded(file, opened, _MAX_TEXT_BYTES)
        if file.metadata.num_rows > MAX_ROWS:
            raise UserError(f"{printable(table)}: more than {MAX_ROWS:,} rows", "split it")
        spelled = {name.lower(): name for name in file.schema_arrow.names}
        header = [name.lower() for name in file.schema_arrow.names]
        found = _found_columns(table, header, required, optional)
        nested = [name for name in found if pa.types.is_nested(file.schema_arrow.field(spelled[name]).type)]
        if nested:
            raise UserError(f"{printable(table)}: {nested[0]} holds lists, not one value a row")
        content = file.read(columns=[spelled[name] for name in found]).to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{printable(table)}: damaged, or no Parquet file ({error})") from error
    for row in content:
        yield dict.fromkeys(optional, "") | {
            name: "" if row[spelled[name]] is None else str(row[spelled[name]]) for name in found
        }


def _found_columns(
    table: Path, header: list[str], required: tuple[str, ...], optional: tuple[str, ...]
) -> list[str]:
    """The required columns and those optional ones that are there."""
    for name in (*required, *optional):
        if header.count(name) > 1 or (name in required and name not in header):
            raise UserError(
                f"{printable(table)}: {'no' if name not in header else 'more than one'} column {name}",
                f"the columns {', '.join(required)} are wanted",
            )
    return [name for name in (*required, *optional) if name in header]


# ---- Packed sets, as ``reposer export-set`` writes them: a list, and files that hold a thousand images each.

LIST, LISTED = "train.csv", ("path", "pid", "camid", "label", "synthetic")  # of the layout "list"
PACKED_MANIFEST = "manifest.parquet"
SHARD = re.compile(r"(data/)?train-[0-9]{6,}\.(tar|parquet)", re.ASCII)
_MAX_MANIFEST, _MAX_SHARD = 2**32, 2**34  # bytes that are fetched of a bucket
PACKED_ROWS = pa.schema(
    [
        *((name, pa.string()) for name in ("key", "shard", "file", "sha256")),
        *((name, pa.int64()) for name in ("pid", "camid")),
        ("synthetic", pa.bool_()),
    ]
)


def unpack_set(folder: str | Path, out: str | Path) -> str:
    """The images of a packed layout as files, in the layout "list", which ``prepare table`` reads.

    One file of the set is open at a time, and every image is held against the sha256 of its row.

    Args:
        folder: written by :func:`export_set` in a packed layout, here or elsewhere; or in a bucket.
        out: new folder.

    Returns:
        What was written where, to print.

    Raises:
        UserError: no packed set, a damaged one, or ``out`` exists.
        DiskError: the disk refuses.
    """
    out = Path(out)
    if out.exists():
        raise UserError(f"{out}: exists", "choose a new folder")
    with _fetched(folder) as (here, fetch):
        counts = _unpack(str(folder), here, fetch, out)
    return f"{out}: {counts[False]:,} real and {counts[True]:,} generated images, layout list"


def _unpack(name: str, folder: Path, fetch: Callable[[str], None], out: Path) -> Counter[bool]:
    """``name``: of the set, for messages."""
    place = contained(folder, PACKED_MANIFEST)
    if not place.is_file():
        raise UserError(f"{printable(name)}: is no packed set", "give one that export-set has written")
    pids: set[int] = set()
    with _packed_rows(place) as rows:
        for part in rows:
            pids.update(row["pid"] for row in part if not row["synthetic"])
    labels = {pid: rank for rank, pid in enumerate(sorted(pids))}
    made_folder(out.parent)
    counts = Counter[bool]()
    number = 0  # of a row, from 1
    with atomic_folder(out) as building, _packed_rows(place) as rows:
        made_folder(building, IMAGES)
        with (building / LIST).open("x", newline="", encoding="utf-8") as listed:
            writer = csv.writer(listed, lineterminator="\n")
            writer.writerow(LISTED)
            for part in rows:
                shard = part[0]["shard"]
                fetch(shard)
                contents = _contents(name, folder, shard)
                for row, content in zip_longest(part, contents):
                    number += 1
                    if row is None or content is None:
                        few = "more" if row is None else "fewer"
                        raise _damaged(name, shard, f"holds {few} images than {PACKED_MANIFEST}", number)
                    file, data = content
                    if file != row["file"] or sha256_bytes(data) != row["sha256"]:
                        problem = f"{printable(row['file'])} differs from its sha256"
                        raise _damaged(name, shard, problem, number)
                    target = unlinked(building, f"{IMAGES}/{file}")
                    if target.exists():
                        raise _damaged(name, shard, f"{printable(file)} is of an earlier row too", number)
                    write_new(target, data)
                    label = labels.get(row["pid"], -1)
                    writer.writerow(
                        [f"{IMAGES}/{file}", row["pid"], row["camid"], label, int(row["synthetic"])]
                    )
                    counts[row["synthetic"]] += 1
    return counts


def _damaged(name: str, shard: str, reason: str, row: int = 0) -> UserError:
    """``row``: of the list, from 1."""
    where = f" (row {row:,} of {PACKED_MANIFEST})" if row else ""
    return UserError(f"{printable(name)}/{printable(shard)}: {reason}{where}", "export the set again")


@contextmanager
def _packed_rows(place: Path) -> Iterator[Iterator[list[dict[str, Any]]]]:
    """The rows of each file of a packed set, whose names were looked at."""
    require_regular(place, place.parent)
    source = parquet_source(place)
    with foreign_values(place), pq.ParquetFile(source) as file:
        if not file.schema_arrow.equals(PACKED_ROWS):
            raise UserError(f"{printable(place)}: is no list of a packed set", "export the set again")
        check_decoded(file, source)

        def parts() -> Iterator[list[dict[str, Any]]]:
            for group in range(file.num_row_groups):
                rows: list[dict[str, Any]] = file.read_row_group(group, use_threads=False).to_pylist()
                if len({row["shard"] for row in rows}) != 1:
                    raise ValueError("a group of rows is of several files")
                if not SHARD.fullmatch(str(rows[0]["shard"])):
                    raise ValueError(f"{printable(str(rows[0]['shard'])[:80])} is no file of a packed set")
                for row in rows:
                    check_name(row["file"])
                    if None in row.values():
                        raise ValueError("a value is missing")
                yield rows

        yield parts()


def _contents(name: str, folder: Path, shard: str) -> Iterator[tuple[str, bytes]]:
    """The names and bytes of the images in a file of a packed set, in its order."""
    place = contained(folder, shard)
    require_regular(place, folder)
    try:
        yield from _parquet_images(place) if place.suffix == ".parquet" else _tar_images(place)
    except (tarfile.TarError, OSError, pa.ArrowException, EOFError, ValueError, RecursionError) as error:
        raise _damaged(name, shard, (str(error).splitlines() or ["is cut"])[0]) from error


def _parquet_images(place: Path) -> Iterator[tuple[str, bytes]]:
    """Raises ValueError: the column "image" is not one of names and bytes."""
    images = read_table(place, ["image"])
    kind = images.schema.field("image").type if "image" in images.column_names else pa.null()
    held = {field.name: str(field.type) for field in kind} if pa.types.is_struct(kind) else {}
    if "binary" not in held.get("bytes", "") or "string" not in held.get("path", ""):
        raise ValueError("has no column image of bytes and path")
    for image in images["image"].to_pylist():
        if image is None or None in (image["path"], image["bytes"]):
            raise ValueError("a row holds no image")
        yield image["path"], image["bytes"]


_MOST_BETWEEN = 16  # members of a tar file between two images, each with a header of some length
_MAX_HEADER = 4096  # bytes of what a header says on top, as a name of more than 100 bytes


class _Member(tarfile.TarInfo):
    """A member whose header was looked at: Python 3.11 goes by a size below 0, back to what it has read."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        member = super().frombuf(buf, encoding, errors)
        most = MAX_FILE_BYTES if member.isfile() else _MAX_HEADER
        if not 0 <= member.size <= most or member.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError(f"{printable(member.name)} is no file of an image's size")
        return member


def _tar_images(place: Path) -> Iterator[tuple[str, bytes]]:
    """Raises ValueError: a member is no file of an image's size, or leads back, or too many are no image."""
    with tarfile.open(place, "r:", tarinfo=_Member) as tar:
        begin, between = -1, 0
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # else it keeps them all
            if not (member.isfile() and 0 <= member.size <= MAX_FILE_BYTES and member.offset > begin):
                raise ValueError(f"{printable(member.name)} is no file of an image's size")
            begin, between = member.offset, between + 1
            if between > _MOST_BETWEEN:
                raise ValueError(f"holds more than {_MOST_BETWEEN} other files for an image")
            if not member.name.endswith(".json"):
                content, between = tar.extractfile(member), 0
                yield member.name, content.read() if content is not None else b""


@contextmanager
def _fetched(folder: str | Path) -> Iterator[tuple[Path, Callable[[str], None]]]:
    """Where a packed set lies, and what fetches a file of it from a bucket, in place of the one before."""
    if not is_remote(folder):
        yield Path(folder), lambda name: None
        return
    bucket, held = Bucket(str(folder)), set[str]()
    with TemporaryDirectory() as scratch:
        here = Path(scratch)

        def fetch(name: str) -> None:
            if name not in held:
                while held:
                    delete(here, held.pop())
                made_folder(here, name.rpartition("/")[0])
                bucket.get(name, unlinked(here, name), _MAX_SHARD)
                held.add(name)

        bucket.get(PACKED_MANIFEST, here / PACKED_MANIFEST, _MAX_MANIFEST)
        yield here, fetch
