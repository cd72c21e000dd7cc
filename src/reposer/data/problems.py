"""Problems of annotation files: bad rows are listed and skipped, good rows are kept, nothing is guessed."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from reposer.errors import UserError
from reposer.storage.paths import printable, read_regular

_MAX_FILE_BYTES = 1_000_000_000


@dataclass(frozen=True, slots=True)
class AnnotationProblem:
    """One thing that is wrong with one annotation; a line of a report."""

    file: str  # path of the annotation file
    row: int  # line number, the header is 1; 0 for a file that has no rows (an image)
    field: str  # column, joint or property that is wrong
    message: str  # what is wrong and what was done about it
    rule: str = "bad-annotation"  # short id of the rule that found it (the tables of docs/reference/rules.md)

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
