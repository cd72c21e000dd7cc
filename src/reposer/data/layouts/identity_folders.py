"""Any folder of images as a data set: who is on them stands in sub-folders, names, a table, or nowhere.

    ROOT/PERSON/*.jpg                                    identities are folders (the default)
    ROOT/**/*.jpg with a regular expression              identities are in the file names
    ROOT/**/*.jpg with a CSV or Parquet of path, pid     identities are in the table
    ROOT/**/*.jpg, anonymous                             every image counts as a person of its own

Each also below ROOT/train/, val/, query/, gallery/, which are then the splits; without them all is training.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from reposer.data.layouts.labeled_files import IMAGE_SUFFIXES, NO_CAMERA, Listing, Problems, labeled
from reposer.data.layouts.tables import read_rows, row_problem
from reposer.data.problems import AnnotationProblem
from reposer.data.records import SPLITS
from reposer.errors import UserError
from reposer.paths import printable

CAMERA_IN_NAME = r"_c([0-9]{1,3})"
_BESIDE = ("parsing", "mask", "lists", "annotation")  # what annotations are in, see annotation_lookup.py
_NUMBER = re.compile("-1|[0-9]{1,9}", re.ASCII)


def list_folders(
    root: Path,
    camera: str = CAMERA_IN_NAME,
    identity: str | None = None,
    labels: str | None = None,
    anonymous: bool = False,
) -> Listing:
    """The images below ``root``, hidden files and annotation folders aside, with identity and camera.

    Identities that are all numbers stay (-1 junk, 0 distractors); if any is not, people are numbered from 1
    in the order of their names. A camera that nothing names is 0, which is listed.

    Args:
        root: the folder.
        camera: regular expression whose first group is the camera number, in the file name.
        identity: regular expression whose first group is the identity, in the file name.
        labels: CSV or Parquet with the columns path (relative to ``root``) and pid (any text), and if you
            like camid and split.
        anonymous: nobody is known.

    Raises:
        UserError: more than one source of identities, a bad expression or table, folders that hold no images.
    """
    given = [name for name, value in (("identity", identity), ("labels", labels)) if value is not None]
    given += ["anonymous"] * anonymous
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)}: two sources of identities", "give one")
    cameras = _compiled("camera", camera)
    problems: Problems = []
    if labels is not None:
        found = _labeled_by_table(root, Path(labels), problems)
    elif identity is not None:
        found = _labeled_by_name(root, _compiled("identity", identity), problems)
    elif anonymous:
        found = [(path, str(n), s, None) for n, (path, s) in enumerate(_images(root, problems), start=1)]
    else:
        found = _labeled_by_folder(root, problems)
    numbers = _numbers(person for _, person, _, _ in found)
    camids, unnamed = _camids(root, found, cameras)
    files = [
        labeled(path, numbers[person], camid, split)
        for (path, person, split, _), camid in zip(found, camids, strict=True)
    ]
    return files, problems + unnamed


_Found = list[tuple[str, str, str, int | None]]  # path, identity, split, camera where it is known


def _labeled_by_folder(root: Path, problems: Problems) -> _Found:
    found: _Found = []
    loose = ""
    for path, split in _images(root, problems):
        parts = path.split("/")
        parts = parts[1:] if _splits(root) else parts
        if len(parts) == 2:
            found.append((path, parts[0], split, None))
            continue
        loose = loose or path
        where = "lies in no person's folder" if len(parts) < 2 else "lies deeper than a person's folder"
        problems.append(AnnotationProblem(printable(path), 0, "path", f"{where}; left out", "no-folder"))
    if loose and not found:
        problem = f"{printable(root)}: {printable(loose)} and all other images lie in no folder of a person"
        raise UserError(problem, "say who they are: --identity REGEX, --labels CSV or --anonymous")
    return found


def _labeled_by_name(root: Path, pattern: re.Pattern[str], problems: Problems) -> _Found:
    found: _Found = []
    for path, split in _images(root, problems):
        match = pattern.search(path.rpartition("/")[2])
        if match is not None and match[1]:
            found.append((path, match[1], split, None))
        else:
            message = f"{pattern.pattern} finds no identity in the name; left out"
            problems.append(AnnotationProblem(printable(path), 0, "name", message, "bad-name"))
    return found


def _labeled_by_table(root: Path, table: Path, problems: Problems) -> _Found:
    found: _Found = []
    rows: dict[str, int] = {}
    first, content = read_rows(table, ("path", "pid"), ("camid", "split"))
    for number, row in enumerate(content, start=first):
        row["split"] = row["split"] or "train"
        wrong = row_problem(row | {"pid": "0", "camid": row["camid"] or "0"}, rows)
        if not wrong and not row["pid"]:
            wrong = ("pid", "no identity", "bad-label")
        if wrong:
            field, message, rule = wrong
            problems.append(AnnotationProblem(table.name, number, field, f"{message}; left out", rule))
            continue
        rows[row["path"]] = number
        camid = int(row["camid"]) if row["camid"] else None
        found.append((row["path"], row["pid"], row["split"], camid))
    for path, _ in _images(root, problems):
        if path not in rows:
            message = f"stands in no row of {table.name}; left out"
            problems.append(AnnotationProblem(printable(path), 0, "path", message, "unlabeled"))
    return found


def list_images(root: Path, problems: Problems, below: str = "") -> list[str]:
    """Sorted paths, relative to ``root``, of every image file below ``root / below``.

    Told by the file name alone. Hidden files, annotation folders of ``root`` and links to folders are passed
    over; a name that not every system can hold is listed as a problem.
    """
    found = []
    for folder, folders, names in os.walk(root / below):
        if Path(folder) == root:
            folders[:] = [name for name in folders if name not in _BESIDE]
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = Path(folder).relative_to(root).as_posix()
        for name in sorted(names):
            path = name if inside == "." else f"{inside}/{name}"
            if name.startswith(".") or not name.lower().endswith(IMAGE_SUFFIXES):
                continue
            if printable(path) != path or "\\" in path:
                message = "the name holds undecodable bytes, a backslash or control characters; left out"
                problems.append(AnnotationProblem(printable(path), 0, "name", message, "bad-path"))
                continue
            found.append(path)
    return sorted(found)


def _images(root: Path, problems: Problems) -> Sequence[tuple[str, str]]:
    """(path relative to ``root``, split) of every image file, sorted."""
    splits = _splits(root) or ("",)
    return sorted((path, below or "train") for below in splits for path in list_images(root, problems, below))


def _splits(root: Path) -> tuple[str, ...]:
    return tuple(split for split in SPLITS if (root / split).is_dir())


def _numbers(people: Iterable[str]) -> dict[str, int]:
    known = sorted(set(people))
    if all(_NUMBER.fullmatch(person) for person in known):
        return {person: int(person) for person in known}
    return {person: number for number, person in enumerate(known, start=1)}


def _camids(root: Path, found: _Found, pattern: re.Pattern[str]) -> tuple[list[int], Problems]:
    """The camera of every image, and a problem for each without one, or a single one when none has."""
    camids: list[int] = []
    unnamed: Problems = []
    for path, _, _, known in found:
        match = pattern.search(path.rpartition("/")[2])
        if known is None and (match is None or not _NUMBER.fullmatch(match[1] or "")):
            message = f"names no camera ({pattern.pattern}); camera {NO_CAMERA} is taken"
            unnamed.append(AnnotationProblem(printable(path), 0, "camera", message, "no-camera"))
            camids.append(NO_CAMERA)
        else:
            camids.append(int(match[1]) if known is None and match is not None else known or NO_CAMERA)
    if found and len(unnamed) == len(found):
        message = f"no file name names a camera ({pattern.pattern}); camera {NO_CAMERA} is taken for all"
        unnamed = [AnnotationProblem(printable(root), 0, "camera", message, "no-camera")]
    return camids, unnamed


def _compiled(option: str, text: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(text, re.ASCII)
    except re.error as error:
        raise UserError(f"{option} {text!r}: no regular expression ({error})", "correct it") from error
    if pattern.groups < 1:
        raise UserError(f"{option} {text!r}: has no group", f"put the {option} in parentheses")
    return pattern
