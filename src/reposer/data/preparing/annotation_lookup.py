"""Finds the annotations of a data set's images and checks them: parsing maps, masks, keypoints.

An image a/b.jpg that the data set calls NAME.jpg is annotated by parsing/NAME.png, parsing/a/b.png or
parsing/a_b.png (and so for masks), and by a keypoint row NAME.jpg, a/b.jpg or a_b.jpg: annotations may be
made before anybody knows who is in the picture, from the paths alone. Keypoints are those of keypoints.csv,
or PATN's market-annotation-train.csv and market-annotation-test.csv, in the data set's folder or its lists/.

What a file cannot say is known from its set.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from reposer.data.keypoints import Pose, read_keypoints_csv, smaller_meaning
from reposer.data.label_files import PLAIN, MapRules, map_names
from reposer.data.layouts.folder_scan import list_names, nfc, relative_folder, without_suffix
from reposer.data.parsing import LABEL_SETS, known_labels, read_as_lip
from reposer.data.records import AnnotationError, AnnotationProblem, text_lines
from reposer.errors import UserError
from reposer.storage.paths import RefusedFileError, contained, printable
from reposer.structures import PersonRecord

# ---- What the label maps and masks of a set seem to mean, which their files cannot say: all together, and
# each alone.
#
# A label is a number, and a mask says nothing about which of its two values is the person. But people stand
# in the middle of their crops, and somebody wears shoes: a set of files shows when it means something else.
# A file that differs from the rest, or that holds nobody at all, is named by itself.


MIN_FILES = 5  # fewer say nothing about their set
_CLEARLY = 0.1  # by how much more of the border than of the middle must be the person, to doubt a set
_CERTAINLY = 0.5  # the same for one file, whose person may fill the picture or lean out of it


@dataclass(slots=True)
class _Seen:
    """What all maps or masks of a set have in common, and those that hold nobody, or everybody."""

    files: int = 0
    border: float = 0.0  # sum over files of the share of the border that is not background
    middle: float = 0.0  # the same of the middle
    empty: list[str] = field(default_factory=list)  # nothing is the person
    outward: list[str] = field(default_factory=list)  # the person is at the border, certainly
    inward: list[str] = field(default_factory=list)  # the person is in the middle, certainly

    def _look(self, file: str, person: NDArray[np.bool_]) -> None:
        height, width = person.shape
        inner = person[height // 4 : -(height // 4) or None, width // 4 : -(width // 4) or None]
        edge = np.concatenate([person[0], person[-1], person[:, 0], person[:, -1]])
        border, middle = float(edge.mean()), float(inner.mean())
        self.files += 1
        self.border, self.middle = self.border + border, self.middle + middle
        if not person.any():
            self.empty.append(file)
        elif border > middle + _CERTAINLY:
            self.outward.append(file)
        elif middle > border + _CERTAINLY:
            self.inward.append(file)

    @property
    def inside_out(self) -> bool:
        """Whether people are at the borders of their pictures rather than in the middle."""
        return self.files >= MIN_FILES and self.border > self.middle + _CLEARLY * self.files


@dataclass(slots=True)
class SeenMasks(_Seen):
    """The masks of a set."""

    full: list[str] = field(default_factory=list)  # everything is the person

    def add(self, file: str, person: NDArray[np.bool_]) -> None:
        """One mask (H, W), True on the person."""
        self._look(file, person)
        if person.all():
            self.full.append(file)

    def doubt(self, advice: str) -> str:
        """What is odd about all of them; "" where nothing is. ``advice``: what turns them round."""
        if not self.inside_out:
            return ""
        return (
            f"{self.files:,} masks have people at the border rather than in the middle, on the whole: if they"
            f" mark the background, {advice}"
        )

    def odd(self) -> Iterator[tuple[str, str]]:
        """(file, what is odd about it) of single masks, by kind and in the order of ``add``."""
        advice = "kept as it is: mend it, or delete it"
        yield from _each(self.empty, f"marks nobody, no pixel is the person; {advice}")
        yield from _each(self.full, f"marks every pixel as the person; {advice}")
        if self.inside_out:
            message = "has the person in the middle, but most others at the border"
            yield from _each(self.inward, f"{message}; {advice}")
        else:
            message = "has the person at the border and not in the middle, as an inverted mask has"
            yield from _each(self.outward, f"{message}; {advice}")


@dataclass(slots=True)
class SeenMaps(_Seen):
    """The parsing maps of a set."""

    with_zero: int = 0  # files that hold a 0
    values: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(256, np.bool_))
    two: list[str] = field(default_factory=list)  # files that hold the first two labels and no other

    def add(self, file: str, values: NDArray[np.uint8], lip: NDArray[np.uint8], first: int) -> None:
        """One map: its stored values (H, W), as LIP-20 (H, W), and the number of its first label."""
        self._look(file, lip != 0)
        self.with_zero += int(not values.all())
        found = np.unique(values)
        self.values[found] = True
        if found[-1] == first + 1:
            self.two.append(file)

    def doubt(self, labels: str) -> str:
        """What the labels of all maps look like instead of ``labels``; "" where all fits."""
        if self.files < MIN_FILES:
            return ""
        name, first = known_labels(labels)
        top = int(np.flatnonzero(self.values)[-1]) - first
        found = f"{self.files:,} maps hold no label above {top + first}"
        if top <= 1:
            return (
                f"{found}: these are masks, not parsing maps. Give the folder as --mask and none as --parsing"
            )
        if not first and not self.with_zero:
            return (
                f"none of {self.files:,} maps holds the label 0, the background: if labels are counted from"
                f" 1, give --label-set {name}+1"
            )
        if top < len(LABEL_SETS["merged8"]):
            return f"{found}: PASCAL's 7 parts or 8 merged ones are coarser than LIP-20 and cannot be used"
        if name != "atr18" and top < len(LABEL_SETS["atr18"]):
            return (
                f"{found}, and the shoes of {name} are {18 + first} and {19 + first}: if these are ATR's 18,"
                f" give --label-set atr18{'+1' if first else ''}"
            )
        if self.inside_out:
            found = f"the middle of {self.files:,} maps is background more than their border"
            return f"{found}: is 0 the background?"
        return ""

    def odd(self, labels: str) -> Iterator[tuple[str, str]]:
        """(file, what is odd about it) of single maps, by kind and in the order of ``add``."""
        _, first = known_labels(labels)
        advice = "kept as it is: mend it, or delete it"
        yield from _each(self.empty, f"holds background alone, nobody; {advice}")
        if self.doubt(labels) and len(self.two) == self.files:
            return  # said of all
        message = f"holds the labels {first} and {first + 1} alone, as a mask does that is no parsing map"
        yield from _each(self.two, f"{message}; {advice}")
        message = "has the person at the border and not in the middle"
        if not self.inside_out:
            yield from _each(self.outward, f"{message}; {advice}")


def _each(files: Iterable[str], message: str) -> Iterator[tuple[str, str]]:
    """Every file once, with what is odd about it."""
    return ((file, message) for file in dict.fromkeys(files))


# ---- Where the annotations of an image are.

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
        for folder in filter(os.path.isdir, tables):
            place = printable(folder)
            advice = (
                f"give a CSV; OpenPose's files are read by `reposer annotate --keypoints openpose:{place}`"
            )
            raise UserError(f"{place}: is a folder, no table of keypoints", advice)
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
        if not self.look_only and (doubt := smaller_meaning(list(poses.values()), [sizes[n] for n in poses])):
            problems.append(AnnotationProblem(file, 0, "keypoints", doubt, "small-keypoints"))
        return [replace(record, keypoints=poses.get(record.name)) for record in records]

    def doubts(self) -> list[AnnotationProblem]:
        """Warnings about maps and masks that seem to mean something else, all or single ones."""
        labels = self.rules.labels
        advice = "leave --inverted-masks out" if self.rules.inverted_masks else "give --inverted-masks"
        found = []
        if doubt := self.maps.doubt(labels):
            found.append(AnnotationProblem(self.folders["parsing"], 0, "labels", doubt, "parsing-labels"))
        if doubt := self.masks.doubt(advice):
            found.append(AnnotationProblem(self.folders["mask"], 0, "mask", doubt, "mask-inverted"))
        found += (
            AnnotationProblem(file, 0, "labels", doubt, "odd-parsing")
            for file, doubt in self.maps.odd(labels)
        )
        found += (AnnotationProblem(file, 0, "mask", doubt, "odd-mask") for file, doubt in self.masks.odd())
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
