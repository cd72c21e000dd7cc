"""The package as people get it: wheel and sdist, installed and used outside the repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheel and sdist, built from a copy of what the repository keeps."""
    out = tmp_path_factory.mktemp("built")
    source = out / "source"
    kept = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in kept.stdout.splitlines():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(out / "dist")]
    subprocess.run(build, cwd=source, check=True, capture_output=True, env=_environment())
    return out / "dist"


def _environment() -> dict[str, str]:
    """Nothing of the repository's is found by chance."""
    left = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "GIT_", "REPOSER"))}
    return left | {"OMP_NUM_THREADS": "1"}


def installed(file: Path, place: Path) -> Path:
    """A new environment with nothing in it but this file; its dependencies are those of the tests'."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    python = place / "bin" / "python"
    ask = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip())
    # a path alone: what makes the repository importable in the tests' environment is not read there
    (packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    how = ["--no-deps", "--no-index", "--no-build-isolation", "--quiet", "--force-reinstall"]
    pip = [str(python), "-m", "pip", "install", *how, "--prefix", str(place), str(file)]
    subprocess.run(pip, check=True, env=_environment(), timeout=300)
    return place


@pytest.mark.parametrize("kind", ["*.whl", "*.tar.gz"])
def test_it_installs_and_runs_the_demo_outside_the_repository(built: Path, kind: str, tmp_path: Path) -> None:
    (file,) = built.glob(kind)
    place = installed(file, tmp_path / "env")
    python = place / "bin" / "python"
    where = "import reposer, pathlib; print(pathlib.Path(reposer.__file__).resolve())"
    found = subprocess.run(
        [python, "-c", where], cwd=tmp_path, capture_output=True, text=True, check=True, env=_environment()
    )
    assert Path(found.stdout.strip()).is_relative_to(place.resolve())
    command = [place / "bin" / "reposer"]
    told = subprocess.run(
        [*command, "--help"], cwd=tmp_path, capture_output=True, text=True, check=True, env=_environment()
    )
    assert "serve" in told.stdout
    if kind == "*.whl":  # the same files: once is enough
        demo = [*command, "demo", "--quick", "--out", "demo", "--threads", "1"]
        for _ in range(2):  # the second time over its own folder
            subprocess.run(
                demo, cwd=tmp_path, check=True, capture_output=True, env=_environment(), timeout=1500
            )
        assert (tmp_path / "demo" / "report.html").stat().st_size > 10_000


def test_wheel_and_sdist_hold_what_is_needed_and_nothing_private(built: Path) -> None:
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    with tarfile.open(sdist) as archive:
        unpacked = {name.partition("/")[2] for name in archive.getnames()}
    for needed in (
        "assets/page/index.html",
        "assets/report.html.j2",
        "assets/san_rendered/model.safetensors",
    ):
        assert f"reposer/{needed}" in names
        assert f"src/reposer/{needed}" in unpacked
    assert "reposer/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith("tests")]
    assert not [name for name in unpacked if name.startswith(("shared", "runs", ".venv"))]


def test_the_notebook_runs_from_its_first_cell_to_its_last(capsys: pytest.CaptureFixture[str]) -> None:
    notebook = json.loads((ROOT / "docs" / "tutorials" / "own-photos-to-study.ipynb").read_text("utf-8"))
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(code) > 4
    names: dict[str, object] = {}
    for cell in code:
        exec(compile(cell, "notebook", "exec"), names)
    assert "| x2_any" in capsys.readouterr().out
    assert not [cell for cell in notebook["cells"] if cell.get("outputs")]  # nobody's pictures are kept
    work = names["work"]
    assert isinstance(work, Path)
    shutil.rmtree(work)
