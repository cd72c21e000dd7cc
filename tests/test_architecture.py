"""The plan of the house: who may import whom, and how long a file and a function may be."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "reposer"
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_FILE_LINES, MAX_FUNCTION_LINES = 450, 80

ROOMS = {
    "data": set(),
    "models": set(),
    "losses": set(),
    "reid": set(),
    "metrics": set(),
    "annotation": {"data", "models"},
    "training": {"data", "models", "losses"},
    "generation": {"data", "models", "annotation", "reid"},
    "evaluation": {"data", "models", "reid", "metrics", "annotation"},
    "experiments": {
        *("data", "models", "losses", "reid", "metrics"),
        *("annotation", "training", "generation", "evaluation"),
    },
    "assets": set(),
}
GROUND_FLOOR = {
    *("errors", "structures", "paths", "files", "config", "images", "image_rules", "grids", "sections"),
    *("tables", "runs", "progress", "checkpoint", "state", "runtime", "weights", "downloads", "hub"),
    *("folder_lock", "bounded", "image_metadata", "worker_processes", "licences", "arrays", "seals"),
}
TOP = {"report"}  # reads JSON and images only
CLI = "cli"  # a room of commands: may import everything, but inside its functions only


def _imports(path: Path) -> list[tuple[str, bool]]:
    """Every reposer module that a file imports, and whether at the top level of the file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top_level = set(map(id, tree.body))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: relative import"
            assert all(alias.name != "*" for alias in node.names), f"{path.name}:{node.lineno}: import *"
            modules = [node.module or ""]
            if node.module in ("reposer", *(f"reposer.{room}" for room in ROOMS)):
                modules = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            continue
        found += [(m, id(node) in top_level) for m in modules if m.split(".")[0] == "reposer"]
    return found


def _room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_follow_the_table(path):
    here = path.relative_to(PACKAGE).with_suffix("").parts[0]
    for module, at_top in _imports(path):
        target = _room(module)
        if target in ("__version__", "__init__"):
            continue
        if here == CLI:
            assert not at_top or target in GROUND_FLOOR | {CLI}, f"cli imports {module} outside a function"
        elif here in ROOMS:
            assert target == here or target in ROOMS[here] | GROUND_FLOOR, f"{here} imports {module}"
        else:
            assert here in GROUND_FLOOR | TOP | {"__init__", "__main__"}, (
                f"{path.name} has no place in the plan"
            )
            assert target in GROUND_FLOOR or here == "__main__", f"{here} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_stay_short(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_FILE_LINES, f"{path.name} is too long: split it by idea"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{path.name}:{node.name} has {length} lines"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_file_says_what_it_is(path):
    if path.name == "__init__.py" and path.parent != PACKAGE:
        assert path.read_text() == "", "only the package's own __init__.py holds anything (the version)"
        return
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), f"{path.name} has no docstring"


def test_the_table_notices_a_forbidden_import(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from reposer.models import san\n")
    assert _imports(bad) == [("reposer.models.san", False)]
