"""Errors a user can cause: one clear line that names the file, row and field and says what to do."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Mapping
from typing import TypeVar

NOT_ON_WINDOWS = "reposer runs on Linux and macOS; on Windows, use it inside WSL 2 (the Linux subsystem)"

# a number beyond these is wrong wherever a user or a file gives it
LARGEST, LARGEST_SEED = 2**31 - 1, 2**63 - 1  # of a count or a weight; of a seed
MOST_SIDE_BY_SIDE = 1024  # threads or processes
MOST_AT_ONCE = 65_536  # pictures of a batch
MOST_SOURCES = 16  # images of one person that a picture is made from


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
