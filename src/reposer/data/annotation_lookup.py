"""Finds the annotations of a data set's images and checks them: parsing maps, masks, key-points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from reposer.data.folder_scan import list_names, relative_folder
from reposer.data.keypoints import read_keypoints_csv
from reposer.data.label_files import read_mask
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

    @classmethod
    def find(
        cls,
        root: Path,
        parsing: str | Path | None = None,
        mask: str | Path | None = None,
        keypoints: str | Path | None = None,
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
            return cls(root, folders, names, found[0] if found else None)
        return cls(root, folders, names, Path(keypoints))

    def attach(self, record: PersonRecord, stem: str, problems: list[AnnotationProblem]) -> PersonRecord:
        """The record with the paths of its map and mask, each read and compared with the image's size."""
        size = (record.height, record.width)
        parsing = self._checked("parsing", record.name, stem, size, problems)
        mask = self._checked("mask", record.name, stem, size, problems)
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
        poses, bad = read_keypoints_csv(self.keypoints, {r.name: (r.width, r.height) for r in records})
        problems += [replace(problem, rule="bad-keypoints") for problem in bad]
        known = {record.name for record in records}
        file = printable(self.keypoints)
        for name in sorted(poses.keys() - known):
            message = f"{printable(name)} is no usable image of the data set; the row is left out"
            problems.append(AnnotationProblem(file, 0, "name", message, "unknown-image"))
        for name in sorted(known - poses.keys()):
            problems.append(
                AnnotationProblem(file, 0, "name", f"no usable row for {name}", "missing-keypoints")
            )
        return [replace(record, keypoints=poses.get(record.name)) for record in records]

    def _checked(
        self, kind: str, name: str, stem: str, size: tuple[int, int], problems: list[AnnotationProblem]
    ) -> str | None:
        """Relative path of a good annotation, None (and a problem) for a bad or missing one."""
        if kind not in self.folders:
            return None
        # x.jpg.jpg is annotated by x.png or, where only the last extension was exchanged, by x.jpg.png
        candidates = [base + suffix for suffix in _MAP_SUFFIXES for base in (stem, name.rpartition(".")[0])]
        found = next((file for file in candidates if file in self.names[kind]), None)
        if found is None:
            path, rule = f"{self.folders[kind]}/{candidates[0]}", f"missing-{kind}"
            problems.append(AnnotationProblem(path, 0, kind, "no such file", rule))
            return None
        path = f"{self.folders[kind]}/{found}"
        try:
            if kind == "parsing":
                read_parsing(contained(self.root, path), size)
            else:
                read_mask(contained(self.root, path), size)
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
