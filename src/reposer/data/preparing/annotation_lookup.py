"""Finds the annotations of a data set's images and checks them: parsing maps, masks, key-points.

An image a/b.jpg that the data set calls NAME.jpg is annotated by parsing/NAME.png, parsing/a/b.png or
parsing/a_b.png (and so for masks), and by a key-point row NAME.jpg, a/b.jpg or a_b.jpg: annotations may be
made before anybody knows who is in the picture, from the paths alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from reposer.data.keypoints import Pose, read_keypoints_csv
from reposer.data.label_files import read_mask
from reposer.data.layouts.folder_scan import list_names, relative_folder
from reposer.data.parsing import read_parsing
from reposer.data.problems import AnnotationError, AnnotationProblem
from reposer.paths import RefusedFileError, contained, printable
from reposer.structures import PersonRecord

_MAP_SUFFIXES = (".png", ".npy")
_KEYPOINT_FILES = ("keypoints.csv", "lists/keypoints.csv")


@dataclass(frozen=True, slots=True)
class Annotations:
    """Where the annotations of the images below ``root`` lie; None or empty where there are none."""

    root: Path
    folders: dict[str, str]  # "parsing", "mask" -> folder relative to root
    names: dict[str, frozenset[str]]  # "parsing", "mask" -> file names in that folder
    keypoints: Path | None  # the CSV
    soft_masks: bool = False  # see label_files.read_mask

    @classmethod
    def find(
        cls,
        root: Path,
        parsing: str | Path | None = None,
        mask: str | Path | None = None,
        keypoints: str | Path | None = None,
        *,
        soft_masks: bool = False,
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
        names = {kind: frozenset(list_names(root, folder)) for kind, folder in folders.items()}
        if keypoints is None:
            found = [contained(root, name) for name in _KEYPOINT_FILES if (root / name).exists()]
            return cls(root, folders, names, found[0] if found else None, soft_masks)
        return cls(root, folders, names, Path(keypoints), soft_masks)

    def attach(self, record: PersonRecord, stem: str, problems: list[AnnotationProblem]) -> PersonRecord:
        """The record with the paths of its map and mask, each read and compared with the image's size."""
        size = (record.height, record.width)
        parsing = self._checked("parsing", record, stem, size, problems)
        mask = self._checked("mask", record, stem, size, problems)
        return replace(record, parsing=parsing, mask=mask)

    def add_keypoints(
        self, records: Sequence[PersonRecord], problems: list[AnnotationProblem]
    ) -> list[PersonRecord]:
        """The records with their key-points.

        Raises:
            UserError: the CSV as a whole cannot be used.
        """
        if self.keypoints is None:
            return list(records)
        known = _by_alias(records)
        sizes = {r.name: (r.width, r.height) for r in records}
        rows, bad = read_keypoints_csv(self.keypoints, {a: sizes[name] for a, name in known.items()})
        problems += [replace(problem, rule="bad-keypoints") for problem in bad]
        file = printable(self.keypoints)
        poses: dict[str, Pose] = {}
        for name, pose in sorted(rows.items()):
            if name not in known:
                message = f"{printable(name)} is no usable image of the data set; the row is left out"
                problems.append(AnnotationProblem(file, 0, "name", message, "unknown-image"))
            elif known[name] in poses:
                message = f"{printable(name)} is {known[name]}, which has a row already; left out"
                problems.append(AnnotationProblem(file, 0, "name", message, "bad-keypoints"))
            else:
                poses[known[name]] = pose
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
        found = next((file for file in _candidates(record, stem) if self._holds(kind, file)), None)
        if found is None:
            own = record.path.rpartition("/")[2] == record.name  # else the data set's name says little
            wanted = stem if own else record.path.rpartition(".")[0]
            path, rule = f"{self.folders[kind]}/{wanted}{_MAP_SUFFIXES[0]}", f"missing-{kind}"
            problems.append(AnnotationProblem(path, 0, kind, "no such file", rule))
            return None
        path = f"{self.folders[kind]}/{found}"
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

    def _holds(self, kind: str, file: str) -> bool:
        return file in self.names[kind] or ("/" in file and (self.root / self.folders[kind] / file).is_file())


def _candidates(record: PersonRecord, stem: str) -> list[str]:
    """Where a map or mask may lie in its folder, the data set's own name first."""
    path = record.path.rpartition(".")[0]
    # x.jpg.jpg is annotated by x.png or, where only the last extension was exchanged, by x.jpg.png
    bases = (stem, record.name.rpartition(".")[0], path, path.replace("/", "_"))
    return [base + suffix for suffix in _MAP_SUFFIXES for base in dict.fromkeys(bases)]


def _by_alias(records: Sequence[PersonRecord]) -> dict[str, str]:
    """What a key-point row may call an image -> its name; a name wins over a path."""
    known = {record.name: record.name for record in records}
    for record in records:
        known.setdefault(record.path, record.name)
        known.setdefault(record.path.replace("/", "_"), record.name)
    return known
