"""Key-points that other programs have made, as a source beside the detectors: ``KIND:PATH``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reposer.annotation.interfaces import AnnotatorInfo
from reposer.data.keypoint_imports import (
    FORMATS,
    TABLES,
    import_keypoints,
    keypoint_places,
    refuse_other_kind,
)
from reposer.data.keypoints import Pose
from reposer.data.problems import AnnotationProblem
from reposer.errors import UserError
from reposer.files import sha256_file
from reposer.paths import printable

_SAMPLE = 500  # files of a folder that are read to see what its key-points mean
_ENDS = {"pidm": (".txt",)}  # how the files of a kind end; of the others:
_JSON_ENDS = ("_keypoints.json", ".json")


class KeypointFiles:
    """Key-points from a file or a folder of files.

    An image a/b.jpg is found as a/b.jpg, a_b.jpg or, in a table, b.jpg.

    Args:
        kind: one of ``keypoint_imports.FORMATS``.
        path: the CSV, or the folder.

    Raises:
        UserError: unknown kind, nothing there or a file of another kind, a CSV with another header, or
            key-points that as a whole mean something else (``keypoints.wrong_meaning``).
    """

    def __init__(self, kind: str, path: Path) -> None:
        if kind not in FORMATS:
            raise UserError(f"key-points of kind {kind!r}: unknown", f"use one of {', '.join(FORMATS)}")
        refuse_other_kind(path, kind)
        self.kind, self.path = kind, path
        digest = sha256_file(path) if kind in TABLES else ""
        self.info = AnnotatorInfo(f"{kind} files of {path.name}", digest)
        if kind in TABLES:
            self._table  # noqa: B018 read now, so that a wrong header is told before anything is made
        else:
            import_keypoints(path, kind, _sample(path, kind))

    def places(self, image: str) -> list[Path]:
        """The files that may hold an image's key-points; none for a table, whose hash is in ``info``."""
        if self.kind in TABLES:
            return []
        return [place for name in _names(image) for place in keypoint_places(self.path, self.kind, name)]

    def find(self, image: str, size: tuple[int, int]) -> tuple[Pose | None, list[AnnotationProblem]]:
        """(18, 2) of an image, None where there is none, and what was wrong with it.

        Args:
            image: its path, '/' as separator.
            size: its (H, W); a pose with a joint outside is not used.
        """
        names = _names(image)
        if self.kind in TABLES:
            table, problems = self._table
            pose = next((table[n] for n in (*names, image.rpartition("/")[2]) if n in table), None)
            problems = []
        else:
            found = [import_keypoints(self.path, self.kind, [name]) for name in names]
            pose = next((poses[n] for n, (poses, _) in zip(names, found, strict=True) if n in poses), None)
            listed = [problem for _, some in found for problem in some]
            problems = [problem for problem in listed if problem.rule != "missing-keypoints"]
        if pose is None:
            if not problems:
                problems = [_problem(self.path, f"no row or file for {image}", "missing-keypoints")]
            return None, problems
        if _outside(pose, size).any():
            told = f"a joint of {image} lies outside the image ({size[1]}x{size[0]})"
            return None, [_problem(self.path, told, "bad-keypoints")]
        return pose, []

    def table_problems(self) -> list[AnnotationProblem]:
        """Bad rows of a table, which belong to no image."""
        if self.kind not in TABLES:
            return []
        return [replace(problem, rule="bad-keypoints") for problem in self._table[1]]

    @cached_property
    def _table(self) -> tuple[dict[str, Pose], list[AnnotationProblem]]:
        return import_keypoints(self.path, self.kind, [])


def joint_scores(poses: Sequence[Pose]) -> NDArray[np.float32]:
    """(B, 18) 1 for a joint that is there: files tell no confidence that means the same everywhere."""
    return (~np.isnan(np.stack(poses)[..., 0])).astype(np.float32)


def _sample(folder: Path, kind: str) -> list[str]:
    """Names of images whose key-points lie in the folder, evenly taken from all."""
    ends = _ENDS.get(kind, _JSON_ENDS)
    found: dict[str, None] = {}
    for place in sorted(folder.rglob(f"*{ends[-1]}")):
        name = place.relative_to(folder).as_posix()
        found[name.removesuffix(next(end for end in ends if name.endswith(end))) + ".jpg"] = None
    names = list(found)
    return names[:: max(len(names) // _SAMPLE, 1)]


def _names(image: str) -> list[str]:
    return list(dict.fromkeys((image, image.replace("/", "_"))))


def _outside(pose: Pose, size: tuple[int, int]) -> NDArray[np.bool_]:
    return np.asarray((pose[:, 0] >= size[1]) | (pose[:, 1] >= size[0]))  # NaN is never outside


def _problem(path: Path, message: str, rule: str) -> AnnotationProblem:
    return AnnotationProblem(printable(path), 0, "keypoints", message, rule)
