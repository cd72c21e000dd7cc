"""Lists the files of a data set's folders, in an order that does not depend on the disk."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

from reposer.data.records import AnnotationProblem
from reposer.errors import UserError
from reposer.image_rules import sniff
from reposer.storage.paths import (
    RefusedFileError,
    check_relative,
    contained,
    no_folder,
    printable,
    require_regular,
)

_FEW = 20  # unread files of one folder that are listed one by one


def list_names(root: Path, folder: str) -> list[str]:
    """Sorted names of everything in ``root / folder``, one level deep; [] where there is no such folder.

    Raises:
        RefusedFileError: the folder is a link that leads outside ``root``.
        UserError: it cannot be listed.
    """
    path = contained(root, folder)
    try:
        return sorted(os.listdir(path))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(
            f"{printable(path)}: cannot be listed ({error.strerror})", "check the folder"
        ) from error


def relative_folder(root: Path, folder: str | Path) -> str:
    """A folder given by the user, as a '/'-separated path relative to ``root``, inside which it must lie.

    Raises:
        UserError: no folder, or outside ``root``.
    """
    if not os.path.isdir(folder):
        raise no_folder(folder)
    relative = os.path.relpath(os.path.realpath(folder), os.path.realpath(root)).replace(os.sep, "/")
    try:
        contained(root, relative)
    except RefusedFileError as error:
        advice = "put the folder into the data set's root, so that the manifest can name its files"
        raise UserError(f"{printable(folder)}: lies outside {printable(root)}", advice) from error
    return relative


def portable_key(name: str) -> str:
    """Equal for two names that are one file on macOS or Windows: Unicode NFC, then letter case folded."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def drop_collisions(
    files: Iterable[tuple[str, str]],
) -> tuple[list[tuple[str, str]], list[AnnotationProblem]]:
    """Keep the first of several (path, key) whose keys are equal on some system; list the others."""
    first: dict[str, str] = {}
    kept: list[tuple[str, str]] = []
    problems: list[AnnotationProblem] = []
    for path, key in files:
        holder = first.setdefault(portable_key(key), path)
        if holder is path:
            kept.append((path, key))
            continue
        message = f"is the same name as {printable(holder)}, which is kept; rename one of them"
        problems.append(AnnotationProblem(printable(path), 0, "name", message, "duplicate-name"))
    return kept, problems


def drop_shadowed(paths: Iterable[str]) -> tuple[list[tuple[str, str]], list[AnnotationProblem]]:
    """:func:`drop_collisions` of images by their names without suffix; also where STEM.png is a folder.

    The map and the mask of STEM.jpg are called STEM.png, and those of STEM.png/x.jpg lie in STEM.png.
    """
    kept, problems = drop_collisions((path, without_suffix(path)) for path in paths)
    folders = {portable_key(folder): folder for path, _ in kept for folder in _parents(path)}
    clear = []
    for path, stem in kept:
        folder = folders.get(portable_key(f"{stem}.png"))
        if folder is None:
            clear.append((path, stem))
            continue
        message = f"its map would have the name of the folder {printable(folder)}; rename one of them"
        problems.append(AnnotationProblem(printable(path), 0, "name", message, "duplicate-name"))
    return clear, problems


def nfc(text: str) -> str:
    """A name as everybody but macOS writes it: macOS stores é as e and an accent (Unicode NFD)."""
    return unicodedata.normalize("NFC", text)


def without_suffix(path: str) -> str:
    """The path without the last suffix of its file name; the path itself where the name has none."""
    folder, slash, name = path.rpartition("/")
    return folder + slash + (name.rpartition(".")[0] or name)


def walk_files(
    root: Path, problems: list[AnnotationProblem], below: str = "", skip: Container[str] = ()
) -> list[str]:
    """Sorted paths, relative to ``root``, of everything below ``root / below`` that is no folder.

    Links to folders inside ``root`` are followed; one that leads outside, to nothing or back to a folder that
    it lies in, or that other links on the way to it lie in, becomes a problem. Hidden files and folders are
    passed over.

    Args:
        skip: relative paths of folders that are not entered.
    """
    found: list[str] = []
    base = os.path.realpath(root)
    start = os.path.realpath(contained(root, below) if below else root)
    waiting: list[tuple[str, tuple[str, ...]]] = [(below, (start,))]
    while waiting:
        inside, passed = waiting.pop()  # a folder, and the real ones on the way to it
        for name in list_names(root, inside) if inside else sorted(os.listdir(root)):
            path = f"{inside}/{name}" if inside else name
            full = root / path
            if name.startswith(".") or path in skip:
                continue
            if not full.is_dir():
                found.append(path)
                continue
            real = os.path.realpath(full)
            if full.is_symlink() and os.path.commonpath((base, real)) != base:
                advice = "is a link that leads outside the data set; left out: copy the folder into it"
                problems.append(AnnotationProblem(printable(path), 0, "path", advice, "link-outside"))
            elif full.is_symlink() and any(os.path.commonpath((real, each)) == real for each in passed):
                advice = "is a link to a folder that it lies in; left out: remove the link"
                problems.append(AnnotationProblem(printable(path), 0, "path", advice, "link-loop"))
            elif printable(path) != path or "\\" in path:
                advice = "the name holds undecodable bytes, a backslash or control characters; left out"
                problems.append(AnnotationProblem(printable(path), 0, "name", advice, "bad-path"))
            elif odd := _not_portable(path):
                message = f"{odd}; left out: rename the folder"
                problems.append(AnnotationProblem(printable(path), 0, "name", message, "bad-path"))
            else:
                waiting.append((path, (*passed, real)))
    return sorted(found)


def _not_portable(path: str) -> str:
    """Why a folder of this relative path could not be everywhere; "" where it could."""
    try:
        check_relative(path)
    except ValueError as error:
        return str(error)
    return ""


def format_of(root: Path, path: str) -> str | None:
    """What a file's first bytes say: one of image_rules.FORMATS, another image format, or None.

    A file that is none, or that may not be read, is None; nothing is raised.
    """
    full = root / path
    try:
        require_regular(full, root)
        with full.open("rb") as file:
            return sniff(file.read(32))
    except (RefusedFileError, OSError, ValueError):
        return None


def unread(
    root: Path, used: Iterable[str], problems: Iterable[AnnotationProblem], known: Container[str]
) -> list[AnnotationProblem]:
    """A problem for whatever lies below ``root`` and was neither used nor listed: nothing is silent.

    A folder of which nothing was read is one line with the number of its files, and so are hidden files and
    more than a few files of one folder.

    Args:
        used: relative paths of the files that were read.
        problems: what is listed already.
        known: files and folders that are no images and are used as a whole (lists, tables).
    """
    mentioned = {problem.file for problem in problems}
    reached = {*used, *mentioned}
    folders = {parent for path in reached for parent in _parents(path)}
    found: list[AnnotationProblem] = []
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        left, hidden = [], []
        for name in sorted(os.listdir(root / inside)):
            path = f"{inside}/{name}" if inside else name
            if path in reached or printable(path) in mentioned or path in known:
                continue
            if name.startswith("."):
                hidden.append(path)
            elif not (root / path).is_dir():
                left.append(path)
            elif path in folders:
                waiting.append(path)
            elif count := sum(len(files) for _, _, files in os.walk(root / path)):
                message = f"is no part of what is read here; its {count:,} files are left out"
                found.append(AnnotationProblem(printable(path), 0, "folder", message, "unread-folder"))
        if hidden:
            message = f"{len(hidden):,} hidden files or folders are left out, first {printable(hidden[0])}"
            found.append(AnnotationProblem(printable(inside or root.name), 0, "folder", message, "hidden"))
        if len(left) > _FEW:
            message = (
                f"{len(left):,} files that nothing here asks for are left out, first {printable(left[0])}"
            )
            found.append(
                AnnotationProblem(printable(inside or root.name), 0, "folder", message, "unread-file")
            )
            continue
        message = "nothing here asks for this file; left out"
        found += [AnnotationProblem(printable(path), 0, "file", message, "unread-file") for path in left]
    return sorted(found, key=lambda problem: problem.file)


def _parents(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


# ---- Folders of splits.

# Names of a split's folder in the data sets and programs of the field, letter case aside; the first that is
# there is the split. "test" is the gallery only beside a folder of queries: alone it may be anything.
SPLIT_NAMES = {
    "train": ("train", "training", "bounding_box_train", "image_train", "images_train", "train_all"),
    "val": ("val", "valid", "validation", "dev"),
    "query": ("query", "queries", "probe", "image_query", "query_images"),
    "gallery": ("gallery", "bounding_box_test", "image_test", "gallery_images"),
}
_TEST = ("test", "testing")
# Words beside that of the split in a folder's name: bbox_train, query_set, Training-Images.
_FILLERS = {"bounding", "box", "bbox", "set", "image", "images", "img", "imgs", "data", "split", "crops"}


def split_folders(root: Path) -> dict[str, str]:
    """Split -> its folder below ``root``, by SPLIT_NAMES; empty where there is none."""
    names: dict[str, str] = {}
    for name in sorted(os.listdir(root), reverse=True):  # of Train and train the exact one stays, see below
        if (root / name).is_dir():
            names[name.lower()] = name
    names |= {name: name for name in names if (root / name).is_dir()}
    found = {}
    for split, known in SPLIT_NAMES.items():
        wanted = (*known, *_TEST) if split == "gallery" and "query" in found else known
        chosen = next((names[name] for name in wanted if name in names), None)
        chosen = chosen or next((names[name] for name in sorted(names) if _bare(name) in wanted), None)
        if chosen is not None:
            found[split] = chosen
    return found


def refuse_deep_splits(root: Path) -> None:
    """Refuse a folder whose only sub-folder holds the splits, as an unpacked archive does: none would count.

    Raises:
        UserError: names that folder.
    """
    if split_folders(root):
        return
    for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
        if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
            found = split_folders(Path(entry.path))
            if "train" in found and {"query", "gallery", "val"} & found.keys():
                folders = ", ".join(printable(folder) for folder in found.values())
                problem = f"its folder {printable(entry.name)} holds the splits ({folders})"
                advice = f"give {printable(entry.path)}, or all of it would be training images"
                raise UserError(f"{printable(root)}: {problem}", advice)


def _bare(name: str) -> str:
    """The one word of a folder's name that is no filler; "" where there are several. bbox_test is gallery."""
    words = [word for word in re.split(r"[_\- ]+", name) if word and word not in _FILLERS]
    boxes = {"bounding", "bbox"} & set(re.split(r"[_\- ]+", name))
    word = words[0] if len(words) == 1 else ""
    return "gallery" if boxes and word in _TEST else word
