"""Which of several workers makes which shard: claims by files, without a server and without equal clocks.

A claim is a file ``.claims/<plan>/<shard>.<n>``, made so that one process alone can make it. Its process adds
a byte to it now and then. A claim is dead when its process, on this machine, no longer holds the kernel's
lock of it, or when it has not grown for the lease; clocks are not compared. Who takes a shard over makes the
claim n + 1. A commit ends by renaming the file ``<shard>.<n>.seal`` to its place, and who takes the shard
over renames that file away: one of the two fails, so two claims of a shard never both commit.

Imports no torch.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from reposer.config import read_json
from reposer.errors import UserError
from reposer.jobs.shards import CLAIMS, ClaimLostError, Shard
from reposer.storage.files import sync_folder
from reposer.storage.lock import NO_LOCKS, try_lock
from reposer.storage.manifest import is_sealed, part_path
from reposer.storage.paths import (
    RefusedFileError,
    check_name,
    open_regular,
    printable,
    read_regular,
    unlinked,
)

PLAN = "plan.json"
_BEAT, _BEATS = 5.0, 6  # seconds between two signs of life at most; signs in a lease at least
_LOOKS = 0.5  # seconds between two looks at the claims of others
_GIVEN_BACK = b"x"
_MAX_CLAIM = 1 << 20  # bytes


def is_planned(book: Path) -> bool:
    """Whether workers may work there."""
    return (book / CLAIMS / PLAN).is_file()


@dataclass(frozen=True, slots=True)
class Plan:
    """What the workers of a job go by."""

    id: str  # of this plan: claims of another one do not count
    version: str  # of this program
    lease: float  # seconds

    def data(self) -> bytes:
        values = {"id": self.id, "version": self.version, "lease": self.lease}
        return f"{json.dumps(values)}\n".encode()

    @classmethod
    def of(cls, book: Path) -> Self:
        path = book / CLAIMS / PLAN
        if not is_planned(book):
            raise UserError(
                f"{printable(book)}: holds no plan for workers (it is finished, or was never planned)",
                "give the same command with --step plan first",
            )
        values = read_json(path, root=book)
        name, version, lease = (values.get(key) for key in ("id", "version", "lease"))
        if isinstance(name, str) and isinstance(version, str) and isinstance(lease, int | float):
            with suppress(ValueError):
                if 1 <= lease <= 86_400:
                    return cls(check_name(name), version, lease)
        raise UserError(f"{printable(path)}: is no plan", f"delete {printable(path)} and plan again")


def _this_machine() -> str:
    """The same for all processes of a machine until it starts again, in containers too."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


@dataclass(slots=True)
class Claim:
    """This process's right to make a shard, until somebody takes it over; see ``shards.Claimed``."""

    folder: Path  # of the claims of a plan
    number: int
    generation: int
    descriptor: int  # of its file; holds the kernel's lock of it
    token: str = field(default_factory=lambda: secrets.token_hex(4))

    def begin_commit(self) -> None:
        """Before anything is moved to its place.

        Raises:
            ClaimLostError: another worker has taken the shard over.
            UserError: the plan is gone.
        """
        with _plan_there(self.folder):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            os.close(os.open(self._seal, flags, 0o666))
        if os.path.lexists(_claim_path(self.folder, self.number, self.generation + 1)):
            raise ClaimLostError

    def seal(self, path: Path, data: bytes) -> None:
        """End the commit: put the seal of the shard's part to its place.

        Raises:
            ClaimLostError: another worker has taken the shard over.
        """
        try:
            descriptor = os.open(self._seal, os.O_WRONLY | os.O_NOFOLLOW)
            try:
                os.write(descriptor, data)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.rename(self._seal, path)
        except FileNotFoundError:  # renamed by who took the shard over
            raise ClaimLostError from None
        sync_folder(path.parent)

    @property
    def _seal(self) -> Path:
        """The file that the commit ends with; open only while it is written, so that none stays open."""
        return _seal_of(self.folder, self.number, self.generation)


def _claim_path(folder: Path, number: int, generation: int) -> Path:
    return folder / f"{number:05d}.{generation:d}"


def _seal_of(folder: Path, number: int, generation: int) -> Path:
    return folder / f"{number:05d}.{generation:d}.seal"


@contextmanager
def _plan_there(folder: Path) -> Iterator[None]:
    """Turns a missing folder of claims into one clear line."""
    try:
        yield
    except FileNotFoundError as error:
        book = folder.parent.parent
        problem = f"{printable(book)}: was finished, or planned anew, while this worker worked"
        raise UserError(problem, "start it again if there is something left") from error


class Claims:
    """The claims of a plan, and the life signs of those that this process holds."""

    def __init__(self, book: Path, plan: Plan) -> None:
        self._book, self._lease = book, plan.lease
        self._folder = unlinked(book, f"{CLAIMS}/{plan.id}")
        self._who = {"machine": _this_machine(), "host": socket.gethostname(), "pid": os.getpid()}
        self._held: dict[int, Claim] = {}
        self._expired: set[tuple[int, int]] = (
            set()
        )  # shard, generation: seen without a sign of life for the lease
        self._lock = threading.Lock()  # of _held
        self._end = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        self._heart.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._heart.join()
        for claim in list(self._held.values()):
            self._let_go(claim)

    def taken(self, shards: Mapping[int, Shard], wanted: Collection[int]) -> Iterator[Shard]:
        """Those of the wanted shards that nobody else has, each claimed when it is asked for."""
        for number in wanted:
            self._drop_done()
            if self._is_done(number):
                continue
            generation = self._last(number)
            if generation >= 0 and not self._is_free(number, generation):
                continue
            claim = self._take(number, generation + 1)
            if claim is not None:
                yield shards[number]._replace(claim=claim)

    def given_up(self, wanted: Collection[int]) -> list[int]:
        """Wait until shards of others are free; returns them, or [] when all are done or show life."""
        seen: dict[int, tuple[tuple[int, int], float]] = {}
        alive: set[int] = set()
        while True:
            self._drop_done()
            left = [n for n in wanted if not self._is_done(n)]
            free = []
            for number in left:
                generation = self._last(number)
                sign = (generation, self._size(number, generation))
                first, since = seen.setdefault(number, (sign, time.monotonic()))
                if generation < 0 or self._is_free(number, generation):
                    free.append(number)  # asked first: giving a claim back makes it grow too
                elif sign != first:
                    alive.add(number)
                elif time.monotonic() - since >= self._lease:
                    self._expired.add((number, generation))
                    free.append(number)
            if free or alive.issuperset(left):
                return free
            time.sleep(min(_LOOKS, self._lease / (2 * _BEATS)))

    def left(self, wanted: Collection[int]) -> list[int]:
        """The shards that are not done."""
        return [number for number in wanted if not self._is_done(number)]

    def _is_done(self, number: int) -> bool:
        return is_sealed(part_path(self._book, number))

    def _take(self, number: int, generation: int) -> Claim | None:
        path = _claim_path(self._folder, number, generation)
        try:
            with _plan_there(self._folder):
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW
                descriptor = os.open(path, flags, 0o666)
        except FileExistsError:
            return None
        claim = Claim(self._folder, number, generation, descriptor)
        with self._lock:
            self._held[number] = claim
        try:
            try_lock(descriptor)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        os.write(descriptor, f"{json.dumps(self._who)}\n".encode())
        os.fsync(descriptor)
        for earlier in range(generation):  # one may be in the midst of its commit: it must not end it
            with suppress(FileNotFoundError):
                seal = _seal_of(self._folder, number, earlier)
                os.rename(seal, seal.with_suffix(".dead"))
        if self._is_done(number):
            self._let_go(claim)
            return None
        return claim

    def _let_go(self, claim: Claim) -> None:
        """Give a shard back, unless it is done."""
        with self._lock:
            self._held.pop(claim.number, None)
        with suppress(OSError):
            os.write(claim.descriptor, _GIVEN_BACK)
        os.close(claim.descriptor)

    def _drop_done(self) -> None:
        """Let go of what is done, or was taken over."""
        for claim in list(self._held.values()):
            if self._is_done(claim.number) or self._last(claim.number) > claim.generation:
                self._let_go(claim)

    def _last(self, number: int) -> int:
        """The generation of the last claim of a shard; -1 for none."""
        generation = -1
        while os.path.lexists(_claim_path(self._folder, number, generation + 1)):
            generation += 1
        return generation

    def _size(self, number: int, generation: int) -> int:
        """Bytes of a claim now; opened, since a network disk may know an old size of a file that is not."""
        with suppress(RefusedFileError), open_regular(_claim_path(self._folder, number, generation)) as file:
            return os.fstat(file.fileno()).st_size
        return -1

    def _is_free(self, number: int, generation: int) -> bool:
        """Whether a claim was given back, or its process is known to be gone."""
        held = self._held.get(number)
        if held is not None and held.generation == generation:
            return False
        path = _claim_path(self._folder, number, generation)
        if (number, generation) in self._expired:
            return True
        data = read_regular(path, max_bytes=_MAX_CLAIM, root=self._book)
        if data.endswith(_GIVEN_BACK):
            return True
        who, end, _ = data.partition(b"\n")
        with suppress(ValueError, AttributeError):
            if end and json.loads(who).get("machine") == self._who["machine"]:
                return _is_unlocked(path)
        return False

    def _beat(self) -> None:
        while not self._end.wait(min(_BEAT, self._lease / _BEATS)):
            with self._lock:
                for claim in self._held.values():
                    with suppress(OSError):  # what is wrong with the disk, the work itself will meet
                        os.write(claim.descriptor, b".")
                        os.fsync(claim.descriptor)


def _is_unlocked(path: Path) -> bool:
    """Whether nobody on this machine holds the lock of a claim; False on a disk without locks."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return try_lock(descriptor)
    except OSError:
        return False
    finally:
        os.close(descriptor)
