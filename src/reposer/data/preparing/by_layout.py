"""One way from the name of a layout to what `reposer prepare` writes: records, problems, pairs, remarks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from reposer.data.label_files import MapRules
from reposer.data.layouts.deepfashion import read_deepfashion
from reposer.data.layouts.labeled_files import NO_CAMERA, Problems, Progress
from reposer.data.layouts.market1501 import read_market1501
from reposer.data.layouts.reid_readers import LAYOUTS, read_people
from reposer.data.pairs import development_pairs, official_train_pairs
from reposer.data.preparing.annotation_lookup import Places
from reposer.data.preparing.report import TRAINING
from reposer.errors import UserError, find
from reposer.structures import NUM_JOINTS, PersonRecord

# torso: images that show both shoulders and hips, the official rule; parsing: images with a parsing map
PairRule = Literal["torso", "parsing"]
PAIR_RULES: tuple[PairRule, ...] = ("torso", "parsing")

Place = str | Path | None


@dataclass(frozen=True, slots=True)
class Found:
    """A data set as it was read."""

    records: list[PersonRecord]
    problems: Problems
    pairs: dict[str, list[tuple[str, str]]]  # "train", "val" -> names of source and target
    notes: list[str] = field(default_factory=list)  # for the summary
    training: tuple[str, ...] = TRAINING  # splits whose people may be trained on or chosen by


@dataclass(frozen=True, slots=True)
class Reading:
    """How a data set is read, whatever its layout; see the readers."""

    pairs: PairRule  # which images make pairs
    holdout: int
    parsing: Place
    mask: Place
    keypoints: Places
    rules: MapRules
    on_progress: Progress | None
    look_only: bool

    def of_readers(self) -> dict[str, Any]:
        """All but the pairs, as keywords."""
        return {name: getattr(self, name) for name in self.__slots__ if name != "pairs"}


def read_layout(layout: str, root: Path, options: dict[str, Any], reading: Reading) -> Found:
    """Read a data set of any layout.

    Args:
        options: keywords of the layout's reader.
        reading: how, whatever the layout.

    Raises:
        UserError: an unknown layout, option or pair rule, and all that the readers raise.
    """
    if reading.pairs not in PAIR_RULES:
        raise UserError(f"pairs {reading.pairs}: unknown rule", f"use one of {', '.join(PAIR_RULES)}")
    find("layout", layout, {**READERS, **LAYOUTS})
    read = READERS.get(layout) or partial(_listed, layout)
    return read(root, options, reading)


def _market1501(root: Path, options: dict[str, Any], reading: Reading) -> Found:
    del options  # it has none
    return _with_pairs(read_market1501(root, **reading.of_readers()), reading)


def _listed(layout: str, root: Path, options: dict[str, Any], reading: Reading) -> Found:
    people = read_people(layout, root, options=options, **reading.of_readers())
    return _with_pairs(people, reading, anonymous=bool(options.get("anonymous")))


def _with_pairs(
    people: tuple[list[PersonRecord], Problems], reading: Reading, *, anonymous: bool = False
) -> Found:
    records, problems = people
    pairs: dict[str, list[tuple[str, str]]] = {"train": [], "val": []}
    if not reading.look_only:
        pairs = {split: _pairs(records, split, reading.pairs) for split in pairs}
    return Found(records, problems, pairs, _notes(records, anonymous))


def _deepfashion(root: Path, options: dict[str, Any], reading: Reading) -> Found:
    if reading.holdout or reading.pairs != "torso":
        problem = "deepfashion has its own test images and pair rule"
        raise UserError(f"{problem}: holdout and pairs cannot be chosen", "leave them out")
    unknown = options.keys() - {"images", "lists", "frame"}
    if unknown:
        raise UserError(f"layout deepfashion: unknown option {min(unknown)}", "use images, lists or frame")
    shared = reading.of_readers()
    del shared["holdout"]
    people = read_deepfashion(root, **options, **shared)
    notes = [f"identities    overlap of the official split: {people.overlap}"]
    return Found(people.records, people.problems, people.pairs, notes, training=("train",))


# Data sets that need more than a list of files (LAYOUTS); both are looked up by one name.
READERS: dict[str, Callable[[Path, dict[str, Any], Reading], Found]] = {
    "market1501": _market1501,
    "deepfashion": _deepfashion,
}


def _pairs(records: Sequence[PersonRecord], split: str, rule: PairRule) -> list[tuple[str, str]]:
    """The official rule for training; for validation the fixed sample on which results are compared."""
    chosen = [record for record in records if record.split == split]
    if rule == "parsing":
        chosen = [record for record in chosen if record.parsing is not None]
    names = [record.name for record in chosen]
    poses = np.array([_pose(record, rule) for record in chosen], np.float32).reshape(-1, NUM_JOINTS, 2)
    pairs = (official_train_pairs if split == "train" else development_pairs)(names, poses)
    return [(names[source], names[target]) for source, target in pairs.tolist()]


def _pose(record: PersonRecord, rule: PairRule) -> NDArray[np.float32]:
    """What the official rule looks at; where a parsing map is enough, every joint counts as present."""
    if rule == "parsing":
        return np.zeros((NUM_JOINTS, 2), np.float32)
    return np.full((NUM_JOINTS, 2), np.nan, np.float32) if record.keypoints is None else record.keypoints


def _notes(records: Sequence[PersonRecord], anonymous: bool) -> list[str]:
    """What follows for training and measuring from labels that nobody knows."""
    notes = []
    if anonymous:
        notes.append(
            "identities    unknown: every image counts as a person of its own. No pair can be made: re-pose"
            " these people with a trained generator, and do not train Re-ID on them"
        )
    unknown = sum(record.camid == NO_CAMERA for record in records)
    if unknown == len(records):
        notes.append(
            f"cameras       unknown: every image has camera {NO_CAMERA}. Re-ID"
            " scores take every image as a camera of its own; do not compare such numbers"
            " with Market-1501's protocol; nothing tells whether the background is recognized"
        )
    elif unknown:
        notes.append(
            f"cameras       {unknown:,} images have camera {NO_CAMERA} (unknown) and count as one camera: two"
            " of them of one person are never a match"
        )
    return notes
