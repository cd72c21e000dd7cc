"""What commands leave for their user, listed in its folder, so that no file of theirs is ever replaced.

A folder's list, ``.reposer-outputs.json``, holds the sha256 of each file that a command wrote there: what is
not in it, or was changed since, is the user's. Imports no torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from reposer.errors import UserError
from reposer.storage.files import disk_faults, sha256_bytes, sha256_file, write_atomic
from reposer.storage.lock import in_turn
from reposer.storage.paths import printable, read_regular

_MAX_JSON = 2**26  # bytes that are read of a JSON file
OUTPUTS = ".reposer-outputs.json"  # what commands wrote into a folder: name -> sha256, the newest first
_TURN = f".{OUTPUTS}.tmp-00000000"  # a temporary: swept when its holder was killed


def claim_outputs(folder: Path, names: Iterable[str], *, older: bool = False) -> None:
    """Refuse to replace files which no command of this program wrote; called before the work that ends there.

    Args:
        folder: need not exist; ``names``: of the files to come in it.
        older: what bears these names is the command's, of a version without lists (:func:`is_older`).

    Raises:
        UserError: names the first file that no command wrote, or that was changed since.
    """
    taken = {}
    for name in names:
        path = folder / name
        if not os.path.lexists(path):
            continue
        plain = path.is_file() and not path.is_symlink()
        digest = sha256_file(path) if plain else ""
        listed = _outputs(folder)  # after the hash: a writer beside us lists before it renames
        if digest in listed.get(name, ()):
            continue
        if not plain or name in listed or not older:
            raise UserError(
                f"{printable(path)}: is there already, and is not as a command of this program wrote it",
                "move it away, or choose another folder",
            )
        taken[name] = [digest]
    if taken:
        with disk_faults(folder), in_turn(folder, _TURN):
            _write_outputs(folder, _outputs(folder) | taken)


def is_older(path: Path, fits: Callable[[Any], bool]) -> bool:
    """Whether ``path`` is JSON of this program's form, written before it kept lists of what it wrote."""
    if path.name in _outputs(path.parent) or not path.is_file():
        return False
    try:
        return fits(json.loads(read_regular(path, max_bytes=_MAX_JSON, root=path.parent)))
    except (UserError, ValueError, RecursionError):
        return False


def holds_keys(*keys: str) -> Callable[[Any], bool]:
    """A form for :func:`is_older`: an object with at least these keys."""
    return lambda value: isinstance(value, dict) and value.keys() >= set(keys)


def write_output(path: Path, data: bytes | memoryview) -> None:
    """:func:`write_atomic` for what a command leaves for its user: a file of theirs is never replaced.

    The folder's list is written first: a kill between the two leaves nothing unknown.

    Raises as :func:`claim_outputs` and :func:`write_atomic`.
    """
    with disk_faults(path), in_turn(path.parent, _TURN):
        claim_outputs(path.parent, [path.name])
        digests = list(dict.fromkeys([sha256_bytes(data), *([sha256_file(path)] if path.exists() else [])]))
        _write_outputs(path.parent, _outputs(path.parent) | {path.name: digests})
        write_atomic(path, data)
        _write_outputs(path.parent, _outputs(path.parent) | {path.name: digests[:1]})


def remove_output(path: Path) -> None:
    """Delete an output that is as it was written; anything else stays."""
    plain = path.is_file() and not path.is_symlink()
    if plain and sha256_file(path) in _outputs(path.parent).get(path.name, ()):
        path.unlink()


def _outputs(folder: Path) -> dict[str, list[str]]:
    """The list of a folder; its names never become paths."""
    path = folder / OUTPUTS
    if not os.path.lexists(path):
        return {}
    try:
        value = json.loads(read_regular(path, max_bytes=_MAX_JSON, root=folder))
        if all(isinstance(digests, list) for digests in value.values()):
            return dict(value)
    except (ValueError, AttributeError, RecursionError):
        pass
    raise UserError(f"{printable(path)}: is no list of outputs", "move it away")


def _write_outputs(folder: Path, listed: dict[str, list[str]]) -> None:
    write_atomic(folder / OUTPUTS, (json.dumps(listed, indent=1, sort_keys=True) + "\n").encode())
