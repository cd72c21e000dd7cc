"""Which files may be opened: regular files inside a given root, up to a size, never a FIFO or a device.

Everything that takes a path from a data set, a manifest or an annotation file comes through here, so that a
hostile name or link reads nothing outside the roots that the user gave.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path

from reposer.errors import UserError

_DRIVE = re.compile(r"[A-Za-z]:")


class RefusedFileError(UserError):
    """A file or path that is not used.

    Args:
        file: the file, as the user knows it.
        rule: short id of the rule that refuses it (the tables of docs/data.md).
        problem: what is wrong with it.
        advice: what to do about it.
    """

    def __init__(self, file: str | os.PathLike[str], rule: str, problem: str, advice: str = "") -> None:
        super().__init__(f"{printable(file)}: {problem}", advice)
        self.file = printable(file)
        self.rule = rule
        self.reason = problem


def printable(path: str | os.PathLike[str]) -> str:
    """The path as text that every terminal, CSV and JSON file can hold: bytes that are no UTF-8 and control
    characters become \\x.. escapes."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def check_relative(path: str) -> str:
    """``path`` itself if it is a portable relative path that cannot leave its root; '/' separates.

    Raises:
        ValueError: absolute, or holds '..', '.', an empty part, a drive, a backslash, a control character.
    """
    if not path or len(path) > 1024:
        raise ValueError("a path must have 1 to 1024 characters")
    if any(ord(c) < 32 or c == "\x7f" or "\ud800" <= c <= "\udfff" for c in path):
        raise ValueError("a path must not hold control characters or undecodable bytes")
    if "\\" in path or path.startswith("/") or _DRIVE.match(path):
        raise ValueError("a path must be relative, with '/' between its parts")
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError("a path must not hold '.', '..' or empty parts")
    return path


def contained(root: Path, relative: str) -> Path:
    """``root / relative``, refused where it leaves ``root``, be it by its text or through a link.

    Raises:
        RefusedFileError: rule ``bad-path`` or ``link-outside``.
    """
    try:
        path = root / check_relative(relative)
    except ValueError as error:
        raise RefusedFileError(relative, "bad-path", str(error), "correct the path") from error
    _resolve_inside(path, root)
    return path


def read_regular(path: Path, *, max_bytes: int, root: Path | None = None) -> bytes:
    """The bytes of a regular file, looked at before it is opened: nothing here can block or run away.

    Args:
        path: the file; a link to a regular file is followed.
        max_bytes: a larger file is refused unread.
        root: where given, a path that leads outside it (through links) is refused.

    Raises:
        RefusedFileError: rules ``missing``, ``not-a-file``, ``link-loop``, ``link-outside``, ``unreadable``,
            ``bad-path``, ``too-large``.
    """
    require_regular(path, root)
    try:
        # O_NONBLOCK: should the file be swapped for a FIFO between the two looks, open returns at once
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as file:
            _check_kind(path, os.fstat(descriptor).st_mode)
            size = os.fstat(descriptor).st_size
            data = file.read(max_bytes + 1) if size <= max_bytes else b""
    except (OSError, ValueError) as error:
        raise _refusal(path, error) from error
    if max(size, len(data)) > max_bytes:
        raise RefusedFileError(path, "too-large", f"larger than {max_bytes:,} bytes", "make it smaller")
    return data


def require_regular(path: Path, root: Path | None = None) -> None:
    """Refuse, without opening it, what is no regular file, or lies outside ``root`` where that is given.

    Raises:
        RefusedFileError: as :func:`read_regular`, ``too-large`` aside.
    """
    _resolve_inside(path, root)
    try:
        _check_kind(path, os.stat(path).st_mode)
    except (OSError, ValueError) as error:
        raise _refusal(path, error) from error


def _resolve_inside(path: Path, root: Path | None) -> None:
    """Refuse a path which, links followed, is not inside ``root``."""
    try:
        if root is not None and not _plainly_inside(path, root):
            real, base = os.path.realpath(path), os.path.realpath(root)
            if os.path.commonpath((real, base)) != base:
                advice = "copy the file into the data set"
                raise RefusedFileError(path, "link-outside", f"leads outside {printable(root)}", advice)
    except (OSError, ValueError) as error:
        raise _refusal(path, error) from error


def _plainly_inside(path: Path, root: Path) -> bool:
    """Whether ``path`` goes down from ``root`` without '..' and without a link."""
    parts = path.parts[len(root.parts) :]
    if path.parts[: len(root.parts)] != root.parts or ".." in parts:
        return False
    place = str(root)
    for part in parts:  # text: a Path for each would take longer than the looks at the disk
        place = os.path.join(place, part)
        if os.path.islink(place):
            return False
    return True


def _check_kind(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        names = {
            stat.S_IFDIR: "a folder",
            stat.S_IFIFO: "a FIFO",
            stat.S_IFSOCK: "a socket",
            stat.S_IFCHR: "a device",
            stat.S_IFBLK: "a device",
        }
        kind = names.get(stat.S_IFMT(mode), "something special")
        raise RefusedFileError(path, "not-a-file", f"is {kind}, not a regular file", "remove it")


def _refusal(path: Path, error: OSError | ValueError) -> RefusedFileError:
    if isinstance(error, ValueError):  # an embedded NUL
        return RefusedFileError(path, "bad-path", str(error), "rename the file")
    rule, problem, advice = {
        errno.ENOENT: ("missing", "no such file", "check the path"),
        errno.ENOTDIR: ("missing", "no such file", "check the path"),
        errno.ELOOP: ("link-loop", "is a link that leads to itself", "remove the link"),
        errno.ENAMETOOLONG: ("bad-path", "the name is too long", "shorten it"),
        errno.EACCES: ("unreadable", "may not be read", "give yourself the right to read it"),
        errno.EPERM: ("unreadable", "may not be read", "give yourself the right to read it"),
    }.get(error.errno or 0, ("unreadable", f"cannot be read ({error.strerror})", "check the disk"))
    return RefusedFileError(path, rule, problem, advice)
