"""The command line in this process, and deprecation warnings that our own calls raise."""

from __future__ import annotations

import gc
import os
import sys
import warnings
from pathlib import Path
from types import FrameType

import pytest

from reposer.cli import main as cli

os.environ["PIP_NO_INDEX"] = "1"  # no test fetches a network from the machine's package index by mistake
os.fsync = os.fstat  # no test outlives a loss of power; a wrong descriptor is still an error
ROOT = Path(__file__).parents[1]
OURS = tuple(str(ROOT / folder) + "/" for folder in ("src", "tests", "benchmarks"))
DEPRECATIONS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)
# modules between caller and called
_DECORATORS = (
    "contextlib",
    "functools",
    "typing_extensions",
    "warnings",
)


class OurCall:
    """In the place of a warning filter's module pattern: matches where our own code made the call.

    A warning names a module: that of the frame ``stacklevel`` above the one that warns. Where a library
    counts that right, our file is named, and that is a match. Many leave ``stacklevel`` at 1 and name
    themselves, so a function that warns and that our code called directly matches as well. A library that
    calls what another one, or itself, has deprecated does not: that is for its own authors to mend.
    """

    def match(self, module: str) -> bool:
        """``module``: as the warning names it; called by the interpreter from within ``warnings.warn``."""
        frame: FrameType | None = sys._getframe(1)
        if frame is not None and not _ours(frame) and "warn" not in frame.f_code.co_names:
            return _named(frame, module)  # a warning of compiled code: only what it names is known
        caller = frame.f_back if frame is not None else None
        while caller is not None and caller.f_globals.get("__name__") in _DECORATORS:
            caller = caller.f_back
        return any(_ours(f) for f in (frame, caller) if f is not None) or _named(frame, module)


def _ours(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(OURS)


def _named(frame: FrameType | None, module: str) -> bool:
    """Whether the module that the warning names is one of ours: the nearest frame of that name."""
    while frame is not None and frame.f_globals.get("__name__") != module:
        frame = frame.f_back
    return frame is not None and _ours(frame)


def pytest_collection_finish(session):
    """What thousands of collected tests hold is never garbage: each training ends with a full collection."""
    _keep()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item, nextitem):
    """Nor is what a file of tests leaves behind: modules that it imported, classes, caches."""
    ended = yield
    if nextitem is None or nextitem.path != item.path:
        _keep()
    return ended


def _keep():
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Deprecations of our own calls are errors in every test and its fixtures; its marks come first."""
    marked = sum(len(mark.args) for mark in item.iter_markers("filterwarnings"))
    for category in DEPRECATIONS:
        warnings.simplefilter("error", category)  # tells the interpreter that the filters change
        action, message, of, _, line = warnings.filters.pop(0)
        warnings.filters.insert(marked, (action, message, of, OurCall(), line))
    return (yield)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line in this process; gives exit code, standard output, standard error."""

    def _run(*arguments):
        monkeypatch.setattr(sys, "argv", ["reposer", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return _run
