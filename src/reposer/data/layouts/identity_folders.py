"""Any folder of images as a data set: who is on them stands in sub-folders, names, a table, or nowhere.

    ROOT/PERSON/*.jpg                                    identities are folders (the default)
    ROOT/**/*.jpg with a regular expression              identities are in the file names or paths
    ROOT/**/*.jpg with a CSV or Parquet of path, pid     identities are in the table
    ROOT/**/*.jpg, anonymous                             every image counts as a person of its own

Each also below ROOT/train/, val/, query/, gallery/ (or another name of SPLIT_NAMES), which are then the
splits; without them all is training.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from reposer.data.layouts.folder_scan import (
    format_of,
    nfc,
    portable_key,
    refuse_deep_splits,
    split_folders,
    walk_files,
)
from reposer.data.layouts.labeled_files import IMAGE_SUFFIXES, NO_CAMERA, Listing, Problems, labeled
from reposer.data.layouts.tables import read_rows, row_problem
from reposer.data.records import AnnotationProblem
from reposer.errors import UserError
from reposer.image_rules import FORMATS
from reposer.storage.paths import printable

CAMERA_IN_NAME = r"_c([0-9]{1,3})"
# what annotations are in, see data/preparing/annotation_lookup.py
_BESIDE = (
    "parsing",
    "mask",
    "lists",
    "annotation",
)
# Top-level folders that no person is called like: they are listed, not taken for people.
_LIKELY_ANNOTATIONS = {
    *("masks", "maps", "parsings", "parsing_maps", "schp", "segmentation", "segmentations", "seg", "labels"),
    *("label", "annotations", "keypoints", "poses", "pose", "openpose", "skeletons", "densepose"),
    "silhouettes",
}
# Folders that computers make beside a user's.
_OF_SYSTEMS = {"@eadir", "#recycle", "$recycle.bin", "lost+found", "system volume information", "__macosx"}
_NUMBER = re.compile("0*-1|[0-9]{1,9}", re.ASCII)  # MARS calls its junk 00-1
_NOBODY = {"nan", "NaN", "NAN", "null", "NULL", "None", "<NA>"}  # what programs write for no value
_NAMED_PERSON = re.compile(r"(-1|[0-9]{2,})_(?:[0-9]+_)?[cC][0-9]", re.ASCII)  # Market, VeRi, Duke, LTCC


def list_folders(
    root: Path,
    camera: str = CAMERA_IN_NAME,
    identity: str | None = None,
    labels: str | None = None,
    anonymous: bool = False,
    zero_based: bool = False,
    skip: Collection[str] = (),
) -> Listing:
    """The images below ``root``, hidden files and annotation folders aside, with identity and camera.

    Identities that are all numbers stay (-1 junk, 0 distractors); if any is not, people are numbered from 1
    in the order of their names, junk and distractors aside. A camera that nothing names is 0, which is
    listed; single letters are cameras too, A is 1. An expression that holds a "/" is looked for in the path
    below ``root``, any other in the file name.

    Args:
        root: the folder.
        camera: regular expression whose first group is the camera.
        identity: regular expression whose first group is the identity.
        labels: CSV or Parquet with the columns path (relative to ``root``) and pid (any text), and if you
            like camid and split.
        anonymous: nobody is known.
        zero_based: people are counted from 0: 1 is added to every number from 0 on.
        skip: relative paths of annotation folders, never scanned for people.

    Raises:
        UserError: more than one source of identities, a bad expression or table, folders that hold no images.
    """
    cameras = _compiled("camera", camera)
    given = [name for name, value in (("identity", identity), ("labels", labels)) if value is not None]
    given += ["anonymous"] * anonymous
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)}: two sources of identities", "give one")
    problems: Problems = []
    images = _images(root, problems, skip)
    if labels is None:
        refuse_deep_splits(root)
    if labels is not None:
        found = _labeled_by_table(root, Path(labels), images, problems)
    elif identity is not None:
        found = _labeled_by_name(_compiled("identity", identity), images, problems)
    elif anonymous:
        found = [(path, str(n), split, None) for n, (path, split, _) in enumerate(images, start=1)]
    else:
        found = _labeled_by_folder(root, images, problems)
    found = [(path, nfc(person), split, known) for path, person, split, known in found]
    numbers = _numbers((person for _, person, _, _ in found), zero_based)
    problems += [*_renumbered(root, numbers), *_merged(found, numbers), *_alike(found)]
    camids, unnamed = _camids(root, found, cameras)
    files = [
        labeled(path, numbers[person], camid, split)
        for (path, person, split, _), camid in zip(found, camids, strict=True)
    ]
    return files, problems + unnamed


_Found = list[tuple[str, str, str, int | None]]  # path, identity, split, camera where it is known
_Images = Sequence[tuple[str, str, str]]  # path, split, path below the split's folder


def _labeled_by_folder(root: Path, images: _Images, problems: Problems) -> _Found:
    found: _Found = []
    loose = deep = ""
    numbers_of: defaultdict[str, list[str]] = defaultdict(
        list
    )  # folder -> the numbers that its names begin with
    for path, split, below in images:
        parts = below.split("/")
        if len(parts) == 2:
            found.append((path, parts[0], split, None))
            if match := _NAMED_PERSON.match(parts[1]):
                numbers_of[path.rpartition("/")[0]].append(match[1])
            continue
        loose, deep = loose or path, deep or path * (len(parts) > 2)
        where = "lies in no person's folder" if len(parts) < 2 else "lies deeper than a person's folder"
        problems.append(AnnotationProblem(printable(path), 0, "path", f"{where}; left out", "no-folder"))
    if loose and not found:
        problem = f"{printable(root)}: {printable(loose)} and all other images lie in no folder of a person"
        named = _NAMED_PERSON.match(loose.rpartition("/")[2])
        expression = "'^([0-9]+)_'" if named else "REGEX"
        if deep:
            problem = (
                f"{printable(root)}: all images lie deeper than a person's folder, {printable(deep)} too"
            )
            expression = "REGEX (with a / it is looked for in the path)"
        raise UserError(problem, f"say who they are: --identity {expression}, --labels CSV or --anonymous")
    counted = all(_is_count(numbers) for numbers in numbers_of.values())
    for folder, people in sorted((folder, set(numbers)) for folder, numbers in numbers_of.items()):
        if len(people) > 1 and not counted:
            message = (
                f"counts as one person, but its file names begin with {len(people)} numbers ({min(people)},"
                f" {max(people)}); if those are the people, give --identity '^(-?[0-9]+)_'"
            )
            problems.append(AnnotationProblem(printable(folder), 0, "folder", message, "names-disagree"))
    return found


def _is_count(numbers: Sequence[str]) -> bool:
    """Whether these only count a folder's files, from 0 or 1 on, and so name nobody."""
    found = sorted(int(number) for number in numbers)
    return found[0] in (0, 1) and found == list(range(found[0], found[0] + len(found)))


def _labeled_by_name(pattern: re.Pattern[str], images: _Images, problems: Problems) -> _Found:
    found: _Found = []
    for path, split, _ in images:
        match = pattern.search(_looked_at(path, pattern))
        if match is not None and match[1]:
            found.append((path, match[1], split, None))
        else:
            message = f"{pattern.pattern} finds no identity in the name; left out"
            if "/" in pattern.pattern:
                message = f"{pattern.pattern} finds no identity in the path; left out"
            elif pattern.search(path):
                message += " (it matches the path: an expression with a / in it is looked for there)"
            problems.append(AnnotationProblem(printable(path), 0, "name", message, "bad-name"))
    return found


def _labeled_by_table(root: Path, table: Path, images: _Images, problems: Problems) -> _Found:
    """A split is the table's word; where it has none, that of the image's folder."""
    found: _Found = []
    rows: dict[str, int] = {}
    there = {nfc(path): path for path, _, _ in images}
    there |= {path: path for path, _, _ in images}
    split_of = {path: split for path, split, _ in images} if split_folders(root) else {}
    first, read = read_rows(table, ("path", "pid"), ("camid", "split"))
    content = list(read)
    told = any(row["split"] for row in content)
    if not told:
        refuse_deep_splits(root)
    named, apart = set[str](), []  # images that a row names; those whose folder is another split
    for number, row in enumerate(content, start=first):
        if not any(row.values()):  # a blank line
            continue
        path = row["path"] = there.get(row["path"]) or there.get(nfc(row["path"]), row["path"])
        named.add(path)
        row["split"] = row["split"] or split_of.get(path) or ("" if told else "train")
        wrong = row_problem(row | {"pid": "0", "camid": row["camid"] or "0"}, rows) or _no_person(row["pid"])
        if wrong:
            field, message, rule = wrong
            problems.append(AnnotationProblem(table.name, number, field, f"{message}; left out", rule))
            continue
        rows[path] = number
        camid = int(row["camid"]) if row["camid"] else None
        found.append((path, row["pid"], row["split"], camid))
        if row["split"] != split_of.get(path, row["split"]):
            apart.append(
                (number, f"{path} is {row['split']} here and lies in the folder of {split_of[path]}")
            )
    if apart:
        message = f"{printable(apart[0][1])} ({len(apart):,} such rows); the table's word is taken"
        problems.append(AnnotationProblem(table.name, apart[0][0], "split", message, "splits-disagree"))
    for path, _, _ in images:
        if path not in named:
            message = f"stands in no row of {table.name}; left out"
            problems.append(AnnotationProblem(printable(path), 0, "path", message, "unlabeled"))
    return found


def _no_person(pid: str) -> tuple[str, str, str] | None:
    """As ``row_problem``, of a text that names nobody."""
    if not pid or pid in _NOBODY:
        return "pid", f"no identity{f' ({pid})' if pid else ''}", "bad-label"
    if re.fullmatch("-[0-9]+", pid, re.ASCII) and not _NUMBER.fullmatch(pid):
        return (
            "pid",
            f"{printable(pid[:80])} is no person: -1 is junk, people have numbers from 1",
            "bad-label",
        )
    return None


def list_images(root: Path, problems: Problems, below: str = "", skip: Collection[str] = ()) -> list[str]:
    """Sorted paths, relative to ``root``, of every image file below ``root / below``.

    Known by the suffix, else by the first bytes. Hidden files and annotation folders of ``root`` are passed
    over; a link to a folder inside ``root`` is followed. Listed as problems: a link to elsewhere, a picture
    of a format that is not read, a name that not every system can hold.

    Args:
        skip: relative paths of further folders that hold no people.
    """
    found = []
    for path in walk_files(root, problems, below, {*_BESIDE, *skip}):
        if not path.lower().endswith(IMAGE_SUFFIXES):
            kind = format_of(root, path)
            if kind is None:
                continue
            if kind not in FORMATS:
                message = f"is {kind}; left out: convert it to JPEG, PNG, WebP or BMP"
                problems.append(AnnotationProblem(printable(path), 0, "image", message, "format"))
                continue
        if printable(path) != path or "\\" in path:
            message = "the name holds undecodable bytes, a backslash or control characters; left out"
            problems.append(AnnotationProblem(printable(path), 0, "name", message, "bad-path"))
            continue
        found.append(path)
    return found


def annotation_folders(
    root: Path, places: Iterable[str], skip: Collection[str], problems: Problems, options: str
) -> list[str]:
    """Folders directly in ``places`` that nobody gave, and that no person is called like; each is listed.

    Args:
        root: the folder of the images.
        places: relative paths of folders, "" for ``root`` itself.
        skip: relative paths of folders that were given by option.
        problems: gets a line for each.
        options: by which such a folder can be given, for the advice.
    """
    found = []
    for place in places:
        for name in sorted(os.listdir(root / place)):
            path = f"{place}/{name}" if place else name
            if name.lower() in _OF_SYSTEMS and (root / path).is_dir():
                message = "is a folder of the system's and no person; left out"
                problems.append(AnnotationProblem(printable(path), 0, "folder", message, "unread-folder"))
                found.append(path)
            elif name.lower() in _LIKELY_ANNOTATIONS and path not in skip and (root / path).is_dir():
                message = f"looks like annotations and is not read: give it by {options}, else rename it"
                problems.append(AnnotationProblem(printable(path), 0, "folder", message, "unread-folder"))
                found.append(path)
    return found


def _images(root: Path, problems: Problems, skip: Collection[str]) -> _Images:
    """Every image with its split and its path below the split's folder, sorted by path."""
    splits = split_folders(root)
    places = list(splits.values()) or [""]
    skip = {*skip, *annotation_folders(root, places, skip, problems, "--mask or --parsing")}
    found: list[tuple[str, str, str]] = []
    for split, folder in splits.items():
        paths = list_images(root, problems, folder, skip)
        found += [(path, split, path[len(folder) + 1 :]) for path in paths]
    if not splits:
        found = [(path, "train", path) for path in list_images(root, problems, "", skip)]
    return sorted(found)


def _numbers(people: Iterable[str], zero_based: bool) -> dict[str, int]:
    known = sorted(set(people))
    numbers = {person: int(person.lstrip("0") or "0") for person in known if _NUMBER.fullmatch(person)}
    if len(numbers) == len(known):
        return {person: number + (zero_based and number >= 0) for person, number in numbers.items()}
    kept = {person: number for person, number in numbers.items() if number < (not zero_based)}
    others = (person for person in known if person not in kept)
    return kept | {person: number for number, person in enumerate(others, start=1)}


def _renumbered(root: Path, numbers: dict[str, int]) -> Problems:
    """A warning where numbers do not stay, since somebody is called otherwise."""
    texts = [person for person in numbers if not _NUMBER.fullmatch(person)]
    if not texts or len(texts) == len(numbers):
        return []
    message = (
        f"{printable(texts[0])}{' and others are' if len(texts) > 1 else ' is'} no number: all people are"
        " numbered anew from 1 in the order of their names (-1 stays junk, 0 distractors); if that is nobody,"
        " take it away"
    )
    return [AnnotationProblem(printable(root), 0, "pid", message, "renumbered")]


def _merged(found: _Found, numbers: dict[str, int]) -> Problems:
    """A warning for every number that people of several spellings share: 7 and 0007 are one person."""
    spellings: defaultdict[int, dict[str, str]] = defaultdict(dict)  # number -> spelling -> first image
    for path, person, _, _ in found:
        spellings[numbers[person]].setdefault(person, path)
    return [
        AnnotationProblem(
            printable(list(paths.values())[-1]),
            0,
            "pid",
            f"{printable(' and '.join(sorted(paths)))} count as one person, {number}: rename those of others",
            "names-disagree",
        )
        for number, paths in sorted(spellings.items())
        if len(paths) > 1
    ]


def _alike(found: _Found) -> Problems:
    """A warning for people whose names are one on a disk that ignores letter case: Anna and anna are two."""
    spellings: defaultdict[str, dict[str, str]] = defaultdict(dict)  # folded -> spelling -> last image
    for path, person, _, _ in found:
        spellings[portable_key(person)][person] = path
    return [
        AnnotationProblem(
            printable(max(people.values())),
            0,
            "pid",
            f"{printable(' and '.join(sorted(people)))} differ in letter case alone and count as"
            f" {len(people)} people; on macOS and Windows they would be one: give one another name, or"
            " put the images of one person together",
            "names-disagree",
        )
        for _, people in sorted(spellings.items())
        if len(people) > 1
    ]


def _camids(root: Path, found: _Found, pattern: re.Pattern[str]) -> tuple[list[int], Problems]:
    """The camera of every image, and a problem for each without one, or a single one when none has."""
    camids: list[int] = []
    unnamed: Problems = []
    odd = ""
    for path, _, _, known in found:
        match = pattern.search(_looked_at(path, pattern))
        camid = known
        if camid is None and match is not None:
            camid = _camera(match[1] or "")
        if camid is None:
            message = f"names no camera ({pattern.pattern}); camera {NO_CAMERA} is taken"
            if match is not None:
                odd = odd or printable(match[1] or "")
                message = (
                    f"{pattern.pattern} matched {printable(match[1] or '')!r}, neither a number nor a letter"
                )
                message = f"{message}; camera {NO_CAMERA} is taken"
            unnamed.append(AnnotationProblem(printable(path), 0, "camera", message, "no-camera"))
        camids.append(NO_CAMERA if camid is None else camid)
    if found and len(unnamed) == len(found):
        message = f"no file name names a camera ({pattern.pattern}); camera {NO_CAMERA} is taken for all"
        if odd:
            message = f"{pattern.pattern} matched {odd!r}, neither a number nor a letter"
            message = f"{message}; camera {NO_CAMERA} is taken for all"
        elif "/" not in pattern.pattern and all(pattern.search(path) for path, _, _, _ in found):
            message += " (it matches the paths: an expression with a / in it is looked for there)"
        unnamed = [AnnotationProblem(printable(root), 0, "camera", message, "no-camera")]
    return camids, unnamed


def _camera(text: str) -> int | None:
    """A number, or a single letter: A is 1."""
    if _NUMBER.fullmatch(text) and text != "-1":
        return int(text)
    if len(text) == 1 and text.isascii() and text.isalpha():
        return ord(text.upper()) - ord("A") + 1
    return None


def _looked_at(path: str, pattern: re.Pattern[str]) -> str:
    return path if "/" in pattern.pattern else path.rpartition("/")[2]


def _compiled(option: str, text: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(text, re.ASCII)
    except re.error as error:
        raise UserError(f"{option} {text!r}: no regular expression ({error})", "correct it") from error
    if pattern.groups < 1:
        raise UserError(f"{option} {text!r}: has no group", f"put the {option} in parentheses")
    return pattern
