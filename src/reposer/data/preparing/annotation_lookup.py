"""Finds the annotations of a data set's images and checks them: parsing maps, masks, keypoints.

An image a/b.jpg that the data set calls NAME.jpg is annotated by parsing/NAME.png, parsing/a/b.png or
parsing/a_b.png (and so for masks), and by a keypoint row NAME.jpg, a/b.jpg or a_b.jpg: annotations may be
made before anybody knows who is in the picture, from the paths alone. Keypoints are those of keypoints.csv,
or PATN's market-annotation-train.csv and market-annotation-test.csv, in the data set's folder or its lists/.

What a file cannot say is told by its set (data/map_meanings.py).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self, TypeAlias

from reposer.data.keypoints import Pose, read_keypoints_csv
from reposer.data.label_files import PLAIN, MapRules, map_names
from reposer.data.layouts.folder_scan import list_names, nfc, relative_folder, without_suffix
from reposer.data.map_meanings import SeenMaps, SeenMasks
from reposer.data.parsing import known_labels, read_as_lip
from reposer.data.problems import AnnotationError, AnnotationProblem, text_lines
from reposer.storage.paths import RefusedFileError, contained, printable
from reposer.structures import PersonRecord

# the first of which a file is there
_KEYPOINT_FILES = (
    *(("keypoints.csv",), ("lists/keypoints.csv",)),
    ("market-annotation-train.csv", "market-annotation-test.csv"),
    ("lists/market-annotation-train.csv", "lists/market-annotation-test.csv"),
)

Places: TypeAlias = str | Path | Sequence[str | Path] | None


def each_place(given: Places) -> list[Path]:
    """The paths of an argument that takes one or several."""
    if given is None:
        return []
    return [Path(given)] if isinstance(given, str | Path) else [Path(place) for place in given]


@dataclass(frozen=True, slots=True)
class Annotations:
    """Where the annotations of the images below ``root`` lie; None or empty where there are none."""

    root: Path
    folders: dict[str, str]  # "parsing", "mask" -> folder relative to root
    names: dict[str, dict[str, str]]  # "parsing", "mask" -> NFC of a file name in that folder -> the name
    keypoints: tuple[Path, ...]  # the CSVs
    rules: MapRules = PLAIN
    look_only: bool = False  # a dry run: names are looked up, nothing is decoded
    maps: SeenMaps = field(default_factory=SeenMaps)
    masks: SeenMasks = field(default_factory=SeenMasks)

    @classmethod
    def find(
        cls,
        root: Path,
        parsing: str | Path | None = None,
        mask: str | Path | None = None,
        keypoints: Places = None,
        *,
        rules: MapRules = PLAIN,
        look_only: bool = False,
    ) -> Self:
        """Look in the given places, else in those of the layout (see data/layouts/market1501.py).

        Raises:
            UserError: a given place does not exist, or a folder lies outside ``root``.
        """
        folders = {}
        for kind, given in (("parsing", parsing), ("mask", mask)):
            if given is not None:
                folders[kind] = relative_folder(root, given)
            elif (root / kind).is_dir():
                folders[kind] = kind
        names = {kind: _by_key(list_names(root, folder)) for kind, folder in folders.items()}
        tables = each_place(keypoints)
        if keypoints is None:
            there = ([name for name in group if (root / name).exists()] for group in _KEYPOINT_FILES)
            tables = [contained(root, name) for name in next(filter(None, there), [])]
        return cls(root, folders, names, tuple(tables), rules, look_only)

    def attach(self, record: PersonRecord, stem: str, problems: list[AnnotationProblem]) -> PersonRecord:
        """The record with the paths of its map and mask, each read and compared with the image's size."""
        size = (record.height, record.width)
        parsing = self._checked("parsing", record, stem, size, problems)
        mask = self._checked("mask", record, stem, size, problems)
        return replace(record, parsing=parsing, mask=mask)

    def add_keypoints(
        self,
        records: Sequence[PersonRecord],
        problems: list[AnnotationProblem],
        twins: Mapping[str, str] | None = None,
    ) -> list[PersonRecord]:
        """The records with their keypoints; a dry run does not know whether a joint lies outside its image.

        Args:
            twins: name of an image -> name of another one; of the same bytes they share a row.

        Raises:
            UserError: a CSV as a whole cannot be used.
        """
        if not self.keypoints:
            return list(records)
        known = _by_alias(records)
        sizes = {r.name: (r.width, r.height) for r in records}
        poses: dict[str, Pose] = {}
        for table in self.keypoints:
            self._add_table(table, known, sizes, poses, problems)
        content = {record.name: record.sha256 for record in records}
        for name, other in (twins or {}).items():
            if name in content and name not in poses and other in poses and content[name] == content[other]:
                poses[name] = poses[other]
        file = printable(self.keypoints[0])
        for name in sorted(sizes.keys() - poses.keys()):
            problems.append(
                AnnotationProblem(file, 0, "name", f"no usable row for {name}", "missing-keypoints")
            )
        return [replace(record, keypoints=poses.get(record.name)) for record in records]

    def doubts(self) -> list[AnnotationProblem]:
        """Warnings about maps and masks that seem to mean something else, all or single ones."""
        labels = self.rules.labels
        advice = "leave --inverted-masks out" if self.rules.inverted_masks else "give --inverted-masks"
        found = []
        if told := self.maps.doubt(labels):
            found.append(AnnotationProblem(self.folders["parsing"], 0, "labels", told, "parsing-labels"))
        if told := self.masks.doubt(advice):
            found.append(AnnotationProblem(self.folders["mask"], 0, "mask", told, "mask-inverted"))
        found += (
            AnnotationProblem(file, 0, "labels", told, "odd-parsing") for file, told in self.maps.odd(labels)
        )
        found += (AnnotationProblem(file, 0, "mask", told, "odd-mask") for file, told in self.masks.odd())
        return found

    def _add_table(
        self,
        table: Path,
        known: Mapping[str, str],
        sizes: Mapping[str, tuple[int, int]],
        poses: dict[str, Pose],
        problems: list[AnnotationProblem],
    ) -> None:
        """Add the rows of one CSV to ``poses``, by the names of the images."""
        aliases = {name: nfc(name) for name in [*_row_names(table), *known] if nfc(name) in known}
        limits = {} if self.look_only else {a: sizes[known[n]] for a, n in aliases.items()}
        rows, bad = read_keypoints_csv(table, limits)
        problems += [replace(problem, rule="bad-keypoints") for problem in bad]
        file = printable(table)
        for given, pose in sorted(rows.items()):
            name = aliases.get(given, given)
            if name not in known:
                message = f"{printable(name)} is no usable image of the data set; the row is left out"
                problems.append(AnnotationProblem(file, 0, "name", message, "unknown-image"))
            elif known[name] in poses:
                message = f"{printable(name)} is {known[name]}, which has a row already; left out"
                problems.append(AnnotationProblem(file, 0, "name", message, "bad-keypoints"))
            else:
                poses[known[name]] = pose

    def _checked(
        self,
        kind: str,
        record: PersonRecord,
        stem: str,
        size: tuple[int, int],
        problems: list[AnnotationProblem],
    ) -> str | None:
        """Relative path of a good annotation, None (and a problem) for a bad or missing one."""
        if kind not in self.folders:
            return None
        places = (self._held(kind, file) for file in _candidates(kind, record, stem))
        own = f"{self.folders[kind]}/"  # where maps lie among the images, an image is no map of itself
        found = next((place for place in places if place and own + place != record.path), None)
        if found is None:
            same = record.path.rpartition("/")[2] == record.name  # else the data set's name says little
            wanted = stem if same else without_suffix(record.path)
            path, rule = f"{self.folders[kind]}/{wanted}.png", f"missing-{kind}"
            problems.append(AnnotationProblem(path, 0, kind, "no such file", rule))
            return None
        path = f"{self.folders[kind]}/{found}"
        if self.look_only:
            return path
        try:
            if kind == "parsing":
                lip, values = read_as_lip(contained(self.root, path), size, self.rules.labels)
                self.maps.add(path, values, lip, known_labels(self.rules.labels)[1])
            else:
                self.masks.add(path, self.rules.mask(contained(self.root, path), size))
        except AnnotationError as error:
            listed = error.listed
            message = f"{listed.message}; not used: {error.advice}"
            problems.append(AnnotationProblem(path, 0, listed.field, message, f"bad-{kind}"))
        except RefusedFileError as error:
            message = f"{error.reason}; not used: {error.advice}"
            problems.append(AnnotationProblem(path, 0, "file", message, f"bad-{kind}"))
        else:
            return path
        return None

    def _held(self, kind: str, file: str) -> str | None:
        """The file as the disk spells it."""
        if "/" not in file:
            return self.names[kind].get(_key(file))
        base, dot, end = file.rpartition(".")
        spelled = (file, f"{base}{dot}{end.upper()}")
        spellings = dict.fromkeys(s for f in spelled for s in (f, nfc(f), unicodedata.normalize("NFD", f)))
        return next((s for s in spellings if (self.root / self.folders[kind] / s).is_file()), None)


def _key(name: str) -> str:
    """What names of one file in several spellings have in common: NFC, the suffix in small letters."""
    base, dot, suffix = nfc(name).rpartition(".")
    return f"{base}{dot}{suffix.lower()}"


def _by_key(names: Sequence[str]) -> dict[str, str]:
    """Key -> the name; of two spellings the one with a small suffix."""
    return {_key(name): name for name in sorted(names, key=lambda name: (_key(name), nfc(name)))}


def _candidates(kind: str, record: PersonRecord, stem: str) -> list[str]:
    """Where a map or mask may lie in its folder, the data set's own name first."""
    path = without_suffix(record.path)
    # x.jpg.jpg is annotated by x.png or, where only the last extension was exchanged, by x.jpg.png
    bases = (stem, without_suffix(record.name), path, path.replace("/", "_"))
    names = [map_names(kind, base) for base in dict.fromkeys(bases)]
    return [name for rank in zip(*names, strict=True) for name in rank]


def _by_alias(records: Sequence[PersonRecord]) -> dict[str, str]:
    """What a keypoint row may call an image, in NFC -> its name; a name wins over a path."""
    known = {nfc(record.name): record.name for record in records}
    for record in records:
        known.setdefault(nfc(record.path), record.name)
        known.setdefault(nfc(record.path.replace("/", "_")), record.name)
    return known


def _row_names(table: Path) -> list[str]:
    """What the rows of a colon CSV call their images: the text before the two columns of numbers."""
    lines = (line.decode("utf-8", "replace") for line in text_lines(table))
    return [line.rsplit(":", 2)[0].strip() for line in lines]
