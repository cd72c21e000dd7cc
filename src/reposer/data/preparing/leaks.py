"""Finds what spoils an experiment though every file is sound: copies, people on both sides of the split,
generated pictures among the test images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reposer.data.problems import AnnotationProblem
from reposer.errors import UserError
from reposer.images import MAX_FILE_BYTES
from reposer.paths import check_relative, contained, printable, read_regular
from reposer.structures import PersonRecord

TRAINING = ("train", "val")  # splits made of the training folder
_MARK = b"trainedAlgorithmicMedia"  # IPTC digital source type of a generated picture, in its XMP packet


def find_leaks(
    records: Sequence[PersonRecord], training: tuple[str, ...] = TRAINING
) -> list[AnnotationProblem]:
    """Warnings about files of the same bytes, and about people of both the training and the test folders.

    Rules: ``copy`` (same bytes, same person; of a query that is kept in the gallery the line says what scores
    make of it), ``copy-other-person`` (same bytes under two pids: one label is
    wrong), ``copy-train-test`` (same bytes in the training folder and in query or gallery),
    ``person-train-test`` (a pid in both; junk and distractors aside; people held out in val count as tested
    where there is no query), ``person-train-val`` (a pid in train and val, with queries besides). A file that
    breaks two rules is listed twice.

    Args:
        training: the splits that are no test; of DeepFashion, whose test images are "val", only "train".
    """
    cameras = any(record.camid for record in records)
    first: dict[str, PersonRecord] = {}
    problems: list[AnnotationProblem] = []
    for record in records:
        other = first.setdefault(record.sha256, record)
        if other is not record:
            problems += [
                AnnotationProblem(
                    record.path, 0, "content", f"has the same bytes as {other.path}; {text}", rule
                )
                for rule, text in _copy_rules(record, other, training, cameras)
            ]
    return problems + _shared_people(records, training)


def _shared_people(records: Sequence[PersonRecord], training: tuple[str, ...]) -> list[AnnotationProblem]:
    """People in two splits that must hold different ones, by the first image on the tested side."""
    first: dict[str, dict[int, str]] = {}  # split -> pid -> path
    for record in records:
        if record.pid > 0:
            first.setdefault(record.split, {}).setdefault(record.pid, record.path)
    train, val = first.get("train", {}), first.get("val", {})
    tested: dict[int, str] = {}
    for split, people in first.items():
        if split not in training:
            tested = people | tested
    problems = []
    for pid in sorted(tested.keys() & {p for s in training for p in first.get(s, {})}):
        message = f"person {pid} is in the training folder too; test people must not be trained on"
        problems.append(AnnotationProblem(tested[pid], 0, "pid", message, "person-train-test"))
    if "val" in training:
        rule = "person-train-val" if "query" in first else "person-train-test"
        for pid in sorted(train.keys() & val.keys()):
            message = f"person {pid} is in train too; held-out people must not be trained on"
            problems.append(AnnotationProblem(val[pid], 0, "pid", message, rule))
    return problems


def refuse_synthetic(root: Path, records: Sequence[PersonRecord]) -> None:
    """Refuse generated pictures in query, gallery or val: scores on them would say nothing about people.

    A generated picture says what it is in its metadata (generation/outputs.py marks every one, and so do
    other tools that follow IPTC's Photo Metadata Standard).

    Raises:
        UserError: names the first such file and their number.
    """
    marked = [
        record
        for record in records
        if record.split != "train"
        and _MARK in read_regular(contained(root, record.path), max_bytes=MAX_FILE_BYTES, root=root)
    ]
    if marked:
        place, more = printable(root / check_relative(marked[0].path)), len(marked) - 1
        others = f" (and {more} files more)" if more else ""
        raise UserError(
            f"{place}: is a generated picture among the {marked[0].split} images{others}",
            "keep them out of the test folders, and of the training folder where people are held out",
        )


def _copy_rules(
    record: PersonRecord, other: PersonRecord, training: tuple[str, ...], cameras: bool
) -> list[tuple[str, str]]:
    rules = []
    if (record.split in training) != (other.split in training):
        rules.append(("copy-train-test", "a test image must not be trained on"))
    if record.pid != other.pid:
        rules.append(("copy-other-person", f"pids {record.pid} and {other.pid} cannot both be right"))
    return rules or [("copy", _copy_text(record, other, cameras))]


def _copy_text(record: PersonRecord, other: PersonRecord, cameras: bool) -> str:
    """What follows from a copy of the same person: a query may stand in the gallery on purpose."""
    if {record.split, other.split} != {"query", "gallery"}:
        return "one of them is enough"
    if not cameras:
        return "no camera is known, so this query finds itself: take it out of the gallery"
    if record.camid != other.camid:
        return f"cameras {record.camid} and {other.camid} cannot both be right, and this query finds itself"
    return "a query in the gallery: scores leave out its own camera, and so this image; keep both if you like"
