"""What a command wrote: its outputs, which alone may be replaced, and the seal, which verify compares."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from reposer.config import canonical_json, read_json
from reposer.errors import UserError
from reposer.storage.files import disk_faults, sha256_bytes, sha256_file, write_atomic
from reposer.storage.lock import in_turn
from reposer.storage.paths import (
    RefusedFileError,
    contained,
    open_regular,
    printable,
    read_regular,
    require_writable,
)

# ---- What commands leave for their user, listed in its folder, so that no file of theirs is ever replaced.
#
# A folder's list, ``.reposer-outputs.json``, holds the sha256 of each file that a command wrote there: what
# is not in it, or was changed since, is the user's. Imports no torch.

_MAX_JSON = 2**26  # bytes that are read of a JSON file
OUTPUTS = ".reposer-outputs.json"  # what commands wrote into a folder: name -> sha256, the newest first
_TURN = f".{OUTPUTS}.tmp-00000000"  # a temporary: swept when its holder was killed


def claim_outputs(folder: Path, names: Iterable[str], *, older: bool = False) -> None:
    """Refuse to replace files which no command of this program wrote; called before the work that ends there.

    Args:
        folder: need not exist; ``names``: of the files to come in it.
        older: what has these names is the command's, of a version without lists (:func:`is_older`).

    Raises:
        UserError: names the first file that no command wrote, or that was changed since.
        DiskError: nothing can be written there.
    """
    require_writable(folder)
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


# a writer's own: temporaries, a folder that waits while its successor takes its place, locks
_PASSING = re.compile(r"\..+\.(tmp-[0-9a-f]{8}|replaced)|\.lock|\.staging|\.claims|\.packed_turn")


def refuse_others(out: Path, own: Sequence[str], *, marks: Sequence[str] = (), page: str = "") -> None:
    """Refuse a folder to write into which holds what the command that writes there did not write.

    Called before any work; looks at the names at the folder's top, not below. What :func:`claim_outputs` and
    the formats of jobs, runs and data sets check about their own files comes on top of this.

    Args:
        out: need not exist.
        own: patterns (``*`` any text) of the names that the command leaves there. Names in the folder's list
            of outputs are a command's too. A link is nobody's. Empty: a command that never goes over its own.
        marks: files by any of which the command knows its own folder; with one there, other files may lie
            beside those of the command, which touches none of them.
        page: name of the report of such a folder, which any command may find there.

    Raises:
        UserError: names the first such file; or ``out`` is no folder.
        DiskError: nothing can be written there.
    """
    there = os.path.lexists(out)
    if there and not out.is_dir():
        raise UserError(f"{printable(out)}: is no folder", "choose another --out, or move it away")
    require_writable(out)
    if not there:
        return
    if any((out / mark).is_file() for mark in marks):
        return
    with disk_faults(out):
        names = sorted(os.listdir(out))
    listed = {OUTPUTS, page, *(_outputs(out) if OUTPUTS in names else ())}
    for name in names:
        theirs = name in listed or _PASSING.fullmatch(name) or any(fnmatchcase(name, one) for one in own)
        if not theirs or (out / name).is_symlink():
            why = (
                "which this command did not write"
                if own
                else "and this command writes a new folder each time"
            )
            raise UserError(
                f"{printable(out)}: holds {printable(name)}, {why}", "choose another --out, or move that away"
            )


def is_older(path: Path, fits: Callable[[Any], bool]) -> bool:
    """Whether ``path`` is JSON of this program's form, written before it kept lists of what it wrote."""
    if path.name in _outputs(path.parent) or not os.path.isfile(path):
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


def remove_outputs(folder: Path, last: str) -> None:
    """:func:`remove_output` of all files of a folder, ``last`` behind the others; and of the folder itself
    where nothing else is left.
    """
    for name in sorted(os.listdir(folder), key=lambda name: (name == last, name)):
        remove_output(folder / name)
    if os.listdir(folder) == [OUTPUTS]:
        (folder / OUTPUTS).unlink()
        folder.rmdir()


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


# ---- Seals: one small file of a folder from which every other file of it can be held against its sha256.
#
# A seal lists files with their hashes, and its own digest. Where a folder has manifests (of pictures,
# arrays, tensors), the seal lists these, and they list the rest: a chain from one file to every byte. A seal
# finds accidents, and changes by hand of one file or many. It is no signature: who rewrites a folder with
# every hash in it, the seal's own too, makes another folder that is whole. Imports no torch.

SEAL = "seal.json"
MARK = "seal"  # key of a folder's own record that says: there is a seal, or it was taken away
SCHEMA_VERSION = 1
_PIECE = 2**20  # bytes


def write_seal(folder: Path, names: Iterable[str], *, place: str = SEAL, grows: Iterable[str] = ()) -> None:
    """Write the seal of a folder; the last file of it to be written.

    Args:
        names: files, relative to the folder; those that are not there are left out.
        place: of the seal, relative to the folder.
        grows: files that may get longer afterwards: what they hold now must stay.

    Raises:
        DiskError: the disk refuses.
    """
    wanted = sorted(set(names) - {place})
    files = {name: sha256_file(folder / name) for name in wanted if (folder / name).is_file()}
    starts = {}
    for name in sorted(set(grows)):
        if (folder / name).is_file():
            size = (folder / name).stat().st_size
            starts[name] = {"size": size, "sha256": _sha256_of_start(folder / name, size)}
    body = {"schema_version": SCHEMA_VERSION, "files": files, "starts": starts}
    whole = body | {"sha256": sha256_bytes(canonical_json(body))}
    write_atomic(folder / place, (json.dumps(whole, indent=1, sort_keys=True) + "\n").encode())


def seal_faults(folder: Path, record: Mapping[str, Any] | None, *, place: str = SEAL) -> list[str]:
    """What the seal of a folder finds, a line each.

    Args:
        record: what the folder says of itself; with MARK in it there must be a seal. A folder from before
            there were seals has neither.
    """
    path = folder / place
    if not path.exists():
        missing = record is not None and MARK in record
        return [f"{printable(path)}: is missing: the files beside it cannot be held against it"] * missing
    try:
        body = read_json(path)
        digest = body.pop("sha256", None)
        files, starts = body["files"], body["starts"]
        if digest != sha256_bytes(canonical_json(body)) or not isinstance(files | starts, dict):
            raise ValueError("is not what was written")
        faults = [_fault(folder, name, partial(_whole, files[name])) for name in files]
        faults += [_fault(folder, name, partial(_begun, starts[name])) for name in starts]
    except UserError as error:
        return [str(error)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [f"{printable(path)}: is not what was written"]
    return [fault for fault in faults if fault]


def sealed_names(folder: Path, *, place: str = SEAL) -> set[str]:
    """The files that a seal lists; none where it is missing or damaged."""
    try:
        files = read_json(folder / place).get("files")
    except UserError:
        return set()
    return set(files) if isinstance(files, dict) else set()


def _fault(folder: Path, name: str, differs: Callable[[Path], str]) -> str:
    """What is wrong with a listed file: that it is not there, or what ``differs`` says of it."""
    try:
        path = contained(folder, name)
        reason = differs(path) if path.is_file() else "is missing"
    except RefusedFileError as error:
        reason = error.reason
    return f"{printable(folder)}/{printable(name)}: {reason}" if reason else ""


def _whole(digest: object, path: Path) -> str:
    return "" if sha256_file(path) == digest else "differs from its sha256 in the seal"


def _begun(start: Mapping[str, Any], path: Path) -> str:
    if not 0 <= start["size"] <= path.stat().st_size:
        return "is shorter than when it was sealed"
    if _sha256_of_start(path, start["size"]) == start["sha256"]:
        return ""
    return f"its first {start['size']:,} bytes differ from their sha256 in the seal"


def _sha256_of_start(path: Path, size: int) -> str:
    """Hexadecimal sha256 of a file's first bytes, read in pieces: the size may be a stranger's, and any."""
    digest, left = hashlib.sha256(), size
    with open_regular(path) as file:
        while left and (piece := file.read(min(left, _PIECE))):
            digest.update(piece)
            left -= len(piece)
    return digest.hexdigest()
