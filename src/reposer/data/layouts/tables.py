"""Any data set as a table: CSV or Parquet with the columns path, pid, camid, split; others are ignored."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from reposer.data.layouts.labeled_files import LabeledFile, Listing, Problems, labeled
from reposer.data.problems import AnnotationProblem
from reposer.data.records import SPLITS
from reposer.errors import UserError
from reposer.paths import check_relative, printable, read_regular

COLUMNS = ("path", "pid", "camid", "split")
_MAX_FILE_BYTES = 2_000_000_000
_MAX_DECODED_BYTES = 4_000_000_000  # Parquet compresses: a small file may hold a bomb


def list_table(root: Path, table: str | Path) -> Listing:
    """The rows of a table; bad ones are listed by their number (the CSV's header is row 1).

    Args:
        root: folder that the paths are relative to.
        table: .csv (UTF-8, with a header) or .parquet; pid -1 junk, 0 distractor; split one of
            train, val, query, gallery.

    Raises:
        UserError: another kind of file, damaged, or a column is missing.
    """
    table = Path(table)
    problems: Problems = []
    files: list[LabeledFile] = []
    seen: dict[str, int] = {}
    first, rows = read_rows(table, COLUMNS)
    for number, row in enumerate(rows, start=first):
        if wrong := row_problem(row, seen):
            field, message, rule = wrong
            problems.append(AnnotationProblem(table.name, number, field, f"{message}; left out", rule))
            continue
        seen[row["path"]] = number
        files.append(labeled(row["path"], int(row["pid"]), int(row["camid"]), row["split"]))
    return files, problems


def read_rows(
    table: Path, required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> tuple[int, Iterator[dict[str, str]]]:
    """The number of the first row of a CSV or Parquet file, and its rows as text; no value is "".

    Args:
        required: columns that the table must have, once each.
        optional: columns that it may have; "" where it has not.

    Raises:
        UserError: another kind of file, damaged, no column of a required name or more than one.
    """
    data = read_regular(table, max_bytes=_MAX_FILE_BYTES)
    if table.suffix.lower() == ".csv":
        return 2, _csv_rows(table, data, required, optional)
    if table.suffix.lower() == ".parquet":
        return 1, _parquet_rows(table, data, required, optional)
    raise UserError(f"{printable(table)}: unknown kind of table", "give a .csv or .parquet file")


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
        return "split", f"{printable(row['split'][:80])!r} is none of {', '.join(SPLITS)}", "bad-label"
    if row["path"] in seen:
        message = f"{printable(row['path'])} stands in row {seen[row['path']]} already"
        return "path", message, "repeated-path"
    return None


def _csv_rows(
    table: Path, data: bytes, required: tuple[str, ...], optional: tuple[str, ...]
) -> Iterator[dict[str, str]]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{printable(table)}: is not UTF-8 ({error})", "save it as UTF-8") from error
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        header = [name.strip() for name in next(reader, [])]
        found = _found_columns(table, header, required, optional)
        rows = list(reader)
    except csv.Error as error:
        raise UserError(f"{printable(table)}, row {reader.line_num}: {error}", "correct the row") from error
    places = {name: header.index(name) for name in found}
    for cells in rows:
        padded = [*cells, *[""] * len(header)]
        yield dict.fromkeys(optional, "") | {name: padded[place].strip() for name, place in places.items()}


def _parquet_rows(
    table: Path, data: bytes, required: tuple[str, ...], optional: tuple[str, ...]
) -> Iterator[dict[str, str]]:
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        groups = [file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups)]
        if not 0 <= sum(groups) <= _MAX_DECODED_BYTES:
            raise UserError(f"{printable(table)}: says that it unpacks to {sum(groups):,} bytes")
        found = _found_columns(table, file.schema_arrow.names, required, optional)
        content = file.read(columns=found).to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{printable(table)}: damaged, or no Parquet file ({error})") from error
    for row in content:
        yield dict.fromkeys(optional, "") | {n: "" if row[n] is None else str(row[n]) for n in found}


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
