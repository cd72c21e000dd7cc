"""No benchmark is run by the suite, so that a name that has moved would be found by the next who measures."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
FILES = sorted(BENCHMARKS.rglob("*.py"))


def _taken(path: Path) -> list[tuple[str, str]]:
    """Module and name of everything of ours that a file imports."""
    return [
        (node.module or "", alias.name)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("reposer")
        for alias in node.names
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(BENCHMARKS)))
def test_what_a_benchmark_imports_from_the_package_is_there(path: Path) -> None:
    missing = [(module, name) for module, name in _taken(path) if not _is_there(module, name)]

    assert not missing


def test_the_benchmarks_are_found_and_import_from_the_package() -> None:
    assert sum(len(_taken(path)) for path in FILES) > 50


def _is_there(module: str, name: str) -> bool:
    """Whether the module has it, as a name of its own or as a module below it."""
    found = importlib.import_module(module)
    below = hasattr(found, "__path__") and importlib.util.find_spec(f"{module}.{name}") is not None
    return hasattr(found, name) or below
