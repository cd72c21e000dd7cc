"""What `reposer prepare` found, as JSON for programs and as a summary for people."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from reposer.data.layouts.market1501 import DISTRACTOR, JUNK, OFFICIAL_COUNTS
from reposer.data.records import AnnotationProblem
from reposer.errors import UserError
from reposer.image_rules import ACCEPTED
from reposer.images import MAX_FILE_BYTES
from reposer.storage.outputs import MARK, SEAL
from reposer.storage.paths import check_relative, contained, printable, read_regular
from reposer.structures import PersonRecord, unknown_cameras

# ---- Finds what spoils an experiment though every file is sound: copies, people on both sides of the split,
# generated pictures among the test images.

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
    cameras = _cameras_known(records)
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

    A generated picture says what it is in its metadata (generation/pictures.py marks every one, and so do
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


def _cameras_known(records: Sequence[PersonRecord]) -> bool:
    """Whether the evaluation, which compares queries and gallery alone, will know any camera of them."""
    tested = [record.camid for record in records if record.split in ("query", "gallery")]
    return not unknown_cameras(np.array(tested, np.int64)).all()


def query_notes(records: Sequence[PersonRecord]) -> list[str]:
    """A note where queries can find nobody: no gallery image of their person, or none of another camera.

    Where no camera is known, every image counts as a camera of its own, as in the evaluation.
    """
    queries = [record for record in records if record.split == "query"]
    cameras: dict[int, set[int]] = {}
    for record in records:
        if record.split == "gallery":
            cameras.setdefault(record.pid, set()).add(record.camid)
    known = _cameras_known(records)
    absent = [record for record in queries if record.pid not in cameras]
    own = [r for r in queries if known and r.pid in cameras and cameras[r.pid] == {r.camid}]
    whys = [
        (absent, "of people whom the gallery does not show"),
        (own, "of people whom the gallery shows in the query's camera alone"),
    ]
    return [
        f"{len(found):,} of {len(queries):,} queries are {why}: no score counts them"
        f" (first {printable(found[0].path)})"
        for found, why in whys
        if found
    ]


SCHEMA_VERSION = 1

_TITLES = {"train": "training", "val": "held out", "query": "query", "gallery": "gallery"}
_WARNINGS = (
    *("copy", "copy-other-person", "copy-train-test", "person-train-test", "person-train-val"),
    *("official-count", "no-camera", "item-train-test", "missing-list", "joint-outside"),
    *("person-zero", "names-disagree", "parsing-labels", "mask-inverted", "odd-parsing", "odd-mask"),
    *("renumbered", "splits-disagree", "small-keypoints", "sides-swapped"),
)
_UNREAD = ("unread-folder", "unread-file", "hidden")
_ANNOTATIONS = (
    *("bad-parsing", "bad-mask", "bad-keypoints", "unknown-image"),
    *("missing-parsing", "missing-mask", "missing-keypoints"),
)
_ADVICE = {
    "Left out": "mend or replace these files and prepare again; the rest is ready for use",
    "Annotations not used": "mend them and prepare again; the images are used without them",
    "Not read": "nothing, unless a line names images or annotations that you want; then rename or name them",
    "Used by a rule": "nothing, unless a rule does not suit you (docs/reference/rules.md)",
    "Warnings": "take the option that a line names, or remove the files that are wrong; prepare again",
}


@dataclass(frozen=True, slots=True)
class PrepareReport:
    """Counts of a prepared folder; everything in it follows from the data set and the configuration."""

    root: str  # the data set's folder
    out: str  # the prepared folder
    config: dict[str, Any]  # the arguments that decide the result
    splits: dict[str, dict[str, int]]  # split -> images, people, cameras, junk, distractors
    annotations: dict[str, int]  # images with a usable "parsing", "mask", "keypoints"; "posed" has a joint
    pairs: dict[str, int]  # "train", "val" -> length of the pair list
    problems: dict[str, int]  # rule -> count; every one is a line of problems.csv
    examples: dict[str, str]  # rule -> its first line
    manifest_sha256: str
    notes: list[str] = field(default_factory=list)  # what follows from the labels, for people

    def to_json(self) -> bytes:
        """All fields and the schema version, as UTF-8 JSON."""
        fields = {"schema_version": SCHEMA_VERSION, MARK: SEAL, **asdict(self)}
        return (json.dumps(fields, indent=2, sort_keys=True) + "\n").encode()

    def summary(self) -> str:
        """Lines for people: what was found, what is wrong, what to do."""
        dry = bool(self.config.get("dry_run"))
        lines = [f"{self.root} -> {self.out}"]
        if dry:
            lines = [f"{self.root}: a dry run; no file was decoded, nothing was written"]
        for split, title in _TITLES.items():
            if split in self.splits:
                lines.append(f"  {title:<12}{_people(self.splits[split])}")
        if "layout" not in self.config:  # Market-1501's
            lines += [f"  {'official':<12}{self._official()}"]
        images = sum(counts["images"] for counts in self.splits.values())
        for kind, title in (("parsing", "parsing maps"), ("mask", "masks"), ("keypoints", "keypoints")):
            posed = "" if dry else f", {self.annotations['posed']:,} with a joint"
            posed = posed if kind == "keypoints" else ""
            lines.append(f"  {title:<14}{self.annotations[kind]:,} of {images:,} images{posed}")
        if dry:
            return "\n".join([*lines, *(f"  {note}" for note in self.notes), *self._problem_lines()])
        lines.append(
            f"  {'pairs':<14}{self.pairs['train']:,} for training, {self.pairs['val']:,} for validation"
        )
        lines += [f"  {note}" for note in self.notes]
        if not self.pairs["train"] and not self.annotations["posed"] and self.config.get("pairs") is None:
            lines.append(
                "  without keypoints no pairs can be made: add keypoints.csv, or take --pairs parsing where"
                " there are parsing maps, and prepare again"
            )
        return "\n".join([*lines, *self._problem_lines()])

    def _official(self) -> str:
        """How many of Market-1501's images are here; other data sets in its layout may ignore the line."""
        found = {split: counts["images"] for split, counts in self.splits.items()}
        found["train"] = found.get("train", 0) + found.pop("val", 0)
        parts = [
            f"{_TITLES[split]} {found.get(split, 0):,}/{count:,}" for split, count in OFFICIAL_COUNTS.items()
        ]
        return f"of Market-1501's images: {', '.join(parts)}"

    def _problem_lines(self) -> list[str]:
        if not self.problems:
            return ["Nothing is left out." if self.config.get("dry_run") else "Nothing is wrong."]
        lines = []
        for title, advice in _ADVICE.items():
            rules = [rule for rule in self.problems if _section(rule) == title]
            if rules:
                lines.append(f"{title} (what to do: {advice}):")
                lines += [f"  {self.problems[rule]:>6,}  {rule}: {self.examples[rule]}" for rule in rules]
        if self.config.get("dry_run"):
            return lines
        return [*lines, f"Every one is listed in {self.out}/problems.csv"]


def count_splits(records: Sequence[PersonRecord]) -> dict[str, dict[str, int]]:
    """Images, people, cameras, junk and distractors of each split that occurs."""
    found = {}
    for split in _TITLES:
        chosen = [record for record in records if record.split == split]
        if chosen:
            pids = Counter(record.pid for record in chosen)
            found[split] = {
                "images": len(chosen),
                "people": len(pids.keys() - {JUNK, DISTRACTOR}),
                "cameras": len({record.camid for record in chosen}),
                "junk": pids[JUNK],
                "distractors": pids[DISTRACTOR],
            }
    return found


def count_annotations(records: Sequence[PersonRecord]) -> dict[str, int]:
    """Records with each kind of annotation; "posed" counts those with at least one joint."""
    kinds: Mapping[str, list[bool]] = {
        "parsing": [record.parsing is not None for record in records],
        "mask": [record.mask is not None for record in records],
        "keypoints": [record.keypoints is not None for record in records],
        "posed": [r.keypoints is not None and not bool(np.isnan(r.keypoints).all()) for r in records],
    }
    return {kind: sum(found) for kind, found in kinds.items()}


def count_problems(problems: Sequence[AnnotationProblem]) -> tuple[dict[str, int], dict[str, str]]:
    """Count and first line of each rule."""
    examples: dict[str, str] = {}
    for problem in problems:
        examples.setdefault(problem.rule, str(problem))
    return dict(sorted(Counter(problem.rule for problem in problems).items())), examples


def _people(counts: dict[str, int]) -> str:
    text = f"{counts['images']:>7,} images {counts['people']:>6,} people {counts['cameras']:>3} cameras"
    if counts["junk"] or counts["distractors"]:
        text += f" (besides {counts['junk']:,} junk, {counts['distractors']:,} distractor images)"
    return text


def _section(rule: str) -> str:
    if rule in ACCEPTED:
        return "Used by a rule"
    if rule in _UNREAD:
        return "Not read"
    if rule in _WARNINGS:
        return "Warnings"
    return "Annotations not used" if rule in _ANNOTATIONS else "Left out"
