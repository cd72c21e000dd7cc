"""Looking through a folder by eye: its sets of pictures, to keep or drop each, and its runs and studies.

What is found has an id; a page asks by id and row, so that no path comes from outside. A decision is written
to ``decisions.json`` of the set (data/records.py), which `prepare`, `augment`, `export-set`, trainings and
studies respect.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from reposer.config import foreign_values, read_json
from reposer.data.layouts.market1501 import parse_name
from reposer.data.records import Decision, decide, kept_by_hand, read_decisions
from reposer.errors import UserError, known
from reposer.generation.augmented_rows import KIND, set_schema
from reposer.images import MAX_FILE_BYTES
from reposer.jobs.stages import DONE, STAGES
from reposer.storage.files import sha256_bytes
from reposer.storage.manifest import (
    IMAGES,
    JOB,
    MANIFEST,
    is_sealed,
    job_settings,
    part_path,
    read_part,
    read_rows,
)
from reposer.storage.paths import CHECKPOINTS, RefusedFileError, contained, printable, read_regular
from reposer.workflows.verify import ANNOTATION

MOST_FOLDERS, DEEPEST = 20_000, 6  # that are looked at below the folder
PAGE = 200  # pictures of one answer, at most
AUGMENTED, GENERATED, ANNOTATED = "augmented set", "generated pictures", "annotated people"
STUDY, TRAINING, EVALUATION = "study", "training", "evaluation"
STATES = ("all", "kept", "dropped", "by hand", "undecided")
_PLAN = "plan.json"  # of an annotation's journal
_INNER = {IMAGES, MANIFEST, CHECKPOINTS, "samples", "real", "parsing", "mask", ANNOTATION, "manifest"}
_REPORTED = ("image_quality.json", "reidentification.json", "sections.json")
_FACTS = ("source", "donor", "background", "policy", "mask_source", "photo")


@dataclass(frozen=True, slots=True)
class Shown:
    """One picture of a set."""

    file: str  # relative to the folder of the pictures
    sha256: str
    person: str  # "" where nobody knows
    camera: str
    scores: dict[str, float]
    kept: bool  # by the set itself: false where a filter dropped it
    reason: str  # why a filter dropped it
    facts: dict[str, str]
    flags: tuple[str, ...]
    parsing: str | None  # of an annotated image: its label map, relative to the set
    keypoints: tuple[float | None, ...] | None  # x, y of 18 joints in pixels
    size: tuple[int, int] | None  # (width, height) where the manifest knows it


@dataclass
class PictureSet:
    """A finished set, read once."""

    kind: str
    folder: Path  # decisions.json lies here
    pictures: tuple[Shown, ...]
    inside: str  # the folder of the pictures in it; "" for the folder itself

    @cached_property
    def scores(self) -> tuple[str, ...]:
        """Names of all scores that some picture has."""
        return tuple(sorted({name for one in self.pictures for name in one.scores}))

    def decided(self) -> list[bool]:
        """Whether each picture is used now, decisions by hand included."""
        names, digests = [one.file for one in self.pictures], [one.sha256 for one in self.pictures]
        kept = kept_by_hand(self.folder, names, digests, [one.kept for one in self.pictures])
        return [bool(one) for one in kept]

    def by_hand(self) -> list[bool]:
        """Which pictures somebody decided about."""
        decisions = read_decisions(self.folder)
        found = ((one, decisions.get(one.file)) for one in self.pictures)
        return [decision is not None and decision.sha256 == one.sha256 for one, decision in found]

    def decide(self, rows: Sequence[int], word: str) -> None:
        """Keep or drop pictures by hand, or take that back ("undo").

        Raises:
            UserError: no such row or word, or decisions.json cannot be written.
        """
        known("decision", word, ("keep", "drop", "undo"))
        chosen = [self.picture(row) for row in rows]
        changes = {
            one.file: None if word == "undo" else Decision(one.sha256, word == "keep") for one in chosen
        }
        decide(self.folder, changes)

    def picture(self, row: int) -> Shown:
        """The picture of a row.

        Raises:
            UserError: there is none.
        """
        if not 0 <= row < len(self.pictures):
            raise UserError(f"picture {row}: the set has {len(self.pictures):,}", "load the page again")
        return self.pictures[row]

    def image(self, row: int) -> bytes:
        """The file of a picture.

        Raises:
            UserError: it is gone, or is not the file that the manifest lists.
        """
        shown = self.picture(row)
        place = contained(self.folder, f"{self.inside}/{shown.file}" if self.inside else shown.file)
        data = read_regular(place, max_bytes=MAX_FILE_BYTES, root=self.folder)
        if sha256_bytes(data) != shown.sha256:
            raise UserError(f"{printable(shown.file)}: changed since the set was made", "make the set again")
        return data

    def map(self, row: int) -> bytes:
        """The label map of an annotated picture, a palette PNG.

        Raises:
            UserError: there is none.
        """
        shown = self.picture(row)
        if shown.parsing is None:
            raise UserError(f"{printable(shown.file)}: has no label map")
        place = contained(self.folder, shown.parsing)
        return read_regular(place, max_bytes=MAX_FILE_BYTES, root=self.folder)

    def files(self, row: int) -> tuple[Path, Path | None, tuple[float | None, ...] | None]:
        """Image, label map and joints (x, y in pixels) of an annotated picture.

        Raises:
            UserError: it has no label map, or changed.
        """
        shown = self.picture(row)
        if shown.parsing is None:
            raise UserError(f"{printable(shown.file)}: has no label map", "annotate it with a parser first")
        self.image(row)
        return contained(self.folder, shown.file), contained(self.folder, shown.parsing), shown.keypoints

    def page(self, wanted: Wanted) -> dict[str, Any]:
        """Counts, choices of the filters, and the pictures that fit, as JSON.

        Raises:
            UserError: no picture has a score of that name.
        """
        scores = self.scores
        if wanted.score:
            known("score", wanted.score, scores)
        kept, by_hand = self.decided(), self.by_hand()
        rows = [row for row, one in enumerate(self.pictures) if wanted.fits(one, kept[row], by_hand[row])]
        if wanted.score:
            rows = self._by_score(rows, wanted.score, wanted.descending)
        values = [v for one in self.pictures if (v := one.scores.get(wanted.score)) is not None]
        return {
            "kind": self.kind,
            "pictures": len(self.pictures),
            "kept": sum(kept),
            "by_hand": sum(by_hand),
            "fitting": len(rows),
            "people": sorted({one.person for one in self.pictures}, key=_by_number),
            "cameras": sorted({one.camera for one in self.pictures}, key=_by_number),
            "scores": list(scores),
            "range": [min(values), max(values)] if values else None,
            "rows": [
                self._shown(row, kept[row], by_hand[row])
                for row in rows[wanted.start : wanted.start + min(wanted.count, PAGE)]
            ],
        }

    def _by_score(self, rows: list[int], score: str, descending: bool) -> list[int]:
        """The rows by a score; those of equal scores turned round, too, where it descends. Pictures without
        it come last both ways, in their order."""
        scored = [row for row in rows if score in self.pictures[row].scores]
        scored.sort(key=lambda row: self.pictures[row].scores[score])
        without = [row for row in rows if score not in self.pictures[row].scores]
        return (scored[::-1] if descending else scored) + without

    def _shown(self, row: int, kept: bool, by_hand: bool) -> dict[str, Any]:
        one = self.pictures[row]
        return {
            "row": row,
            "file": printable(one.file),
            "person": one.person,
            "camera": one.camera,
            "scores": one.scores,
            "kept": kept,
            "by_hand": by_hand,
            "reason": one.reason,
            "facts": one.facts,
            "flags": list(one.flags),
            "map": one.parsing is not None,
            "keypoints": one.keypoints,
            "size": one.size,
        }


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which pictures of a set, in which order."""

    person: str | None = None
    camera: str | None = None
    state: str = "all"  # one of STATES
    score: str = ""  # to sort by, and for low and high
    low: float = -math.inf
    high: float = math.inf
    descending: bool = False
    start: int = 0
    count: int = 60

    def __post_init__(self) -> None:
        known("state", self.state, STATES)

    def fits(self, one: Shown, kept: bool, by_hand: bool) -> bool:
        """Whether a picture is wanted."""
        states = {"kept": kept, "dropped": not kept, "by hand": by_hand, "undecided": not by_hand}
        value = one.scores.get(self.score) if self.score else None
        bounded = (self.low, self.high) != (-math.inf, math.inf)  # a NaN, too, is a bound
        return (
            self.person in (None, one.person)
            and self.camera in (None, one.camera)
            and states.get(self.state, True)
            and (not bounded or (value is not None and self.low <= value <= self.high))
        )


@dataclass(frozen=True, slots=True)
class Place:
    """Something in the folder that can be looked at."""

    id: str
    kind: str
    title: str  # its place in the folder, for people
    folder: Path


@dataclass
class Library:
    """What can be looked at in a folder.

    Args:
        root: the folder; links in it are not followed.
    """

    root: Path
    _places: dict[str, Place] = field(default_factory=dict)
    _sets: dict[str, tuple[int, PictureSet]] = field(default_factory=dict)  # id -> time of its manifest, set

    def places(self) -> list[Place]:
        """Everything, looked for anew; sorted by where it is."""
        found = [self._place(folder, kind) for folder, kind in _walk(self.root)]
        self._places = {place.id: place for place in found}
        return sorted(found, key=lambda place: place.title)

    def _place(self, folder: Path, kind: str) -> Place:
        inside = folder.relative_to(self.root).as_posix()
        title = self.root.resolve().name if inside == "." else inside
        return Place(sha256_bytes(os.fsencode(inside))[:16], kind, printable(title), folder)

    def place(self, identity: str) -> Place:
        """By its id.

        Raises:
            UserError: there is no such thing (any more).
        """
        if identity not in self._places:
            self.places()
        if identity not in self._places:
            raise UserError("there is no such folder any more", "load the page again")
        return self._places[identity]

    def set(self, identity: str) -> PictureSet:
        """A set by its id, read at the first call and when its manifest changes.

        Raises:
            UserError: there is none, it is not finished, or damaged.
        """
        place = self.place(identity)
        book = place.folder / ANNOTATION if place.kind == ANNOTATED else place.folder
        try:
            when = os.stat(book / MANIFEST).st_mtime_ns
        except OSError as error:  # removed while the page was open
            raise UserError("there is no such folder any more", "load the page again") from error
        if self._sets.get(identity, (0, None))[0] != when:
            with foreign_values(place.folder):
                read = _read_annotated if place.kind == ANNOTATED else _read_generated
                self._sets[identity] = (when, read(place.folder, place.kind))
            for other in list(self._sets)[:-4]:  # few are in memory at a time
                del self._sets[other]
        return self._sets[identity][1]


def _walk(root: Path) -> Iterator[tuple[Path, str]]:
    """Folders that hold something to look at, and what."""
    for seen, (place, folders, names) in enumerate(os.walk(root)):
        folder = Path(place)
        deep = len(folder.relative_to(root).parts)
        if seen >= MOST_FOLDERS:
            return
        here = set(names)
        folders[:] = sorted(
            name for name in folders if deep < DEEPEST and not name.startswith((".", "packed"))
        )
        kinds = list(_kinds(folder, here, set(folders)))
        yield from ((folder, kind) for kind in kinds)
        if kinds:
            folders[:] = [name for name in folders if name not in _INNER]
        if folder.name == STAGES:  # of a study: what is finished, not its parts
            folders[:] = [name for name in folders if name.startswith(("augmented-", "training-"))]
            folders[:] = [name for name in folders if contained(folder, f"{name}/{DONE}").is_file()]


def _kinds(folder: Path, names: set[str], folders: set[str]) -> Iterator[str]:
    if JOB in names and {MANIFEST, IMAGES} <= folders:
        try:
            augmented = job_settings(folder).get("kind") == KIND
        except UserError:
            augmented = False
        yield AUGMENTED if augmented else GENERATED
    if ANNOTATION in folders and (folder / ANNOTATION / JOB).is_file():
        yield ANNOTATED
    if STAGES in folders:
        yield STUDY
    elif "config.json" in names and ("metrics.jsonl" in names or CHECKPOINTS in folders):
        yield TRAINING
    elif names.intersection(_REPORTED) and folder.name not in (ANNOTATION, "pictures"):
        yield EVALUATION


# ---- sets from their manifests


def _read_generated(folder: Path, kind: str) -> PictureSet:
    if not (folder / MANIFEST).is_dir():
        raise UserError(f"{printable(folder)}: is not finished", "run the same command again")
    schema = set_schema(folder)
    if kind == GENERATED:  # `generate` knows some of these columns, and not always who is shown
        names = [name for name, _ in schema.columns]
        schema = replace(schema, gaps=names, later=names)
    table = read_rows(folder, schema)
    floats = [one.name for one in table.schema if pa.types.is_floating(one.type)]
    pictures = []
    for row in _rows(table):
        pid, camid = row.get("pid", row.get("source_pid")), row.get("camid", row.get("source_camid"))
        pictures.append(
            Shown(
                file=row["file"],
                sha256=row["sha256"],
                person="" if pid in (None, -1) else str(pid),
                camera="" if camid in (None, -1) else str(camid),
                scores=_scores(row, floats),
                kept=row.get("kept", True) is not False,
                reason=str(row.get("dropped_because") or ""),
                facts=_facts(row),
                flags=(),
                parsing=None,
                keypoints=None,
                size=None,
            )
        )
    return PictureSet(kind, folder, tuple(pictures), IMAGES)


def _read_annotated(folder: Path, kind: str) -> PictureSet:
    shards = read_json(folder / ANNOTATION / _PLAN).get("shards")
    count = len(shards) if isinstance(shards, list) else 0
    parts = [part_path(folder / ANNOTATION, number) for number in range(count)]
    if not parts or not all(map(is_sealed, parts)):
        raise UserError(f"{printable(folder)}: is not finished", "run the same command again")
    pictures = []
    for part in parts:
        for row in _rows(read_part(part)):
            if row["left_out"]:
                continue
            person, camera = _labels(row["file"])
            points = row["keypoints"]
            flags = [str(flag) for flag in row["flags"] or ()]
            pictures.append(
                Shown(
                    file=row["file"],
                    sha256=row["sha256"],
                    person=person,
                    camera=camera,
                    scores=_scores(row, ("mask_area", "agreement", "joints", "box_score")),
                    kept=True,
                    reason="",
                    facts=_facts(row),
                    flags=tuple(flags),
                    parsing=row["parsing"],
                    keypoints=None if points is None else tuple(map(_finite, points)),
                    size=(row["width"], row["height"]),
                )
            )
    return PictureSet(kind, folder, tuple(pictures), "")


def _rows(table: pa.Table) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _labels(name: str) -> tuple[str, str]:
    """Person and camera by a Market-1501 name, else the folder's name."""
    try:
        found = parse_name(name)
    except RefusedFileError:
        return printable(name.rpartition("/")[0].rpartition("/")[2]), ""
    return str(found.pid), str(found.camid)


def _scores(row: dict[str, Any], names: Sequence[str]) -> dict[str, float]:
    values = {name: row.get(name) for name in names}
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _facts(row: dict[str, Any]) -> dict[str, str]:
    return {name: printable(str(row[name])) for name in _FACTS if row.get(name)}


def _by_number(text: str) -> tuple[int, str]:
    return (int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else 2**62, text)
