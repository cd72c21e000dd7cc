"""Who may write: locks of the kernel's, which let go with their process, however that ends.

A folder's lock is taken on the file ``.lock`` in it, opened for writing: network disks keep no lock of a
folder, and an exclusive one only of a file that may be written. It is exclusive while a job is opened and
looked through, then shared by the processes that write its parts, so that a second start is refused until the
last of them has ended; the last one takes the file away. Imports no torch.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from reposer.errors import NOT_ON_WINDOWS, UserError, disk_faults

if sys.platform == "win32":
    raise ImportError(NOT_ON_WINDOWS)
import fcntl

LOCK = ".lock"  # in a folder, while somebody writes there; also what a killed writer leaves
# what a disk says that keeps no locks: NFS without its lock service, Lustre without flock, some FUSE
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS)


@contextmanager
def locked(folder: Path, *, shared: bool = False, notes: list[str] | None = None) -> Iterator[int]:
    """Hold the folder, alone or with other writers of the same job.

    Args:
        notes: where the disk keeps no locks, this gets a line, and the block runs without one; None: refused.

    Yields:
        The descriptor, for :func:`share`.

    Raises:
        UserError: another process holds it, or the disk keeps no locks.
        DiskError: nothing can be written there.
    """
    path = folder / LOCK
    descriptor = _take(path, shared, notes)
    try:
        yield descriptor
    finally:
        with suppress(OSError):  # others of this job may still be at it: the last takes the file away
            if try_lock(descriptor) and _is_at(descriptor, path):
                os.unlink(path)
        os.close(descriptor)


def _take(path: Path, shared: bool, notes: list[str] | None) -> int:
    while True:
        with disk_faults(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            if not try_lock(descriptor, shared=shared):
                raise _taken(path.parent)
            if _is_at(descriptor, path):
                return descriptor
        except OSError as error:
            if error.errno in NO_LOCKS:
                problem = f"{path.parent}: this disk keeps no locks ({error.strerror})"
                if notes is not None:
                    notes.append(f"{problem}: nothing stops a second start, so see that there is none")
                    return descriptor
                os.close(descriptor)
                raise UserError(problem, "use a disk that does, or mount it with locks") from error
            os.close(descriptor)
            raise
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the one before took it away meanwhile: again


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether this open file is the one that has the name now."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    return False


def share(folder: Path, descriptor: int) -> None:
    """Let other writers of the same job in.

    Raises:
        UserError: another start slipped in between (the kernel's change of a lock has a gap).
    """
    try:
        if not try_lock(descriptor, shared=True):
            raise _taken(folder)
    except OSError as error:
        if error.errno not in NO_LOCKS:  # said when it was taken
            raise


def try_lock(descriptor: int, *, shared: bool = False, wait: bool = False) -> bool:
    """Whether this process holds the lock of an open file or folder now; closing it lets go.

    Args:
        wait: until nobody else holds it.

    Raises:
        OSError: the disk keeps no locks.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError):
        return False
    return True


@contextmanager
def held(path: Path) -> Iterator[bool]:
    """Hold the lock of a file, which stays, until the block ends; False where another process does.

    Raises:
        UserError: something else than a file has this name.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if not (path.is_symlink() or path.is_dir()):
            raise
        raise UserError(f"{path}: is a link or a folder, not a lock", "delete it") from error
    try:
        yield try_lock(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def in_turn(folder: Path, name: str) -> Iterator[None]:
    """Do one short thing in a folder at a time, among all processes; waits, and leaves no file behind.

    Not the folder's own lock: who holds that may take turns too.

    Args:
        name: of the file that holds the lock meanwhile.

    Raises:
        OSError: the folder is missing, or the disk refuses.
    """
    path = folder / name
    held = False
    while not held:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            with suppress(OSError):  # a disk without locks counts as held
                try_lock(descriptor, wait=True)
            held = _is_at(descriptor, path)  # else the one before took it away: again
            if held:
                try:
                    yield
                finally:
                    with suppress(FileNotFoundError):
                        os.unlink(path)
        finally:
            os.close(descriptor)


def _taken(folder: Path) -> UserError:
    return UserError(f"{folder}: another process is writing there", "wait for it or stop it")
