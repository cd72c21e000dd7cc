"""Errors a user can cause: one clear line that names the file, row and field and says what to do."""

from __future__ import annotations

import difflib
import errno
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

NOT_ON_WINDOWS = "reposer runs on Linux and macOS; on Windows, use it inside WSL 2 (the Linux subsystem)"

# a number beyond these is wrong wherever a user or a file gives it
LARGEST, LARGEST_SEED = 2**31 - 1, 2**63 - 1  # of a count or a weight; of a seed
MOST_SIDE_BY_SIDE = 1024  # threads or processes
MOST_AT_ONCE = 65_536  # pictures of a batch
MOST_SOURCES = 16  # images of one person that a picture is made from
# What to do about each fault; other OSErrors are programming errors and pass unchanged.
DISK_FAULTS = {
    errno.ENOSPC: "free some space or choose a folder on another disk",
    errno.EDQUOT: "the disk quota is used up; free some space or ask for a larger quota",
    errno.EROFS: "the disk is mounted read-only; choose another folder",
    errno.EACCES: "grant write permission or choose another folder",
    errno.EPERM: "grant write permission or choose another folder",
    errno.EFBIG: "the file system or ulimit refuses files of this size; choose another disk",
    errno.EIO: "the disk reports an input/output error; check it and choose another folder",
    errno.ESTALE: "the network disk is gone; mount it again",
    errno.ENOTCONN: "the network disk is gone; mount it again",
    errno.ENOENT: "check the path: the folder is not there",
    errno.ENOTDIR: "check the path: a part of it is a file",
    errno.EEXIST: "something of this name is in the way; choose another path",
    errno.EISDIR: "a folder of this name is in the way; choose another path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "a link is in the way; remove it, or choose another path",
}


class UserError(Exception):
    """Something the user can mend; the command line prints its text without a traceback and exits with 1.

    Args:
        problem: what is wrong, naming file, row and field.
        advice: what to do about it, an imperative sentence without a final full stop; may be empty.
    """

    def __init__(self, problem: str, advice: str = "") -> None:
        super().__init__(f"{problem}: {advice}" if advice else problem)
        self.problem = problem
        self.advice = advice


class NonFiniteError(UserError):
    """A number that must be finite is NaN or infinite; nothing was updated or saved."""


class MissingWeightsError(UserError):
    """Weights of a named network are not on this machine; nothing is ever put in their place."""


class DiskError(UserError):
    """The disk refused a write (full, quota, read-only, faulty); what was there before is still there."""


@contextmanager
def disk_faults(path: str | os.PathLike[str], needed: int = 0) -> Iterator[None]:
    """Turn an OSError of the block that the user can mend into a :class:`DiskError`; ``needed`` in bytes."""
    try:
        yield
    except OSError as error:
        advice = DISK_FAULTS.get(error.errno or 0)
        if advice is None:
            raise
        wanted = f" ({needed:,} bytes needed)" if needed else ""
        raise DiskError(f"{path}: cannot be written{wanted}: {error.strerror}", advice) from error


_log = logging.getLogger(__name__)
T = TypeVar("T")
N = TypeVar("N", bound=str)


def find(kind: str, name: str, table: Mapping[str, T], *others: str) -> T:
    """The entry of that name in a registry, a plain dict.

    Args:
        kind: what the names are of, for the message.
        name: what the user wrote.
        table: name -> the thing itself.
        others: names that mean something beside the table's; they are listed too.

    Raises:
        UserError: there is none; names the nearest and lists all.
    """
    if name in table:
        return table[name]
    raise unknown(kind, name, [*table, *others])


def with_plugins(group: str, table: Mapping[str, T]) -> dict[str, T]:
    """A registry and what other installed packages add to it, by entry points of the group.

    One that cannot be imported, or has a name that is taken, is left out with a warning that names it.

    Args:
        group: of the entry points, as "reposer.generators".
        table: our own, which nobody replaces.
    """
    from importlib.metadata import entry_points  # here: the command line's help does without

    whole = dict(table)
    for point in entry_points(group=group):
        package = point.dist.name if point.dist else "an installed package"
        if point.name in whole:
            _log.warning("%s of %s: %s has this name already; left out", point.name, package, group)
            continue
        try:
            whole[point.name] = point.load()
        except Exception as error:  # somebody else's code
            reason = (str(error).splitlines() or [""])[0][:200]
            _log.warning("%s of %s cannot be used: %s: %s", point.name, package, type(error).__name__, reason)
    return whole


def known(kind: str, name: str, names: Iterable[N]) -> N:
    """The same of names that stand for themselves.

    Raises:
        UserError: as :func:`find`.
    """
    return find(kind, name, {one: one for one in names})


_LONGEST_NAME = 80  # characters of what a user, or somebody else's file, wrote in the place of a name


def unknown(kind: str, name: str, names: Iterable[str]) -> UserError:
    """The error of a name that is none of ``names``: it names the nearest and lists all."""
    listed = list(names)
    near = difflib.get_close_matches(name[:200], listed, n=1, cutoff=0.0)
    nearest = f"did you mean {near[0]}? " if near else ""
    plain = name if name and name.isprintable() and len(name) <= _LONGEST_NAME else repr(name[:_LONGEST_NAME])
    return UserError(f"{kind} {plain}: unknown", f"{nearest}known: {', '.join(listed)}")
