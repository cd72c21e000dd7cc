"""What a finished annotation job writes from its journal: keypoints CSV, problems, counts, the page's parts.

Nothing here depends on when or in how many calls the job was done: the same journal gives the same bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from reposer.annotation.journal import BOOK, AnnotationJob, read_book
from reposer.annotation.overview import FLAGS, write_overview
from reposer.data.keypoints import Pose, write_keypoints_csv
from reposer.data.label_files import read_mask
from reposer.data.parsing import LIP_LABELS
from reposer.data.preparing.annotation_lookup import SeenMasks
from reposer.data.problems import AnnotationProblem, problems_csv
from reposer.image_rules import ACCEPTED
from reposer.jobs.shards import Rows, Work
from reposer.storage.files import write_atomic
from reposer.storage.paths import contained, printable
from reposer.structures import NUM_JOINTS

KEYPOINTS, PROBLEMS, REPORT = "keypoints.csv", "problems.csv", "report.json"
_SHOWN = 10  # rules or flags in the printed summary


@dataclass(slots=True)
class AnnotationReport:
    """Outcome of ``annotate``; all but the last two fields stand in report.json."""

    images: int  # that were looked at
    annotated: int
    left_out: int  # images that a rule refused
    rules: dict[str, int]  # lines of problems.csv by rule
    flags: dict[str, int]  # images by flag of quality.FLAGS
    labels: dict[str, int]  # images in which a LIP-20 label occurs
    root: Path = Path()
    work: Work = field(default_factory=Work)

    def __str__(self) -> str:
        work = self.work
        there = f", {work.kept:,} were done before" if work.kept else ""
        lines = [f"{self.root}: {work.written:,} images annotated{work.speed()}{there}", *work.notes]
        if self.left_out:
            lines.append(
                f"{self.left_out:,} of {self.images:,} images left out, see {self.root / BOOK / PROBLEMS}"
            )
        lines += [f"  {rule}: {count:,}" for rule, count in list(self.rules.items())[:_SHOWN]]
        if self.flags:
            lines.append("worth a look:")
        lines += [f"  {flag}: {count:,} ({FLAGS[flag]})" for flag, count in self.flags.items()]
        return "\n".join(lines)


def write_results(
    job: AnnotationJob,
    work: Work,
    problems: Sequence[AnnotationProblem],
    *,
    with_keypoints: bool,
    own_mask: Callable[[str], str] = str,
) -> AnnotationReport:
    """Write everything beside the journal, and the keypoints where there are any.

    Args:
        job: finished.
        work: what was done.
        problems: those that stand in no row of the journal.
        with_keypoints: whether keypoints were looked for.
        own_mask: the user's mask of an image, for messages.

    Raises:
        UserError: the journal is not finished; a full disk.
    """
    root, book = job.folder.root, job.folder.book
    rows = read_book(book).to_pylist()
    good = [row for row in rows if not row["left_out"]]
    doubts = _mask_doubts(job, good, own_mask)
    work.notes += (str(doubt) for doubt in doubts if doubt.rule == "mask-inverted")
    listed = [*problems, *doubts, *row_problems(rows)]
    if with_keypoints:
        poses, unfit = listed_poses(good)
        listed += unfit
        write_keypoints_csv(root / KEYPOINTS, poses)
    write_atomic(book / PROBLEMS, problems_csv(listed))
    counts = count(rows, listed)
    write_atomic(book / REPORT, f"{json.dumps(counts, indent=2)}\n".encode())
    write_overview(book, job.images, root, good, counts, job.settings)
    return AnnotationReport(**counts, root=root, work=work)


def count(rows: Rows, problems: Sequence[AnnotationProblem]) -> dict[str, Any]:
    """The first six fields of an AnnotationReport, from a journal's rows and all lines of problems.csv."""
    good = [row for row in rows if not row["left_out"]]
    rules = Counter(problem.rule for problem in problems if problem.rule not in ACCEPTED)
    flags = Counter(flag for row in good for flag in row["flags"])
    pixels = [row["label_pixels"] for row in good if row["label_pixels"]]
    seen = (np.array(pixels) > 0).sum(axis=0) if pixels else np.zeros(0, np.int64)
    return {
        "images": len(rows),
        "annotated": len(good),
        "left_out": len(rows) - len(good),
        "rules": dict(sorted(rules.items())),
        "flags": {flag: flags[flag] for flag in FLAGS if flags[flag]},
        "labels": dict(zip(LIP_LABELS, seen.tolist(), strict=False)),
    }


def row_problems(rows: Rows) -> list[AnnotationProblem]:
    """What the rows of a journal list."""
    return [
        AnnotationProblem(cell["file"], 0, cell["field"], cell["message"], cell["rule"])
        for row in rows
        for cell in row["problems"] or ()
    ]


def _mask_doubts(job: AnnotationJob, rows: Rows, own_mask: Callable[[str], str]) -> list[AnnotationProblem]:
    """Warnings about the user's own masks, all or single ones; the same check as that of ``prepare``."""
    seen = SeenMasks()
    for row in rows:
        if row["mask_source"] == "folder":
            mask = read_mask(contained(job.folder.root, row["mask"]), root=job.folder.root)
            seen.add(own_mask(row["file"]), mask)
    found = [AnnotationProblem(file, 0, "mask", odd, "odd-mask") for file, odd in seen.odd()]
    if doubt := seen.doubt("invert these files, or give --inverted-masks to `reposer prepare` later"):
        folder = printable(job.settings["mask"]["folder"])
        found.insert(0, AnnotationProblem(folder, 0, "mask", doubt, "mask-inverted"))
    return found


def listed_poses(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Pose], list[AnnotationProblem]]:
    """Poses by path, in the order of paths; a path that the colon CSV cannot hold is listed."""
    poses: dict[str, Pose] = {}
    problems = []
    for row in sorted(rows, key=lambda row: str(row["file"])):
        name = row["file"]
        if row["keypoints"] is None:
            continue
        if name != name.strip() or any(character in name for character in ':"'):
            message = "the name holds a colon, a quote or outer spaces, which the keypoint CSV cannot; no row"
            problems.append(AnnotationProblem(name, 0, "keypoints", message, "bad-keypoints"))
            continue
        poses[name] = np.array(row["keypoints"], np.float32).reshape(NUM_JOINTS, 2)
    return poses, problems
