"""Problems of annotation files: bad rows are listed and skipped, good rows are kept, nothing is guessed."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path

from reposer.errors import UserError


@dataclass(frozen=True, slots=True)
class AnnotationProblem:
    """One thing that is wrong with one annotation; a line of a report."""

    file: str  # path of the annotation file
    row: int  # line number, the header is 1; 0 for a file that has no rows (an image)
    field: str  # column, joint or property that is wrong
    message: str  # what is wrong and what was done about it

    def __str__(self) -> str:
        return f"{self.file}{f' row {self.row}' if self.row else ''}, {self.field}: {self.message}"


class AnnotationError(UserError):
    """An annotation file that cannot be used at all; ``problem_row`` is its line for a report."""

    def __init__(self, problem: AnnotationProblem, advice: str = "") -> None:
        super().__init__(str(problem), advice)
        self.problem_row = problem


def annotation_error(path: str | Path, field: str, message: str, advice: str = "", row: int = 0) -> AnnotationError:
    """The error about ``field`` of the file ``path``, ready to be raised."""
    return AnnotationError(AnnotationProblem(str(path), row, field, message), advice)


def read_regular_file(path: Path) -> bytes:
    """The bytes of a regular file; a folder, FIFO, device or missing file raises AnnotationError instead of blocking."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a FIFO would wait for ever
            raise annotation_error(path, "file", "is not a regular file", "give the path of an annotation file")
        return path.read_bytes()
    except OSError as error:
        raise annotation_error(path, "file", f"cannot be read ({error.strerror})", "check the path") from None


def text_lines(path: Path) -> list[bytes]:
    """Lines of a UTF-8 file without line ends; a byte-order mark and Windows line ends are dropped.

    Split at line feeds only, unlike ``str.splitlines``, so that row numbers agree with every editor.
    """
    lines = read_regular_file(path).removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return [line.removesuffix(b"\r") for line in lines]
