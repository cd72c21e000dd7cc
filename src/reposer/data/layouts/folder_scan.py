"""Lists the files of a data set's folders, in an order that does not depend on the disk."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from reposer.data.problems import AnnotationProblem
from reposer.errors import UserError
from reposer.paths import RefusedFileError, contained, printable


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
        raise UserError(f"{printable(folder)}: no such folder", "check the path")
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
