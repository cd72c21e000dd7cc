"""What the site takes from the code: commands, settings and API pages; and the index of verdicts.

A page holds a line ``<!-- generated: NAME ... -->`` where the text is to stand, so nothing is copied into
the repository: ``commands`` (of the typer app), ``settings`` (of the pydantic models), ``api ROOM``
(docstrings of a room's files, by autodoc) and ``verdicts`` (of the front matter of docs/results). A page of
results gets its verdict, date, commit and machine under its title.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
import tokenize
from collections import defaultdict
from collections.abc import Callable, Iterable
from enum import Enum
from io import StringIO
from pathlib import Path
from typing import Any, get_args

import typer
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from sphinx.application import Sphinx

from reposer.errors import LARGEST

DOCS = Path(__file__).parents[1]
PACKAGE = DOCS.parent / "src" / "reposer"
_MARK = re.compile(r"<!-- generated: (\w+) ?([\w.]*) -->")
_FRONT = re.compile(r"---\n(.*?)\n---\n+(# [^\n]+\n)", re.DOTALL)
STUDIES = {  # what `reposer study` reads
    "reposer.studies.config": "StudyConfig",
    "reposer.studies.ablations": "AblationConfig",
    "reposer.studies.paper_stages": "PaperTableConfig",
}


def cell(text: str) -> str:
    """Plain text as the cell of a Markdown table."""
    text = re.sub(r"([\\*_<>\[\]`])", r"\\\1", " ".join(text.split()).replace("``", "`"))
    return re.sub(r"\\`([^`]*)\\`", lambda m: "`" + re.sub(r"\\(.)", r"\1", m[1]) + "`", text).replace(
        "|", "\\|"
    )


def code(text: str) -> str:
    """Text as code in a cell."""
    return f"`{text}`".replace("|", "\\|")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; none where there are no rows."""
    rows = [f"| {' | '.join(row)} |" for row in rows]
    head = list(head)
    return "\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *rows, ""]) if rows else ""


# ------------------------------------------------------------------------------------------------- commands


def commands(_: str) -> str:
    """Every command: what it does, how it is called, arguments and options."""
    from reposer.cli.main import app

    return "\n".join(_command(typer.main.get_command(app), "reposer", 2))


def _command(command: Any, name: str, level: int) -> list[str]:
    inner = getattr(command, "commands", {})
    if inner:
        lines = [f"{'#' * level} {name}\n", _prose(command.help)] if level > 2 else []
        for verb in inner:
            if not inner[verb].hidden:
                lines += _command(inner[verb], f"{name} {verb}", level + (level > 2) if lines else level)
        return lines
    shown = [p for p in command.params if not getattr(p, "hidden", False) and p.name not in ("help", "debug")]
    arguments = [p for p in shown if p.param_type_name == "argument"]
    options = [p for p in shown if p.param_type_name == "option"]
    usage = [name, *(_metavar(p) if p.required else f"[{_metavar(p)}]" for p in arguments)]
    usage += [f"{p.opts[0]} {p.name.upper()}" for p in options if p.required]
    lines = [f"{'#' * level} {name}\n", f"    {' '.join(usage)}{' [OPTIONS]' if options else ''}\n"]
    lines.append(_prose(command.help))
    lines.append(table(("argument", "meaning"), ([code(_metavar(p)), _meaning(p)] for p in arguments)))
    lines.append(
        table(
            ("option", "value", "default", "meaning"), ([_names(p), *_value(p), _meaning(p)] for p in options)
        )
    )
    return lines


def _prose(text: str | None) -> str:
    """Help as it is printed: paragraphs stay, indented blocks are shown as they are."""
    parts = re.split(r"\n\s*\n", textwrap.dedent(inspect.cleandoc(text or "")).replace("\b", ""))
    shown = []
    for part in parts:
        lines = part.strip("\n")
        indented = all(line.startswith("  ") for line in lines.splitlines() if line)
        shown.append(
            textwrap.indent(textwrap.dedent(lines), "    ") if indented else cell(lines).replace("\\|", "|")
        )
    return "\n\n".join(shown) + "\n"


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name).upper() + ("..." if parameter.nargs == -1 else "")


def _names(option: Any) -> str:
    return ", ".join(map(code, [*option.opts, *option.secondary_opts]))


def _kind(option: Any) -> str:
    """The type in a word, with its range or choices; nothing for a switch."""
    if option.is_flag:
        return ""
    kind = option.type_descriptor.annotation
    kind = (get_args(kind) or [kind])[0]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(str(member.value) for member in kind)
    bounds = [str(b) for b in (option.min, option.max) if b is not None and b < LARGEST]
    return str(getattr(kind, "__name__", kind)).lower() + (" from " + " to ".join(bounds) if bounds else "")


def _value(option: Any) -> tuple[str, str]:
    default = getattr(option.default, "value", option.default)
    plain = option.is_flag or default is None or default in ("", [], ()) or callable(default)
    shown = "needed" if option.required else ("" if plain else code(str(default)))
    return cell(_kind(option) + (", repeatable" if option.multiple else "")), shown


def _meaning(parameter: Any) -> str:
    return cell(getattr(parameter, "help", "") or "")


# ------------------------------------------------------------------------------------------------- settings


def settings(_: str) -> str:
    """Every configuration class that a command reads, with its presets: type, default and comment."""
    from reposer.workflows import train as presets

    tables = [table for name, table in vars(presets).items() if name.endswith("PRESETS")]
    named = {name: make for found in tables for name, make in found.items()}
    by_class: dict[type[BaseModel], list[list[str]]] = defaultdict(list)
    for name, make in named.items():
        first = (inspect.getdoc(make) or "").split("\n\n")[0]
        by_class[type(make())].append([code(name), cell(first)])
    lines = []
    for model, rows in by_class.items():
        lines.append(f"## {model.__name__}\n")
        lines += [table(("preset of `reposer train`", "what"), rows), *_model(model, "")]
    for module, name in STUDIES.items():
        lines += [f"## {name}\n", *_model(getattr(importlib.import_module(module), name), "")]
    return "\n".join(lines)


def _model(model: type[BaseModel], prefix: str) -> list[str]:
    """The class's own fields as one table, then its sections, each with its prefix."""
    rows, inner = [], []
    comments = field_comments(model)
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            inner.append((f"{prefix}{name}.", field.annotation))
            continue
        default = field.get_default(call_default_factory=True) if not field.is_required() else None
        shown = "needed" if field.is_required() else code(_shown(default))
        note = comments.get(name, "") or (field.description or "")
        rows.append([code(prefix + name), cell(_type(field.annotation) + _range(field)), shown, cell(note)])
    head = [f"### {prefix[:-1]}\n"] if prefix else []
    lines = [*head, _prose(inspect.getdoc(model)), table(("setting", "type", "default", "meaning"), rows)]
    return lines + [line for place, part in inner for line in _model(part, place)]


def _range(field: Any) -> str:
    """The bounds of a field, as `` >= 1, <= 64``."""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = [f"{s} {getattr(m, n)}" for m in field.metadata for n, s in signs.items() if hasattr(m, n)]
    return " " + ", ".join(bounds) if bounds else ""


def _shown(value: Any) -> str:
    if value is PydanticUndefined or value is None:
        return "none"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_shown, value)) + "]"
    if isinstance(value, BaseModel):
        return type(value).__name__
    return str(value)


def _type(annotation: Any) -> str:
    text = (
        annotation.__name__
        if inspect.isclass(annotation) and not hasattr(annotation, "__args__")
        else str(annotation)
    )
    text = re.sub(r"typing\.Literal\[(.*?)\]", lambda m: m[1].replace("'", ""), text)
    return re.sub(r"\b(?:[a-z_]\w*\.)+", "", text).replace("NoneType", "None")


def field_comments(model: type[BaseModel]) -> dict[str, str]:
    """Name of a field -> its comment: at the end of its lines, else the comment lines right above it.

    A comment above a field that has one of its own is a heading of what follows; it is left out.
    """
    found: dict[str, str] = {}
    for part in reversed(
        [c for c in model.__mro__ if c.__module__.startswith("reposer.") and "model_fields" in dir(c)]
    ):
        source = textwrap.dedent(inspect.getsource(part))
        lines = source.splitlines()
        comments: dict[int, str] = {}
        for token in tokenize.generate_tokens(StringIO(source).readline):
            if token.type == tokenize.COMMENT:
                comments[token.start[0]] = token.string.lstrip("# ")
        for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                own = [
                    comments[n]
                    for n in range(node.lineno, (node.end_lineno or node.lineno) + 1)
                    if n in comments
                ]
                above, n = [], node.lineno - 1
                while n in comments and lines[n - 1].lstrip().startswith("#"):
                    above.insert(0, comments[n])
                    n -= 1
                found[node.target.id] = " ".join(own or above)
    return found


# ------------------------------------------------------------------------------------- API, verdicts, pages


def api(room: str) -> str:
    """Every file of a room as autodoc sees it; without a room the files that lie beside the rooms."""
    files = sorted((PACKAGE / room).rglob("*.py") if room else PACKAGE.glob("*.py"))
    lines = []
    for file in files:
        if not file.stem.startswith("__"):
            module = ".".join(("reposer", *file.relative_to(PACKAGE).with_suffix("").parts))
            title = module.removeprefix("reposer.")
            lines.append(f"## {title}\n\n```{{eval-rst}}\n.. automodule:: {module}\n```\n")
    return "\n".join(lines)


def front_matter(page: Path) -> dict[str, str]:
    """Of a page of results: topic, date, verdict, commit, machine; and ``question``, its title."""
    match = _FRONT.match(page.read_text(encoding="utf-8"))
    if match is None:
        raise ValueError(f"{page}: front matter and a title are wanted at the top")
    return {**yaml.safe_load(match[1]), "question": match[2].strip("# \n")}


def verdicts(_: str) -> str:
    """The pages of results by topic, newest first."""
    topics = defaultdict(list)
    for page in sorted(DOCS.glob("results/2*.md"), reverse=True):
        about = front_matter(page)
        topics[about["topic"]].append(
            [
                f"[{about['question']}]({page.name})",
                cell(about["verdict"]),
                about["date"].replace("-", "\N{NON-BREAKING HYPHEN}"),
            ]
        )
    parts = [
        f"## {topic}\n\n" + table(("question", "verdict", "date"), rows)
        for topic, rows in sorted(topics.items())
    ]
    return "\n".join(parts)


def _under_title(page: Path, text: str) -> str:
    """A page of results with its verdict, date, commit and machine under the title."""
    about = front_matter(page)
    facts = [
        f"{name.capitalize()}: {cell(about[name])}"
        for name in ("date", "commit", "machine")
        if about.get(name)
    ]
    note = f"\n:::{{admonition}} Verdict\n{cell(about['verdict'])}\n\n{'. '.join(facts)}.\n:::\n\n"
    return _FRONT.sub(lambda m: m[2] + note, text, count=1)


def licenses(_: str) -> str:
    """Every weight file that may be downloaded, and what its terms allow."""
    from reposer.weights.files import KNOWN

    rows = []
    for name, known in sorted(KNOWN.items()):
        terms = "not for commercial use" if known.non_commercial else ""
        size = f"{known.mebibytes:,.0f} MiB"
        rows.append([code(name), code(known.file), size, cell(known.license), terms])
    return table(("network", "file", "size", "license, as its makers state it", "limits"), rows)


GENERATORS: dict[str, Callable[[str], str]] = {
    "licenses": licenses,
    "commands": commands,
    "settings": settings,
    "api": api,
    "verdicts": verdicts,
}


def fill(app: Sphinx, name: str, source: list[str]) -> None:
    """Replace the marks of a page that is about to be read."""
    page = DOCS / f"{name}.md"
    if page.parent.name == "results" and page.stem != "index":
        source[0] = _under_title(page, source[0])
    source[0] = _MARK.sub(lambda m: GENERATORS[m[1]](m[2]), source[0])


_SECTION = re.compile(r"\s*(Args|Returns|Raises|Yields|Attributes|Example|Examples|Note|Notes):$")
_LITERAL = re.compile(r"(``.+?``|:\w+:`[^`]+`)")


def plain(app: Sphinx, what: str, name: str, of: object, options: object, lines: list[str]) -> None:
    """Make a docstring what reStructuredText takes for text: ours are written to be read as they are.

    Signs such as ``|``, ``*`` and a trailing ``_`` are themselves; a block that is indented without being a
    section (``Args:`` ...) is shown as it is; what follows such a block is a paragraph.
    """
    found: list[str] = []
    section = False  # inside Args: and the like, where napoleon reads the indentation
    block = False
    for line in lines:
        indented = line.startswith(" ")
        if line and not indented:
            if block and found[-1]:
                found.append("")
            section, block = bool(_SECTION.match(line)), False
        elif indented and not section and not block and not (found and _ITEM.match(found[-1])):
            block = True
            found += ["", "::", ""]
        if not block and line.count("``") % 2 == 0:
            parts = _LITERAL.split(line)
            parts[::2] = [re.sub(r"(?<=\w)_(?!\w)|[|*]", r"\\\g<0>", part) for part in parts[::2]]
            if re.match(r"\s*\* ", line):  # a list stays one
                parts[0] = parts[0].replace("\\*", "*", 1)
            line = "".join(parts)
        found.append(line)
    lines[:] = found


_ITEM = re.compile(r"(\* |- |\d+\. |  )")


def skip(app: Sphinx, what: str, name: str, of: object, skipped: bool, options: object) -> bool | None:
    """Leave out what scikit-learn makes for every estimator; its text links into its own site."""
    return True if re.fullmatch(r"set_\w+_request", name) else None


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-skip-member", skip)
    app.connect("source-read", fill)
    app.connect("autodoc-process-docstring", plain, priority=100)  # before napoleon
    return {"parallel_read_safe": True, "parallel_write_safe": True}
