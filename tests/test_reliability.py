"""The page of promises names tests that exist, each under the target that runs it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "reliability.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`([\w/]+\.py)::(\w+)`( \(slow\))?", PAGE)
PROMISES = {*(f"A{n}" for n in range(1, 11)), *(f"B{n}" for n in range(1, 10)), "C1", "C2", "C3", "C4"}
PROMISES |= {f"D{n}" for n in range(1, 6)}
PROMISES |= {*(f"E{n}" for n in range(1, 7)), *(f"F{n}" for n in range(1, 7))}
PROMISES |= {*(f"G{n}" for n in range(1, 11)), *(f"H{n}" for n in range(1, 7))}


def _tests(file: str) -> dict[str, bool]:
    """Name -> whether all of it is slow; of test classes that are assigned as well."""
    found: dict[str, bool] = {}
    body = ast.parse((TESTS / file).read_text(encoding="utf-8")).body
    whole = any("pytestmark" in ast.unparse(node) and "mark.slow" in ast.unparse(node) for node in body)
    for node in body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            found[node.name] = whole or "pytest.mark.slow" in map(ast.unparse, node.decorator_list)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = whole or "mark.slow" in ast.unparse(node.value)
    return found


@pytest.mark.parametrize(("file", "name", "slow"), NAMED)
def test_a_named_test_exists_and_runs_where_the_page_says(file: str, name: str, slow: str) -> None:
    assert _tests(file)[name] == bool(slow)


def test_every_promise_has_a_row_with_a_test_or_a_reason() -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if line[:1] == "|"]
    rows = [row for row in rows if re.match(r"[A-H]\d", row[0])]
    named = [promise for row in rows for promise in row[0].split(", ")]
    assert sorted(named) == sorted(PROMISES)
    for row in rows:
        assert len(row) == 4
        assert "::" in row[2] or row[3].startswith("not claimed: "), row[0]
    assert "D1-D5" in PAGE
    assert len(NAMED) > 90
    assert PAGE.count("::") == len(NAMED) + 1  # and the one of the introduction
