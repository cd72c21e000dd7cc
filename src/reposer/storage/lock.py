"""Who may write: locks of the kernel's, which let go with their process, however that ends.

A folder's lock is exclusive while a job is opened and looked through, then shared by the processes that
write its parts, so that a second start is refused until the last of them has ended. Imports no torch.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from reposer.errors import UserError


@contextmanager
def locked(folder: Path, *, shared: bool = False, wait: bool = False) -> Iterator[int]:
    """Hold the folder, alone or with other writers of the same job.

    Args:
        wait: until nobody else holds it.

    Yields:
        The descriptor, for :func:`share`.

    Raises:
        UserError: another process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not try_lock(descriptor, shared=shared, wait=wait):
            raise _taken(folder)
        yield descriptor
    finally:
        os.close(descriptor)


def share(folder: Path, descriptor: int) -> None:
    """Let other writers of the same job in.

    Raises:
        UserError: another start slipped in between (the kernel's change of a lock has a gap).
    """
    if not try_lock(descriptor, shared=True):
        raise _taken(folder)


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
            with suppress(FileNotFoundError):  # the one before took it away: again
                held = os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
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
