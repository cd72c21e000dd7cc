"""The versions that an environment is made of, as constraints for pip: the lowest, or what is installed.

Usage: python tests/helpers/versions.py lowest > lowest.txt            (make test-lowest)
       VENV/bin/python tests/helpers/versions.py installed > constraints.txt      (make pins)

``lowest``: ``name==bound`` for every dependency that pyproject.toml names, extras included. A bound that
nobody runs is a guess, so one that is missing is refused. Where two name the same package the higher bound
counts, since pip has to satisfy both; what those packages pull in is left to pip.

``installed``: everything in the environment of the Python that runs this, but the project itself and pip.
What exists for one kind of machine only (CUDA's libraries come with PyTorch on Linux) carries a marker, so
that the file does no harm elsewhere.
"""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path

PROJECT = Path(__file__).parents[2] / "pyproject.toml"
HEAD = (
    "# Made by `make pins` (CONTRIBUTING.md): exact versions of all that any extra of the project installs."
)
LINUX = ' ; sys_platform == "linux" and platform_machine == "x86_64"'
_LINUX_ONLY = re.compile(r"nvidia-|cuda-|triton$")
_LEFT_OUT = {"pip", "reposer"}
_REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9._-]+)\s*(?:\[[^]]*\])?\s*>=\s*(?P<version>[0-9][0-9.]*)")


def lowest(project: Path = PROJECT) -> dict[str, str]:
    """Name in lower case with ``-`` to the lowest version that ``project`` allows, in alphabetical order.

    Raises:
        ValueError: a dependency without a lower bound ``>=``.
    """
    table = tomllib.loads(project.read_text(encoding="utf-8"))
    groups = [table["build-system"]["requires"], table["project"]["dependencies"]]
    groups += table["project"]["optional-dependencies"].values()
    found: dict[str, str] = {}
    for line in (line for group in groups for line in group):
        match = _REQUIREMENT.match(line)
        if match is None:
            raise ValueError(f"{project}: {line!r} has no lower bound: write {line}>=VERSION")
        name, version = canonical(match["name"]), match["version"]
        found[name] = max(found.get(name, version), version, key=order)
    return dict(sorted(found.items()))


def installed() -> dict[str, str]:
    """Name to version of what this Python sees; a local part (``+cpu``) is dropped: pip matches it anyway."""
    found = {canonical(d.metadata["Name"]): d.version.split("+")[0] for d in distributions()}
    return {name: found[name] for name in sorted(found.keys() - _LEFT_OUT)}


def lines(versions: dict[str, str]) -> list[str]:
    """One constraint each, with a marker where a package is not for every machine."""
    return [f"{n}=={v}{LINUX if _LINUX_ONLY.match(n) else ''}" for n, v in versions.items()]


def canonical(name: str) -> str:
    """One spelling of a package's name: ``Jinja2`` and ``typing_extensions`` become what pip compares."""
    return re.sub(r"[-_.]+", "-", name).lower()


def order(version: str) -> tuple[int, ...]:
    """``1.10`` is above ``1.9``, and ``6`` below ``6.0.1``."""
    return tuple(int(part) for part in version.split("."))


if __name__ == "__main__":
    which = {"lowest": lowest, "installed": installed}[sys.argv[1]]
    print("\n".join(([HEAD] if which is installed else []) + lines(which())))
