"""Deprecations are errors where our own call raises them, whatever module the warning names, only there."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
import warnings
from collections.abc import Callable
from functools import partial
from types import FunctionType, ModuleType

import pytest

DEPRECATIONS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)
LIBRARY = """
import warnings

def right(category):
    warnings.warn("old", category, stacklevel=2)  # names its caller

def wrong(category):
    warnings.warn("old", category)  # names itself

def inner(category):
    right(category)  # its own author's affair

def inner_wrong(category):
    wrong(category)
"""


@pytest.fixture
def library(tmp_path, monkeypatch) -> ModuleType:
    """A module of somebody else."""
    path = tmp_path / "somebodys_library.py"
    path.write_text(LIBRARY)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, path.stem, module)
    return module


def _let_through(work: Callable[[], object]) -> list[type[Warning]]:
    """The warnings of a call under the filters of every test, had it shown them all."""
    with warnings.catch_warnings(record=True) as seen:
        errors = [f for f in warnings.filters if f[0] == "error" and f[2] in DEPRECATIONS]
        warnings.simplefilter("always")
        warnings.filters[:0] = errors
        work()
    return [warning.category for warning in seen]


@pytest.mark.parametrize("category", DEPRECATIONS)
@pytest.mark.parametrize("name", ["right", "wrong"])
def test_a_call_of_ours_to_what_is_deprecated_is_an_error(library, name, category):
    with pytest.raises(category, match="old"):
        getattr(library, name)(category)


@pytest.mark.parametrize("category", DEPRECATIONS)
@pytest.mark.parametrize("name", ["inner", "inner_wrong"])
def test_a_call_within_a_library_is_none(library, name, category):
    assert _let_through(partial(getattr(library, name), category)) == [category]


def test_a_deprecation_in_compiled_code_is_ours_where_our_line_makes_the_call(library):
    def compiled():
        ctypes.pythonapi.PyErr_WarnEx(ctypes.py_object(FutureWarning), b"old", 1)

    with pytest.raises(FutureWarning):
        compiled()
    code = compiled.__code__.replace(co_filename=library.__file__)
    theirs = FunctionType(code, {"ctypes": ctypes, "__name__": library.__name__})
    assert _let_through(theirs) == [FutureWarning]


def test_other_warnings_pass(library):
    with pytest.warns(UserWarning, match="old"):
        library.wrong(UserWarning)


@pytest.mark.filterwarnings("ignore:old:DeprecationWarning")
def test_a_mark_of_a_test_comes_first(library):
    library.wrong(DeprecationWarning)
