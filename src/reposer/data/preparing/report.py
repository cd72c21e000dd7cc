"""What `reposer prepare` found, as JSON for programs and as a summary for people."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from reposer.data.layouts.market1501 import DISTRACTOR, JUNK, OFFICIAL_COUNTS
from reposer.data.problems import AnnotationProblem
from reposer.image_rules import ACCEPTED
from reposer.seals import MARK, SEAL
from reposer.structures import PersonRecord

SCHEMA_VERSION = 1

_TITLES = {"train": "training", "val": "held out", "query": "query", "gallery": "gallery"}
_WARNINGS = (
    *("copy", "copy-other-person", "copy-train-test", "person-train-test", "person-train-val"),
    *("official-count", "no-camera", "item-train-test", "missing-list", "joint-outside"),
    *("person-zero", "names-disagree", "parsing-labels", "mask-inverted", "odd-parsing", "odd-mask"),
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
    "Used by a rule": "nothing, unless a rule does not suit you (docs/data.md)",
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
        for kind, title in (("parsing", "parsing maps"), ("mask", "masks"), ("keypoints", "key-points")):
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
                "  without key-points no pairs can be made: add keypoints.csv, or take --pairs parsing where"
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
