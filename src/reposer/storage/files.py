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
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from reposer.errors import DISK_FAULTS, UserError
from reposer.errors import DiskError as DiskError
from reposer.errors import disk_faults as disk_faults
from reposer.storage.lock import NO_LOCKS, try_lock
from reposer.storage.paths import foreign_names, open_regular, printable

_TEMPORARY = re.compile(r"^\..+\.tmp-[0-9a-f]{8}$")
_CHUNK = 1 << 20  # bytes for one read or write call
_FSYNC_THREADS = 8  # waiting for a disk takes no processor time
_MOMENT = 2.0  # seconds between the making of a temporary and its lock, at the very most


def sha256_bytes(data: bytes | memoryview) -> str:
    """Hexadecimal sha256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Hexadecimal sha256 of a regular file's content, read in pieces.

    Raises:
        RefusedFileError: it is missing, unreadable or no regular file (a device has no end).
    """
    with open_regular(Path(path)) as file:
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
    clean_up_after_killed(path)
    temporary = _temporary_name(path)
    with disk_faults(path, len(data)):
        try:
            with _writing(temporary, data):
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
    with disk_faults(path, len(data)), _writing(Path(path), data):
        pass


@contextmanager
def atomic_folder(
    path: str | os.PathLike[str], check: Callable[[Path], None] | None = None
) -> Iterator[Path]:
    """Build a folder under a temporary name; after the block it stands at ``path`` complete and durable.

    A folder that is already at ``path`` is replaced, if ``check`` allows it: it waits as
    :func:`replaced_name` during the two renames, so that a crash between them loses nothing (readers that
    must survive this look there too). When the block raises, nothing appears and the old folder stays. The
    temporary folder holds a lock of the kernel's: a second writer of the same path is refused, and what a
    killed one left is deleted.

    Args:
        path: where it will stand.
        check: called with ``path`` right before something there is replaced, however it came there; raises
            UserError to refuse. None: only an empty folder is replaced.

    Raises:
        DiskError: as in :func:`write_atomic`.
        UserError: another process is writing this folder, or ``check`` refuses.
    """
    path = Path(path)
    temporary = _temporary_name(path)
    lock = -1
    try:
        with disk_faults(path):
            os.mkdir(temporary)
            lock = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY)
        if not _try_lock(lock) or clean_up_after_killed(path, always=True, but=temporary):
            raise UserError(f"{path}: another process is writing there", "wait for it or stop it")
        yield temporary
        if os.path.lexists(path):
            (check or _refuse_filled)(path)
        with disk_faults(path):
            for folder, _, names in os.walk(temporary, topdown=False):
                sync_files([Path(folder) / name for name in names])
                sync_folder(folder)
            _swap_in(temporary, path)
    except BaseException:
        with suppress(OSError):
            remove_tree(temporary)
        raise
    finally:
        if lock >= 0:
            os.close(lock)


def _refuse_filled(path: Path) -> None:
    """What :func:`atomic_folder` replaces when nobody says otherwise: nothing that holds anything."""
    if path.is_symlink() or not path.is_dir() or any(path.iterdir()):
        raise UserError(f"{path}: exists, and was not there before", "choose a new folder")


def refuse_foreign(folder: Path, own: Callable[[str], bool], what: str) -> None:
    """Refuse to replace a folder that holds anything which the same command did not write.

    Args:
        folder: the folder.
        own: whether a relative path, '/' between its parts, is of a file or folder that the command wrote.
        what: what the folder should be, for the message.

    Raises:
        UserError: names the first foreign files.
    """
    if foreign := foreign_names(folder, own):
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        shown = ", ".join(printable(name) for name in foreign[:3])
        raise UserError(
            f"{printable(folder)}: holds what is not of {what}: {shown}{more}",
            "move that away, or give another folder",
        )


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
    with suppress(OSError):  # the new folder stands; what is left of the old one has a temporary name
        remove_tree(aside)


def remove_tree(path: Path) -> None:
    """Delete a folder that need not exist; it is renamed first, so that no half of it stands at its name."""
    if path.is_symlink():
        path.unlink()  # never what it leads to
        return
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
    for entry in (stale := sorted(e for e in folder.iterdir() if _TEMPORARY.match(e.name))):
        _remove_any(entry)
    return stale


def _remove_any(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()


_looked_through: dict[str, list[str]] = {}  # temporary names of killed writers, by folder; once a process


def clean_up_after_killed(path: Path, *, always: bool = False, but: Path | None = None) -> bool:
    """Delete the temporaries that killed writers of ``path`` left beside it.

    A folder is read once a process, so that a thousand files cost one look. Writers hold a lock of the
    kernel's on what they write; a temporary that nobody holds, and that is not of this moment, is left over.

    Returns:
        Whether a living process is writing ``path``.
    """
    folder = os.path.realpath(path.parent)
    if always or folder not in _looked_through:
        try:
            names = os.listdir(folder)
        except OSError:
            return False  # the write itself will say what is wrong
        _looked_through[folder] = [name for name in names if _TEMPORARY.match(name)]
    own = (path.name, replaced_name(path).name)  # the second: a replaced folder that was being deleted
    mine = [name for name in _looked_through[folder] if name[1:-13] in own]  # .NAME.tmp-12345678
    alive = False
    for name in mine:
        entry = Path(folder) / name
        if but is not None and name == but.name:
            continue
        try:
            if entry.is_symlink():
                continue  # no writer makes links
            mode = (
                os.O_RDONLY if entry.is_dir() else os.O_RDWR
            )  # a network disk locks no file that is only read
            handle = os.open(entry, mode | os.O_NONBLOCK | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            if not _try_lock(handle):
                alive = True
            elif not _is_of_this_moment(handle, entry):
                with suppress(OSError):
                    _remove_any(entry)
        finally:
            os.close(handle)
    return alive


def _is_of_this_moment(handle: int, entry: Path) -> bool:
    """Whether a temporary is so new and empty that its writer may be about to lock it."""
    status = os.fstat(handle)
    empty = not any(entry.iterdir()) if stat.S_ISDIR(status.st_mode) else status.st_size == 0
    return empty and time.time() - status.st_mtime < _MOMENT


def _try_lock(handle: int) -> bool:
    """Whether this process holds the lock now; a disk without locks counts as held."""
    try:
        return try_lock(handle)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True


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
            DISK_FAULTS[errno.ENOSPC],
        )


def sync_folder(path: str | os.PathLike[str]) -> None:
    """Make the names in a folder (new, renamed, removed files) survive a power cut."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def sync_files(paths: Sequence[Path]) -> None:
    """Make the contents of files survive a power cut; several wait for the disk at once."""

    def share(first: int) -> None:  # of a thread: a task for each file would cost more than its fsync
        for path in paths[first::_FSYNC_THREADS]:
            _sync(path, os.O_RDONLY)

    with ThreadPoolExecutor(_FSYNC_THREADS) as pool:
        list(pool.map(share, range(min(_FSYNC_THREADS, len(paths)))))  # raises what a thread raised


def _sync(path: str | os.PathLike[str], flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _writing(path: Path, data: bytes | memoryview) -> Iterator[None]:
    """Write a new file and fsync it; it is locked until the block ends."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        _try_lock(descriptor)
        view = memoryview(data).cast("B")
        while view.nbytes:
            view = view[os.write(descriptor, view[:_CHUNK]) :]  # a write may be short
        os.fsync(descriptor)
        yield
    finally:
        os.close(descriptor)


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp-{secrets.token_hex(4)}")


# ---- Buckets, as fsspec opens them. No rename is atomic there: a set of files is there once its list is,
# which is written last; each object appears whole or not at all.

_CLIENTS = {
    "aiobotocore",
    "aiohttp",
    "boto3",
    "botocore",
    "fsspec",
    "s3fs",
}  # whose errors are no faults of ours


def is_remote(place: str | os.PathLike[str]) -> bool:
    """Whether a place is that of a bucket, as ``s3://bucket/folder``."""
    return "://" in os.fspath(place)


class Bucket:
    """The objects below a place of a bucket; names are relative to it.

    Args:
        place: as ``s3://bucket/folder``.

    Raises:
        DiskError: here and in all that is called: the bucket, the network or its client refuses.
    """

    def __init__(self, place: str) -> None:
        self._place = place
        with self._faults():
            from fsspec.core import url_to_fs

            self._files, inside = url_to_fs(place)
            self._inside = inside.rstrip("/")

    def names(self) -> list[str]:
        """Of all objects, sorted."""
        with self._faults():
            self._files.invalidate_cache()
            found = self._files.find(self._inside)
        return sorted(name.removeprefix(self._inside).lstrip("/") for name in found)

    def put(self, file: Path, name: str) -> None:
        """Write a file's content as an object, over one of this name."""
        with self._faults(name):
            self._files.put_file(str(file), f"{self._inside}/{name}")

    def get(self, name: str, to: Path, max_bytes: int) -> None:
        """Write an object's content to a new file; one of more than ``max_bytes`` is refused."""
        with self._faults(name):
            size = self._files.size(f"{self._inside}/{name}")
            if size is None or size > max_bytes:
                raise OSError(f"has {size} bytes, {max_bytes:,} are the most")
            self._files.get_file(f"{self._inside}/{name}", str(to))

    def delete(self, name: str) -> None:
        """Delete an object."""
        with self._faults(name):
            self._files.rm_file(f"{self._inside}/{name}")

    @contextmanager
    def _faults(self, name: str = "") -> Iterator[None]:
        place = f"{self._place.rstrip('/')}/{name}" if name else self._place
        try:
            yield
        except ImportError as error:
            problem = f"{printable(place)}: what reads it is not installed ({error.name or error})"
            raise DiskError(problem, "pip install 'reposer[s3]'") from error
        except Exception as error:
            client = type(error).__module__.partition(".")[0] in _CLIENTS
            if not client and not isinstance(error, OSError | ValueError):
                raise
            reason = (str(error).strip().splitlines() or [""])[0]
            reason = "no such object" if isinstance(error, FileNotFoundError) else reason
            raise DiskError(
                f"{printable(place)}: {printable(reason) or type(error).__name__}",
                "check the name, your rights there, your credentials and the network",
            ) from error
