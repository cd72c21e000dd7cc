"""Any data set as a table: CSV or Parquet with the columns path, pid, camid, split; others are ignored."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from reposer.data.layouts.labeled_files import LabeledFile, Listing, Problems, labeled
from reposer.data.records import SPLITS, AnnotationProblem
from reposer.errors import UserError
from reposer.storage.paths import check_relative, printable, read_regular
from reposer.storage.tables import check_decoded

# Other words for a split; "test" is the gallery beside "query", otherwise nobody knows what it is.
SPLIT_WORDS = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "probe": "query"}
COLUMNS = ("path", "pid", "camid", "split")
_MAX_FILE_BYTES = 2_000_000_000
_MAX_CSV_BYTES, MAX_ROWS = 1_000_000_000, 5_000_000  # the largest sets of persons have 4 million images
_MAX_LINE, _MAX_COLUMNS = 1_000_000, 1000  # characters of a row, cells
_MAX_TEXT_BYTES = 1_000_000_000  # of a Parquet table, unpacked


def list_table(root: Path, table: str | Path, zero_based: bool = False) -> Listing:
    """The rows of a table; bad ones are listed by their number (the CSV's header is row 1).

    Args:
        root: folder that the paths are relative to.
        table: .csv (UTF-8, with a header) or .parquet; pid -1 junk, 0 distractor; split one of
            train, val, query, gallery (or "test" beside "query", "valid", "probe"; see SPLIT_WORDS).
        zero_based: people are counted from 0: 1 is added to every number from 0 on.

    Raises:
        UserError: another kind of file, damaged, or a column is missing.
    """
    table = Path(table)
    problems: Problems = []
    files: list[LabeledFile] = []
    seen: dict[str, int] = {}
    first, rows = read_rows(table, COLUMNS)
    for number, row in enumerate(rows, start=first):
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


def _put_right(rows: Iterator[dict[str, str]]) -> Iterator[dict[str, str]]:
    """Rows as spreadsheets, Windows and other programs write them, as this program does."""
    content = list(rows)
    words = {row["split"].strip().lower() for row in content if "split" in row}
    asked = not words.isdisjoint({"query", "probe"})
    for row in content:
        for field in row.keys() & {"pid", "camid"}:
            if re.fullmatch(r"-?[0-9]+\.0*", row[field], re.ASCII):
                row[field] = row[field].partition(".")[0]
        row["path"] = row["path"].replace("\\", "/")
        while row["path"].startswith("./"):
            row["path"] = row["path"][2:].lstrip("/")
        if "split" in row:
            word = row["split"].strip().lower()
            row["split"] = SPLIT_WORDS.get(word, word if word in SPLITS else row["split"])
            if word in ("test", "testing") and asked and "gallery" not in words:
                row["split"] = "gallery"
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
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        if len(header) > _MAX_COLUMNS:
            raise csv.Error(f"more than {_MAX_COLUMNS:,} columns")
        found = _found_columns(table, header, required, optional)
        places = [header.index(name) for name in found]
        for cells in reader:
            lines.held = 0
            rows.append([cells[place].strip() if place < len(cells) else "" for place in places])
            if len(rows) > MAX_ROWS:
                raise csv.Error(f"more than {MAX_ROWS:,} rows")
    except UnicodeDecodeError as error:
        raise UserError(f"{printable(table)}: is not UTF-8 ({error})", "save it as UTF-8") from error
    except csv.Error as error:
        raise UserError(f"{printable(table)}, row {reader.line_num}: {error}", "correct the row") from error
    for values in rows:
        yield dict.fromkeys(optional, "") | dict(zip(found, values, strict=True))


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
