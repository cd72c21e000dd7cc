"""Finds the annotations of a data set's images and checks them: parsing maps, masks, key-points.

An image a/b.jpg that the data set calls NAME.jpg is annotated by parsing/NAME.png, parsing/a/b.png or
parsing/a_b.png (and so for masks), and by a key-point row NAME.jpg, a/b.jpg or a_b.jpg: annotations may be
made before anybody knows who is in the picture, from the paths alone.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from reposer.data.keypoints import Pose, read_keypoints_csv
from reposer.data.label_files import read_mask
from reposer.data.layouts.folder_scan import list_names, nfc, relative_folder, without_suffix
from reposer.data.parsing import read_parsing
from reposer.data.problems import AnnotationError, AnnotationProblem, text_lines
from reposer.paths import RefusedFileError, contained, printable
from reposer.structures import PersonRecord

_MAP_SUFFIXES = (".png", ".npy")
_KEYPOINT_FILES = ("keypoints.csv", "lists/keypoints.csv")


@dataclass(frozen=True, slots=True)
class Annotations:
    """Where the annotations of the images below ``root`` lie; None or empty where there are none."""

    root: Path
    folders: dict[str, str]  # "parsing", "mask" -> folder relative to root
    names: dict[str, dict[str, str]]  # "parsing", "mask" -> NFC of a file name in that folder -> the name
    keypoints: Path | None  # the CSV
    soft_masks: bool = False  # see label_files.read_mask
    look_only: bool = False  # a dry run: names are looked up, nothing is decoded

    @classmethod
    def find(
        cls,
        root: Path,
        parsing: str | Path | None = None,
        mask: str | Path | None = None,
        keypoints: str | Path | None = None,
        *,
        soft_masks: bool = False,
        look_only: bool = False,
    ) -> Self:
        """Look in the given places, else in those of the layout (see market1501.py).

        Raises:
            UserError: a given place does not exist, or a folder lies outside ``root``.
        """
        folders = {}
        for kind, given in (("parsing", parsing), ("mask", mask)):
            if given is not None:
                folders[kind] = relative_folder(root, given)
            elif (root / kind).is_dir():
                folders[kind] = kind
        names = {
            kind: {nfc(name): name for name in list_names(root, folder)} for kind, folder in folders.items()
        }
        if keypoints is None:
            found = [contained(root, name) for name in _KEYPOINT_FILES if (root / name).exists()]
            return cls(root, folders, names, found[0] if found else None, soft_masks, look_only)
        return cls(root, folders, names, Path(keypoints), soft_masks, look_only)

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
        """The records with their key-points; a dry run does not know whether a joint lies outside its image.

        Args:
            twins: name of an image -> name of another one; of the same bytes they share a row.

        Raises:
            UserError: the CSV as a whole cannot be used.
        """
        if self.keypoints is None:
            return list(records)
        known = _by_alias(records)
        sizes = {r.name: (r.width, r.height) for r in records}
        aliases = {name: nfc(name) for name in [*_row_names(self.keypoints), *known] if nfc(name) in known}
        limits = {} if self.look_only else {a: sizes[known[n]] for a, n in aliases.items()}
        rows, bad = read_keypoints_csv(self.keypoints, limits)
        problems += [replace(problem, rule="bad-keypoints") for problem in bad]
        file = printable(self.keypoints)
        poses: dict[str, Pose] = {}
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
        content = {record.name: record.sha256 for record in records}
        for name, other in (twins or {}).items():
            if name in content and name not in poses and other in poses and content[name] == content[other]:
                poses[name] = poses[other]
        for name in sorted(sizes.keys() - poses.keys()):
            problems.append(
                AnnotationProblem(file, 0, "name", f"no usable row for {name}", "missing-keypoints")
            )
        return [replace(record, keypoints=poses.get(record.name)) for record in records]

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
        found = next(filter(None, (self._held(kind, file) for file in _candidates(record, stem))), None)
        if found is None:
            own = record.path.rpartition("/")[2] == record.name  # else the data set's name says little
            wanted = stem if own else without_suffix(record.path)
            path, rule = f"{self.folders[kind]}/{wanted}{_MAP_SUFFIXES[0]}", f"missing-{kind}"
            problems.append(AnnotationProblem(path, 0, kind, "no such file", rule))
            return None
        path = f"{self.folders[kind]}/{found}"
        if self.look_only:
            return path
        try:
            if kind == "parsing":
                read_parsing(contained(self.root, path), size)
            else:
                read_mask(contained(self.root, path), size, soft=self.soft_masks)
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
            return self.names[kind].get(nfc(file))
        spellings = dict.fromkeys((file, nfc(file), unicodedata.normalize("NFD", file)))
        return next((s for s in spellings if (self.root / self.folders[kind] / s).is_file()), None)


def _candidates(record: PersonRecord, stem: str) -> list[str]:
    """Where a map or mask may lie in its folder, the data set's own name first."""
    path = without_suffix(record.path)
    # x.jpg.jpg is annotated by x.png or, where only the last extension was exchanged, by x.jpg.png
    bases = (stem, without_suffix(record.name), path, path.replace("/", "_"))
    return [base + suffix for suffix in _MAP_SUFFIXES for base in dict.fromkeys(bases)]


def _by_alias(records: Sequence[PersonRecord]) -> dict[str, str]:
    """What a key-point row may call an image, in NFC -> its name; a name wins over a path."""
    known = {nfc(record.name): record.name for record in records}
    for record in records:
        known.setdefault(nfc(record.path), record.name)
        known.setdefault(nfc(record.path.replace("/", "_")), record.name)
    return known


def _row_names(table: Path) -> list[str]:
    """What the rows of a colon CSV call their images: the text before the two columns of numbers."""
    lines = (line.decode("utf-8", "replace") for line in text_lines(table))
    return [line.rsplit(":", 2)[0].strip() for line in lines]
