"""constraints.txt: exact versions of all that is installed, as pip reads them, within the bounds."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import versions
from packaging.requirements import Requirement

CONSTRAINTS = versions.PROJECT.with_name("constraints.txt")


def pinned() -> dict[str, Requirement]:
    """By canonical name; ``packaging`` reads what pip reads."""
    text = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in text if not line.startswith("#")]
    named = {versions.canonical(r.name): r for r in found}
    assert len(named) == len(found)
    return named


def test_every_line_is_one_exact_version_and_nothing_else():
    for requirement in pinned().values():
        (pin,) = requirement.specifier
        assert pin.operator == "=="
        assert "*" not in pin.version
        assert "+" not in pin.version
        assert requirement.url is None
        assert not requirement.extras


def test_what_only_linux_has_is_asked_of_linux_alone():
    for name, requirement in pinned().items():
        cuda = name.startswith(("nvidia-", "cuda-")) or name == "triton"
        assert (requirement.marker is not None) == cuda
        if requirement.marker is not None:
            assert not requirement.marker.evaluate({"sys_platform": "darwin", "platform_machine": "arm64"})
            assert requirement.marker.evaluate({"sys_platform": "linux", "platform_machine": "x86_64"})


def test_direct_dependencies_are_pinned_within_their_bounds():
    """Of every extra: pins that leave one out may forbid what it needs, and nobody can install it."""
    pins = pinned()
    for name, bound in versions.lowest().items():
        (pin,) = pins[name].specifier
        assert Requirement(f"{name}>={bound}").specifier.contains(pin.version), name


def test_the_lowest_are_the_bounds_with_the_higher_of_two(tmp_path):
    project = tmp_path / "pyproject.toml"
    project.write_text(
        '[build-system]\nrequires = ["hatchling>=1.27"]\n[project]\ndependencies = ["A_b>=1.9", "b>=2"]\n'
        '[project.optional-dependencies]\nx = ["a-b[y]>=1.10,<3"]\n'
    )
    assert versions.lowest(project) == {"a-b": "1.10", "b": "2", "hatchling": "1.27"}
    project.write_text(project.read_text().replace("b>=2", "b"))
    with pytest.raises(ValueError, match="no lower bound"):
        versions.lowest(project)


def test_what_is_installed_is_listed_as_pip_lists_it():
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    theirs = {versions.canonical(n): re.sub(r"\+.*", "", v) for n, v in (x.split("==") for x in listed)}
    assert versions.installed() == {n: v for n, v in theirs.items() if n not in ("pip", "reposer")}
