"""The plan of the house: who may import whom, and how long a file and a function may be."""

from __future__ import annotations

import ast
import re
import tokenize
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "reposer"
FILES = sorted(PACKAGE.rglob("*.py"))
TESTS = Path(__file__).parent
MAX_FILE_LINES, MAX_FUNCTION_LINES = 450, 80

# what commands are made of
BELOW = {
    *("rendered", "data", "models", "losses", "metrics", "reid"),
    *("trained", "jobs", "training", "annotation", "generation", "evaluation"),
}
ROOMS = {
    "rendered": {"data"},  # a rendered data set is written in the formats of our own layouts
    "data": set(),
    "models": set(),
    "losses": set(),
    "metrics": set(),
    "reid": set(),
    "trained": {"models"},
    "jobs": set(),
    "training": {"data", "models", "losses", "metrics", "trained"},
    "annotation": {"data", "models", "trained", "jobs"},
    "generation": {"data", "models", "reid", "trained", "jobs", "annotation"},
    "evaluation": {"data", "models", "metrics", "reid", "trained", "annotation"},
    "workflows": BELOW,
    "studies": BELOW | {"workflows"},
    "app": {"workflows", "report"},  # the web page
    "assets": set(),
}
GROUND_FLOOR = {
    *("arrays", "config", "errors", "image_metadata", "image_rules"),
    *("images", "progress", "runtime", "sections", "storage", "structures"),
    *("weights",),
}
TOP = {"report"}  # reads JSON and images only
CLI = "cli"  # a room of commands: may import everything, but inside its functions only


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _imports(path: Path) -> list[tuple[str, bool]]:
    """Every reposer module that a file imports, and whether at the top level of the file."""
    tree = _tree(path)
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
            # the public face names what is anywhere, and imports it at its first use
            assert target in GROUND_FLOOR or here in ("__main__", "__init__"), f"{here} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_stay_short(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_FILE_LINES, f"{path.name} is too long: split it by idea"
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{path.name}:{node.name} has {length} lines"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_file_says_what_it_is(path):
    if path.name == "__init__.py" and path.parent != PACKAGE:
        assert path.read_text() == "", "only the package's own __init__.py holds anything (the version)"
        return
    assert ast.get_docstring(_tree(path)), f"{path.name} has no docstring"


@cache
def _graph() -> dict[str, set[str]]:
    """Module -> the modules of ours that it imports, anywhere in its text."""
    modules = {f"reposer.{'.'.join(p.relative_to(PACKAGE).with_suffix('').parts)}": p for p in FILES}
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        graph[module] = set()
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.ImportFrom):
                wanted = {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
                graph[module] |= wanted & modules.keys() - {module}
    return graph


def test_no_file_imports_itself_by_way_of_others():
    left = _graph()
    while ready := {module for module, needed in left.items() if not needed & left.keys()}:
        left = {module: needed for module, needed in left.items() if module not in ready}
    assert not left, "these import each other in a circle, or are imported by such"


# Of the whole program, not of one file of it.
WHOLE = {
    *("architecture", "deprecations", "end_to_end", "fail_points", "forbidden_calls"),
    *("benchmarks", "docs", "extension_points", "hostile_values", "public_face", "reliability", "versions"),
    *("damaged_folders", "package"),
}


@pytest.mark.parametrize("path", sorted(TESTS.rglob("test_*.py")), ids=lambda p: str(p.relative_to(TESTS)))
def test_a_test_lies_where_its_module_does(path):
    """tests/<room>/test_<module>.py or test_<module>_<topic>.py; tests/real asks for data of others."""
    place = path.relative_to(TESTS)
    if place.parts[0] == "real" or (len(place.parts) == 1 and path.stem[5:] in WHOLE):
        return
    modules = [file.stem for file in (PACKAGE / place.parent).glob("*.py")]
    assert any(f"{path.stem}_".startswith(f"test_{module}_") for module in modules), (
        f"{place}: no such file in {place.parent}"
    )


def test_the_table_notices_a_forbidden_import(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from reposer.models import san\n")
    assert _imports(bad) == [("reposer.models.san", False)]


def _importers() -> dict[str, set[str]]:
    graph = _graph()
    return {module: {other for other, needed in graph.items() if module in needed} for module in graph}


def test_a_small_file_is_not_the_annex_of_another():
    """No file under 80 lines whose only importer is a file of the same room."""
    for module, by in _importers().items():
        path = PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")
        if path.name == "__init__.py" or len(path.read_text(encoding="utf-8").splitlines()) >= 80:
            continue
        alone = len(by) == 1 and next(iter(by)).rpartition(".")[0] == module.rpartition(".")[0]
        assert not alone, f"{path.name}: join it with {by}"


def test_every_file_is_used_by_the_program():
    for module, by in _importers().items():
        assert by or module in ("reposer.__init__", "reposer.__main__") or module.endswith(".__init__"), (
            f"{module}: nothing imports it"
        )


# Used by others' code and by the documentation, not by the program itself: name -> why.
FOR_OTHERS = {
    "official_test_pairs": "the published pair protocol, held to its list in tests/real",
    "write_parsing": "how a label map of one's own is written",
}


def _unused(files: list[Path]) -> dict[str, str]:
    """Top-level functions and classes that no code of these files names, and their files.

    A string is a name in the lazy public face and in annotations alone: any other may be a word of the same
    letters. A function with a decorator is a command, which typer calls.
    """
    used: set[str] = set()
    defined: dict[str, str] = {}
    for path in files:
        tree = _tree(path)
        texts = [tree] if path == PACKAGE / "__init__.py" else []
        for node in ast.walk(tree):
            used |= {node.id} if isinstance(node, ast.Name) else set()
            used |= {node.attr} if isinstance(node, ast.Attribute) else set()
            used |= {alias.name for alias in node.names} if isinstance(node, ast.ImportFrom) else set()
            texts += (
                [node.annotation] if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation else []
            )
            texts += [node.returns] if isinstance(node, ast.FunctionDef) and node.returns else []
        for text in (part for each in texts for part in ast.walk(each)):
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                used |= set(re.findall(r"\w+", text.value))
        for node in tree.body:
            command = isinstance(node, ast.FunctionDef) and bool(node.decorator_list)
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not command:
                defined[node.name] = path.name
    return {name: path for name, path in defined.items() if name not in used and not name.startswith("__")}


def test_no_code_is_run_by_tests_alone():
    """Each top-level function and class is named somewhere in the program besides its definition."""
    unused = _unused(FILES)
    assert unused.keys() == FOR_OTHERS.keys(), unused


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("def probe(): ...\nWORDS = ('query', 'probe')\n", {"probe"}),
        ("@dataclass\nclass Header: ...\n", {"Header"}),
        ("def probe(): ...\nLATER = probe\n", set()),
        ("class Later: ...\ndef f(x: 'list[Later]') -> None: ...\nf(1)\n", set()),
        ("class Later: ...\ndef f() -> 'Later': ...\nf()\n", set()),
        ("@app.command()\ndef look(): ...\n", set()),
    ],
)
def test_what_nobody_names_is_noticed(tmp_path, text, found):
    (tmp_path / "a.py").write_text(text)
    assert _unused([tmp_path / "a.py"]).keys() == found


def _constants(path: Path) -> set[str]:
    """The names that a file gives values to."""
    nodes = ast.walk(_tree(path))
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def _words(path: Path) -> str:
    """Comments and docstrings of a file."""
    with tokenize.open(path) as file:
        tokens = list(tokenize.generate_tokens(file.readline))
    texts = [t.string for t in tokens if t.type == tokenize.COMMENT or t.string.startswith('"""')]
    return "\n".join(texts)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_what_comments_name_is_there(path):
    """Constants, as ``module.NAME`` or with more of the module's place."""
    places = {f"reposer.{'.'.join(file.relative_to(PACKAGE).with_suffix('').parts)}": file for file in FILES}
    for module, name in re.findall(r"(?<![\w.])([a-z_]+(?:\.[a-z_]+)*)\.([A-Z][A-Z_]+)\b", _words(path)):
        if name == "NAME":  # stands for any
            continue
        meant = [file for place, file in places.items() if f".{place}".endswith(f".{module}")]
        assert any(name in _constants(file) for file in meant), f"{path.name} names {module}.{name}"


def test_no_constant_is_read_by_nobody():
    read, given = set(), dict[str, str]()
    for path in FILES:
        for node in ast.walk(_tree(path)):
            read |= {node.id} if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) else set()
            read |= {node.attr} if isinstance(node, ast.Attribute) else set()
            read |= {alias.name for alias in node.names} if isinstance(node, ast.ImportFrom) else set()
        for node in _tree(path).body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
            names = [part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]
            given |= dict.fromkeys(names, path.name)
    unread = {name: file for name, file in given.items() if name not in read and not name.startswith("__")}
    assert not unread


def test_no_folder_is_taken_for_generated_code():
    assert not [path for path in PACKAGE.rglob("generated") if path.is_dir()]
