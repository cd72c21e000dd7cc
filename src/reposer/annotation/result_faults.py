"""Are keypoints.csv, problems.csv and report.json what the rows of the manifest say?"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from reposer.annotation.journal import BOOK, Rows
from reposer.annotation.results import KEYPOINTS, PROBLEMS, REPORT, count, listed_poses, row_problems
from reposer.config import read_json
from reposer.data.keypoints import write_keypoints_csv
from reposer.data.problems import AnnotationProblem, text_cell
from reposer.errors import UserError
from reposer.paths import RefusedFileError, read_regular

_MAX_BYTES = 1_000_000_000  # of a CSV


def result_faults(root: Path, rows: Rows, *, with_keypoints: bool) -> Iterator[str]:
    """What differs, naming file and line or field.

    Args:
        root: the annotated folder.
        rows: the whole manifest.
        with_keypoints: whether the job looks for key-points.
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
