"""What is known of a data set's images: problems of their files, the manifest of those that are usable, and
which of them somebody kept or dropped by hand.

The manifest is one Parquet file that any Parquet reader reads; same records, same bytes.

A row is a PersonRecord; paths are relative to the data set's root. Keypoints are a list of 2 J numbers, x0,
y0, x1, y1, ..., NaN for a missing joint. The reader trusts nothing: a manifest may come from somebody else.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from reposer.config import canonical_json, foreign_values, read_json
from reposer.errors import UserError, known
from reposer.storage.files import sha256_bytes, write_atomic
from reposer.storage.lock import in_turn
from reposer.storage.paths import RefusedFileError, check_relative, printable, read_regular, unlinked
from reposer.storage.tables import check_decoded
from reposer.structures import NUM_JOINTS, PersonRecord

# ---- Problems of annotation files: bad rows are listed and skipped, good rows are kept, nothing is guessed.

_MAX_FILE_BYTES = 1_000_000_000


@dataclass(frozen=True, slots=True)
class AnnotationProblem:
    """One thing that is wrong with one annotation; a line of a report."""

    file: str  # path of the annotation file
    row: int  # line number, the header is 1; 0 for a file that has no rows (an image)
    field: str  # column, joint or property that is wrong
    message: str  # what is wrong and what was done about it
    rule: str = "bad-annotation"  # short id of the rule that found it (the tables of docs/reference/rules.md)
    name: str = ""  # of the image that a bad row is about, as the row has it

    def __str__(self) -> str:
        row = f", row {self.row}" if self.row else ""
        return f"{self.file}{row}, {self.field}: {self.message}"


class AnnotationError(UserError):
    """An annotation file that cannot be used at all.

    Args:
        path: the file, as the user knows it.
        field: column or property that is wrong.
        message: what is wrong with it.
        advice: what to do about it.
        row: line number; 0 for a file that has no rows.
    """

    def __init__(
        self, path: str | os.PathLike[str], field: str, message: str, advice: str = "", row: int = 0
    ) -> None:
        self.listed = AnnotationProblem(printable(path), row, field, message)
        super().__init__(str(self.listed), advice)


def text_lines(path: Path, root: Path | None = None) -> list[bytes]:
    """Lines of a UTF-8 file without line ends; a byte-order mark and Windows line ends are dropped.

    Split at line feeds only, unlike ``str.splitlines``, so that row numbers agree with every editor.

    Args:
        root: where given, a link that leads outside it is refused.

    Raises:
        RefusedFileError: the file is missing, no regular file, may not be read, or lies outside ``root``.
    """
    data = read_regular(path, max_bytes=_MAX_FILE_BYTES, root=root).removeprefix(b"\xef\xbb\xbf")
    return [line.removesuffix(b"\r") for line in data.split(b"\n")]


def text_cell(text: str) -> str:
    """The text for a table that people open in a spreadsheet: a formula's start gets a ' before it, control
    characters become escapes."""
    shown = printable(text)
    return f"'{shown}" if shown.startswith(("=", "+", "-", "@")) else shown


def problems_csv(problems: Iterable[AnnotationProblem]) -> bytes:
    """The problems as UTF-8 CSV with the header file,row,field,rule,message; row is empty where it is 0."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("file", "row", "field", "rule", "message"))
    for problem in problems:
        cells = map(text_cell, (problem.file, problem.field, problem.rule, problem.message))
        file, field, rule, message = cells
        writer.writerow((file, problem.row or "", field, rule, message))
    return text.getvalue().encode("utf-8", "backslashreplace")


SCHEMA_VERSION = 1
SPLITS = ("train", "val", "query", "gallery")

_KIND, _VERSION = b"reposer.kind", b"reposer.schema_version"
_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("pid", pa.int64(), nullable=False),
        pa.field("camid", pa.int64(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("width", pa.int64(), nullable=False),
        pa.field("height", pa.int64(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("parsing", pa.string()),
        pa.field("mask", pa.string()),
        pa.field("keypoints", pa.list_(pa.float32())),
    ],
    metadata={_KIND: b"person-manifest", _VERSION: str(SCHEMA_VERSION).encode()},
)
_CLOTHES = pa.field("clothes", pa.int64(), nullable=False)  # only where some outfit is known
_SCHEMA_CLOTHES = _SCHEMA.append(_CLOTHES)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_MANIFEST_BYTES = 2_000_000_000
_MAX_DECODED_BYTES = 4_000_000_000  # Parquet compresses: a small file may hold a bomb


def write_manifest(path: str | Path, records: Sequence[PersonRecord]) -> None:
    """Write the records, in their order, atomically; the column clothes only where some record has one.

    Raises:
        UserError: a record that :func:`read_manifest` would refuse.
        DiskError: the disk refuses the file.
    """
    _check_all(records, str(path))
    schema = _SCHEMA_CLOTHES if any(record.clothes >= 0 for record in records) else _SCHEMA
    table = pa.Table.from_pylist([_row(record) for record in records], schema=schema)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_atomic(path, buffer.getvalue())


def read_manifest(path: str | Path) -> list[PersonRecord]:
    """The records of a manifest.

    Raises:
        UserError: no manifest, another schema version, or a bad value; names the file, the row (from 1) and
        the field.
    """
    table = _read_table(Path(path))
    records: list[PersonRecord] = []
    for row, values in enumerate(table.to_pylist(), start=1):
        try:
            records.append(_record(values))
        except ValueError as error:
            raise _bad(str(path), row, str(error)) from error
    _check_all(records, str(path))
    return records


def check_record(record: PersonRecord) -> None:
    """Raise ValueError, naming the field, unless the record may stand in a manifest."""
    if not record.name or "/" in record.name:
        raise ValueError(f"name {record.name!r}: a file name without a folder is wanted")
    for field in ("name", "path", "parsing", "mask"):
        value = getattr(record, field)
        try:
            if value is not None:
                check_relative(value)
        except ValueError as error:
            raise ValueError(f"{field} {value!r}: {error}") from error
    if record.split not in SPLITS:
        raise ValueError(f"split {record.split!r}: one of {', '.join(SPLITS)} is wanted")
    for field, lowest in (("pid", -1), ("camid", 0), ("width", 1), ("height", 1), ("clothes", -1)):
        if not lowest <= getattr(record, field) < 2**31:
            raise ValueError(f"{field} {getattr(record, field)}: at least {lowest} is wanted")
    if not _SHA256.fullmatch(record.sha256):
        raise ValueError(f"sha256 {record.sha256!r}: 64 lower-case hexadecimal digits are wanted")
    if record.keypoints is not None:
        _check_keypoints(record.keypoints)


def _check_keypoints(keypoints: NDArray[np.float32]) -> None:
    if keypoints.shape != (NUM_JOINTS, 2):
        raise ValueError(f"keypoints: shape {keypoints.shape}, ({NUM_JOINTS}, 2) is wanted")
    missing = np.isnan(keypoints)
    if np.isinf(keypoints).any() or (missing[:, 0] != missing[:, 1]).any():
        raise ValueError("keypoints: an infinite coordinate, or a joint of which only x or only y is missing")


def _check_all(records: Iterable[PersonRecord], file: str) -> None:
    rows: dict[str, int] = {}
    for row, record in enumerate(records, start=1):
        try:
            check_record(record)
        except ValueError as error:
            raise _bad(file, row, str(error)) from error
        if record.name in rows:
            raise _bad(file, row, f"name {record.name!r}: stands in row {rows[record.name]} already")
        rows[record.name] = row


def _row(record: PersonRecord) -> dict[str, Any]:
    row = {field: getattr(record, field) for field in _SCHEMA_CLOTHES.names}
    if record.keypoints is not None:
        flat = np.asarray(record.keypoints, np.float32).ravel()
        # one NaN, one hash
        row["keypoints"] = [math.nan if math.isnan(value) else value for value in flat.tolist()]
    return row


def _record(values: dict[str, Any]) -> PersonRecord:
    for field in _SCHEMA_CLOTHES:
        if values.get(field.name, -1) is None and not field.nullable:
            raise ValueError(f"{field.name}: is missing")
    numbers = values["keypoints"]
    if numbers is not None:
        if len(numbers) != 2 * NUM_JOINTS or None in numbers:
            raise ValueError(f"keypoints: {len(numbers)} values, {2 * NUM_JOINTS} numbers are wanted")
        values["keypoints"] = np.array(numbers, np.float32).reshape(NUM_JOINTS, 2)
    return PersonRecord(**values)


def _read_table(path: Path) -> pa.Table:
    advice = "run reposer prepare again"
    try:
        opened = pa.BufferReader(read_regular(path, max_bytes=_MAX_MANIFEST_BYTES))
        file = pq.ParquetFile(opened)
        metadata = file.metadata
        found = metadata.metadata or {}
        if found.get(_KIND) != _SCHEMA.metadata[_KIND]:
            raise UserError(
                f"{path}: a Parquet file, but no manifest of this program", "give manifest.parquet"
            )
        if found.get(_VERSION) != _SCHEMA.metadata[_VERSION]:
            version = found.get(_VERSION, b"nothing").decode(errors="replace")
            raise UserError(f"{path}: schema version {version}, expected {SCHEMA_VERSION}", advice)
        decoded = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
        if not 0 <= decoded <= _MAX_DECODED_BYTES:
            raise UserError(f"{path}: says that it unpacks to {decoded:,} bytes", advice)
        if not any(file.schema_arrow.equals(schema) for schema in (_SCHEMA, _SCHEMA_CLOTHES)):
            raise UserError(f"{path}: its columns are not those of a manifest", advice)
        check_decoded(file, opened)
        return file.read()
    except (UserError, RefusedFileError):
        raise
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise UserError(f"{path}: damaged, or no Parquet file", advice) from error


def _bad(file: str, row: int, what: str) -> UserError:
    return UserError(f"{file}: row {row}: {what}", "correct it or run reposer prepare again")


# ---- What somebody kept or dropped by hand: beside the images of an annotated folder or a generated set.
#
# A decision is about a picture, by its name and the sha256 of its bytes: another picture of that name is not
# meant. It outweighs what a filter decided.

DECISIONS = "decisions.json"
KEEP, DROP = "keep", "drop"
_TURN = f".{DECISIONS}.tmp-00000000"  # a temporary: swept when its holder was killed


@dataclass(frozen=True, slots=True)
class Decision:
    """One picture's."""

    sha256: str  # of the picture that was looked at
    keep: bool


def read_decisions(folder: Path) -> dict[str, Decision]:
    """Name, relative to where the folder's pictures are, -> decision; empty where nobody decided anything.

    Raises:
        UserError: the file is damaged, or holds something else; names the picture.
    """
    path = folder / DECISIONS
    if not os.path.lexists(path):
        return {}
    value = read_json(path)
    with foreign_values(path):
        if value["schema_version"] != SCHEMA_VERSION:
            raise UserError(f"{printable(path)}: is of another version", "restore this file")
        return {_place(path, name): _decision(path, name, one) for name, one in value["decisions"].items()}


def _place(path: Path, name: str) -> str:
    try:
        return check_relative(name)
    except ValueError as error:
        raise UserError(f"{printable(path)}: {printable(name)[:80]}: {error}", "correct it") from error


def _decision(path: Path, name: str, value: Mapping[str, Any]) -> Decision:
    place = f"{printable(path)}: {printable(name)}"
    if not isinstance(value["sha256"], str) or not _SHA256.fullmatch(value["sha256"]):
        raise UserError(f"{place}: sha256 is none", "correct it")
    word = value["decision"] if isinstance(value["decision"], str) else repr(value["decision"])
    return Decision(value["sha256"], known(f"{place}: decision", word, (KEEP, DROP)) == KEEP)


def decide(folder: Path, changes: Mapping[str, Decision | None]) -> dict[str, Decision]:
    """Write decisions, None takes one back, and return all of them; processes take turns.

    Raises:
        UserError: what is there is damaged, or a link.
        DiskError: the disk refuses.
    """
    with in_turn(folder, _TURN):
        decisions = read_decisions(folder)
        for name, decision in changes.items():
            decisions.pop(name, None)
            if decision is not None:
                decisions[check_relative(name)] = decision
        body = {
            name: {"sha256": one.sha256, "decision": KEEP if one.keep else DROP}
            for name, one in sorted(decisions.items())
        }
        text = json.dumps({"schema_version": SCHEMA_VERSION, "decisions": body}, indent=1)
        write_atomic(unlinked(folder, DECISIONS), f"{text}\n".encode())
    return decisions


def kept_by_hand(
    folder: Path, names: Sequence[str], digests: Sequence[str], kept: Sequence[bool] | NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """(N,) ``kept`` with the folder's decisions about these pictures in its place.

    Args:
        folder: that holds decisions.json, or none.
        names, digests: N pictures; an empty digest is not known, and the name alone counts.
        kept: (N,) what was decided without them.
    """
    decided = np.array(kept, np.bool_)
    decisions = read_decisions(folder)
    for i, (name, digest) in enumerate(zip(names, digests, strict=True) if decisions else ()):
        decision = decisions.get(name)
        if decision is not None and digest in ("", decision.sha256):
            decided[i] = decision.keep
    return decided


def decisions_hash(folder: Path) -> str:
    """Hexadecimal sha256 of what was decided; empty where nothing was."""
    decisions = read_decisions(folder)
    lines = [[name, one.sha256, one.keep] for name, one in sorted(decisions.items())]
    return sha256_bytes(canonical_json(lines)) if lines else ""
