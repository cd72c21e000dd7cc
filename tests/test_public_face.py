"""``from reposer import ...``: every public name is there, documented, and costs nothing until it is used."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import reposer

FILE = Path(reposer.__file__)


def test_importing_the_package_loads_neither_torch_nor_anything_else():
    code = (
        "import sys; import reposer; dir(reposer); "
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules; "
        "from reposer import UserError; assert 'torch' not in sys.modules; "
        "assert [m for m in sys.modules if m.startswith('reposer.')] == ['reposer.errors']"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", reposer.__all__)
def test_a_public_name_is_what_its_module_defines_and_is_documented(name):
    module, _, attribute = reposer._PLACES[name].partition(":")
    thing = getattr(reposer, name)
    assert thing is getattr(import_module(module), attribute)
    assert inspect.getdoc(thing)


def test_type_checkers_and_python_know_the_same_names():
    block = next(node for node in ast.parse(FILE.read_text()).body if isinstance(node, ast.If))
    seen = {
        alias.asname: f"{node.module}:{alias.name}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == reposer._PLACES
    assert sorted(seen) == sorted(reposer.__all__)
    assert {*reposer.__all__, "__version__"} == set(dir(reposer))


def test_another_name_is_an_error_that_says_so():
    with pytest.raises(AttributeError, match="no attribute 'PoseTransfr'"):
        _ = reposer.PoseTransfr
