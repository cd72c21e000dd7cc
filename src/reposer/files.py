"""Files that are either complete or not there: atomic writes, atomic folders, sha256, free space.

A crash, a kill -9 or a full disk at any moment leaves the old content or the new one, never a mixture (Pillai
et al., "All File Systems Are Not Created Equal", OSDI 2014: rename without fsync may surface an empty file
after a power cut, and the rename itself is durable only after an fsync of the folder). Imports no torch.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from reposer.errors import UserError

_TEMPORARY = re.compile(r"^\..+\.tmp-[0-9a-f]{8}$")
_CHUNK = 1 << 20  # bytes for one read or write call

# What to do about each fault; other OSErrors are programming errors and pass unchanged.
_DISK_FAULTS = {
    errno.ENOSPC: "free some space or choose a folder on another disk",
    errno.EDQUOT: "the disk quota is used up; free some space or ask for a larger quota",
    errno.EROFS: "the disk is mounted read-only; choose another folder",
    errno.EACCES: "grant write permission or choose another folder",
    errno.EPERM: "grant write permission or choose another folder",
    errno.EFBIG: "the file system or ulimit refuses files of this size; choose another disk",
    errno.EIO: "the disk reports an input/output error; check it and choose another folder",
    errno.ESTALE: "the network disk is gone; mount it again",
    errno.ENOTCONN: "the network disk is gone; mount it again",
    errno.ENOENT: "check the path: the folder is not there",
    errno.ENOTDIR: "check the path: a part of it is a file",
    errno.EEXIST: "something of this name is in the way; choose another path",
    errno.EISDIR: "a folder of this name is in the way; choose another path",
    errno.ENAMETOOLONG: "choose a shorter name",
}


class DiskError(UserError):
    """The disk refused a write (full, quota, read-only, faulty); what was there before is still there."""


def sha256_bytes(data: bytes | memoryview) -> str:
    """Hexadecimal sha256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Hexadecimal sha256 of a file's content, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: str | os.PathLike[str], data: bytes | memoryview) -> None:
    """Put ``data`` at ``path`` so that a reader, or a crash at any moment, finds the old content or the new.

    Temp file in the same folder, fsync, rename, fsync of the folder. On a failure the temp file is removed
    and the old file stays (a failed fsync of the folder comes after the rename: then the new file is there,
    whole).

    Raises:
        DiskError: the disk is full, over quota, read-only or faulty; names the path and the bytes needed.
    """
    path = Path(path)
    temporary = _temporary_name(path)
    with disk_faults(path, len(data)):
        try:
            _write_and_sync(temporary, data)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        sync_folder(path.parent)


def write_new(path: str | os.PathLike[str], data: bytes | memoryview) -> None:
    """Write ``data`` to a file that must not exist yet and fsync it; the parts of an :func:`atomic_folder`.

    Raises:
        DiskError: as in :func:`write_atomic`.
    """
    with disk_faults(path, len(data)):
        _write_and_sync(Path(path), data)


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Build a folder under a temporary name; after the block it stands at ``path`` complete and durable.

    A folder that is already at ``path`` is replaced: it waits as :func:`replaced_name` during the two
    renames, so that a crash between them loses nothing (readers that must survive this look there too). When
    the block raises, nothing appears and the old folder stays.

    Raises:
        DiskError: as in :func:`write_atomic`.
    """
    path = Path(path)
    temporary = _temporary_name(path)
    try:
        with disk_faults(path):
            os.mkdir(temporary)
        yield temporary
        with disk_faults(path):
            for folder, _, names in os.walk(temporary, topdown=False):
                for name in names:
                    _sync(Path(folder) / name, os.O_RDONLY)
                sync_folder(folder)
            _swap_in(temporary, path)
    except BaseException:
        with suppress(OSError):
            remove_tree(temporary)
        raise


def replaced_name(path: Path) -> Path:
    """Where the earlier folder of ``path`` waits while :func:`atomic_folder` puts the new one there."""
    return path.with_name(f".{path.name}.replaced")


def _swap_in(temporary: Path, path: Path) -> None:
    aside = replaced_name(path)
    if path.exists():
        remove_tree(aside)  # left by a crash after an earlier swap: path was complete then
        os.rename(path, aside)
    try:
        os.rename(temporary, path)
    except OSError:
        if aside.exists():
            os.rename(aside, path)
        raise
    sync_folder(path.parent)
    with suppress(OSError):  # the new folder stands; what is left of the old one bears a temporary name
        remove_tree(aside)


def remove_tree(path: Path) -> None:
    """Delete a folder that need not exist; it is renamed first, so that no half of it stands at its name."""
    if not path.exists():
        return
    if not _TEMPORARY.match(path.name):
        grave = _temporary_name(path)
        os.rename(path, grave)
        path = grave
    shutil.rmtree(path)


def remove_temporaries(folder: Path) -> list[Path]:
    """Delete what killed writers left in ``folder``; only for its one writer, who holds a lock.

    Returns the paths that were removed.
    """
    stale = sorted(entry for entry in folder.iterdir() if _TEMPORARY.match(entry.name))
    for entry in stale:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    return stale


def free_bytes(path: str | os.PathLike[str]) -> int:
    """Bytes an unprivileged writer has left on the disk that holds ``path``, which need not exist yet."""
    folder = Path(path).absolute()
    while not folder.exists():
        folder = folder.parent
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def require_space(path: str | os.PathLike[str], needed: int) -> None:
    """Refuse early what cannot fit: ``needed`` bytes on the disk of ``path``.

    Raises:
        DiskError: fewer bytes are free.
    """
    free = free_bytes(path)
    if free < needed:
        raise DiskError(
            f"{path}: {needed:,} bytes are needed and {free:,} are free on this disk",
            _DISK_FAULTS[errno.ENOSPC],
        )


def sync_folder(path: str | os.PathLike[str]) -> None:
    """Make the names in a folder (new, renamed, removed files) survive a power cut."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: str | os.PathLike[str], flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_and_sync(path: Path, data: bytes | memoryview) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        view = memoryview(data).cast("B")
        while view.nbytes:
            view = view[os.write(descriptor, view[:_CHUNK]) :]  # a write may be short
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp-{secrets.token_hex(4)}")


@contextmanager
def disk_faults(path: str | os.PathLike[str], needed: int = 0) -> Iterator[None]:
    """Turn an OSError of the block that the user can mend into a :class:`DiskError`; ``needed`` in bytes."""
    try:
        yield
    except OSError as error:
        advice = _DISK_FAULTS.get(error.errno or 0)
        if advice is None:
            raise
        wanted = f" ({needed:,} bytes needed)" if needed else ""
        raise DiskError(f"{path}: cannot be written{wanted}: {error.strerror}", advice) from error
