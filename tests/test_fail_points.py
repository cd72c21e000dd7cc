"""The Nth system call of a write fails, for every N: the last good state is never lost (SQLite's method)."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from torch import Tensor

from reposer.errors import UserError
from reposer.storage.checkpoint import DamagedCheckpointError, latest, prune, save, steps, verify
from reposer.storage.files import DiskError, write_atomic

CALLS = ("open", "write", "fsync", "close", "replace", "rename", "mkdir", "unlink", "rmdir")
META = {"config_hash": "0"}
ERRORS = {name: getattr(errno, name) for name in ("EIO", "ENOSPC", "EDQUOT", "EROFS")}


class Killed(BaseException):
    """The process is dead: no later call of it takes effect."""


class FailPoint:
    """Fails the Nth call of the os functions that change a disk.

    mode: a name of ERRORS (the call does nothing and raises; later calls work), "before" or "after" (the
    process dies at the call, which had not or had its effect; a write dies half done).
    """

    def __init__(self, number: int, mode: str) -> None:
        self.number, self.mode = number, mode
        self.count = 0
        self.dead = False

    @contextmanager
    def active(self) -> Iterator[None]:
        real = {name: getattr(os, name) for name in CALLS}
        try:
            for name, function in real.items():
                setattr(os, name, self._wrap(name, function))
            yield
        finally:
            for name, function in real.items():
                setattr(os, name, function)

    @property
    def reached(self) -> bool:
        return self.count >= self.number

    def _wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.dead:
                raise Killed
            if name == "close" and stat.S_ISDIR(os.fstat(args[0]).st_mode):
                return function(*args, **kwargs)  # closing a folder cannot fail
            self.count += 1
            if self.count != self.number:
                return function(*args, **kwargs)
            if name == "close":  # Linux frees the descriptor even when close reports an error
                function(*args, **kwargs)
            if self.mode in ERRORS:
                raise OSError(ERRORS[self.mode], os.strerror(ERRORS[self.mode]))
            if name == "write":
                function(args[0], bytes(args[1])[: len(args[1]) // 2])
            elif self.mode == "after" and name not in ("close", "open"):
                with suppress(OSError):  # a folder that exists already cannot be made
                    function(*args, **kwargs)
            self.dead = True
            raise Killed

        return call


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where fsync costs nothing, if there is one."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def groups_of(seed: int) -> dict[str, dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    return {"net": {"w": torch.randn(9, generator=draw)}, "opt": {"m": torch.randn(9, generator=draw)}}


def tree_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(
            f"{path.relative_to(folder)}\0".encode() + (path.read_bytes() if path.is_file() else b"")
        )
    return digest.hexdigest()


def content(root: Path) -> tuple[int, list[float]] | None:
    found = latest(root)
    return None if found is None else (found.step, found.groups["net"]["w"].tolist())


def expected(step: int, seed: int) -> tuple[int, list[float]]:
    return step, groups_of(seed)["net"]["w"].tolist()


MODES = [*ERRORS, "before", "after"]


@pytest.mark.parametrize("mode", MODES)
def test_write_atomic_fails_at_every_call(memory: Path, mode: str) -> None:
    path = memory / "file"
    for number in range(1, 100):
        write_atomic(path, b"old" * 9)
        point = FailPoint(number, mode)
        try:
            with point.active():
                write_atomic(path, b"new" * 9)
        except (DiskError, Killed):
            assert point.reached
        assert path.read_bytes() in (b"old" * 9, b"new" * 9)
        if not point.reached:
            assert number > 6  # open, write, fsync, close, replace, and the folder's
            assert path.read_bytes() == b"new" * 9
            return
        if mode in ERRORS:
            assert [entry.name for entry in memory.iterdir()] == ["file"]
    pytest.fail("the calls never end")


@pytest.mark.parametrize("mode", MODES)
def test_save_fails_at_every_call(memory: Path, mode: str) -> None:
    for number in range(1, 200):
        root = memory / str(number)
        save(root, 1, groups_of(1), META)
        before = tree_hash(root / "step_00000001")
        point = FailPoint(number, mode)
        failed = False
        try:
            with point.active():
                save(root, 2, groups_of(2), META)
        except (DiskError, Killed):
            failed = True
        assert tree_hash(root / "step_00000001") == before
        assert content(root) in (expected(1, 1), expected(2, 2))
        assert failed or content(root) == expected(2, 2)
        if mode in ERRORS:
            assert {entry.name for entry in root.iterdir()} <= {"step_00000001", "step_00000002"}
        save(root, 3, groups_of(3), META)  # the next process goes on and tidies up
        assert content(root) == expected(3, 3)
        assert all(entry.name.startswith("step_") for entry in root.iterdir())
        if not point.reached:
            assert not failed
            assert number > 20
            return
        assert failed or mode in ERRORS
    pytest.fail("the calls never end")


@pytest.mark.parametrize("mode", MODES)
def test_replacing_a_checkpoint_fails_at_every_call(memory: Path, mode: str) -> None:
    for number in range(1, 200):
        root = memory / str(number)
        save(root, 2, groups_of(1), META)  # the only one
        point = FailPoint(number, mode)
        try:
            with point.active():
                save(root, 2, groups_of(2), META)
        except (DiskError, Killed):
            pass
        assert content(root) in (expected(2, 1), expected(2, 2))
        save(root, 2, groups_of(3), META)
        assert content(root) == expected(2, 3)
        if not point.reached:
            return
    pytest.fail("the calls never end")


@pytest.mark.parametrize("mode", MODES)
def test_prune_fails_at_every_call(memory: Path, mode: str) -> None:
    for number in range(1, 200):
        root = memory / str(number)
        for step in (1, 2, 3, 4):
            save(root, step, groups_of(step), META)
        point = FailPoint(number, mode)
        try:
            with point.active():
                prune(root, 2)
        except Killed:
            pass
        assert content(root) == expected(4, 4)
        for _, path in steps(root):
            verify(path)  # no half of a deleted one stands under its name
        save(root, 5, groups_of(5), META)
        prune(root, 2)
        assert {entry.name for entry in root.iterdir()} == {"step_00000004", "step_00000005"}
        if not point.reached:
            return
    pytest.fail("the calls never end")


class CheckpointFolder(RuleBasedStateMachine):
    """Saves, kills, errors, damage and pruning in any order, beside a model that knows what must be there."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
        self.root = Path(self._folder.name)
        self.step = 0
        self.good: dict[int, set[int]] = {}  # step -> seeds that may be there

    def teardown(self) -> None:
        self._folder.cleanup()

    @rule(seed=st.integers(0, 1000), again=st.booleans())
    def save(self, seed: int, again: bool) -> None:
        self.step += 0 if again and self.step else 1
        save(self.root, self.step, groups_of(seed), META)
        self.good[self.step] = {seed}

    @rule(
        seed=st.integers(0, 1000), number=st.integers(1, 45), mode=st.sampled_from(MODES), again=st.booleans()
    )
    def save_and_fail(self, seed: int, number: int, mode: str, again: bool) -> None:
        step = self.step if again and self.step else self.step + 1
        before = self.good.get(step, set())
        try:
            with FailPoint(number, mode).active():
                save(self.root, step, groups_of(seed), META)
            allowed = {seed}
        except (DiskError, Killed):
            allowed = before | {seed}
        found = dict(steps(self.root)).get(step)
        self.good.pop(step, None)
        if found is not None:
            self.step = step
            try:
                verify(found)
            except DamagedCheckpointError:
                assert not before  # it was damaged before, and is now
            else:
                self.good[step] = allowed
        else:
            assert not before

    @precondition(lambda self: self.good)
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        step = data.draw(st.sampled_from(sorted(self.good)))
        path = dict(steps(self.root))[step]
        file = data.draw(st.sampled_from(sorted(path.iterdir())))
        content = bytearray(file.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        file.write_bytes(content)
        del self.good[step]

    @rule(keep=st.integers(2, 3), number=st.integers(1, 30), mode=st.sampled_from([*MODES, "never"]))
    def prune(self, keep: int, number: int, mode: str) -> None:
        newest = sorted(self.good, reverse=True)[:keep]
        try:
            with FailPoint(0 if mode == "never" else number, mode).active():
                prune(self.root, keep)
        except Killed:
            pass
        there = dict(steps(self.root))
        assert set(newest) <= there.keys()
        self.good = {step: seeds for step, seeds in self.good.items() if step in there}

    @invariant()
    def the_newest_good_one_is_found(self) -> None:
        if self.good:
            found = latest(self.root)
            assert found is not None
            assert found.step == max(self.good)
            assert any(
                torch.equal(found.groups["opt"]["m"], groups_of(seed)["opt"]["m"])
                for seed in self.good[found.step]
            )
        elif steps(self.root):
            with pytest.raises(DamagedCheckpointError):
                latest(self.root)
        else:
            assert latest(self.root) is None


TestCheckpointFolder = pytest.mark.slow(CheckpointFolder.TestCase)
TestCheckpointFolder.settings = settings(
    max_examples=300, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)

FULL_DISK = """
import subprocess, sys
from pathlib import Path
import torch
from reposer.storage import checkpoint; from reposer.storage import files
from reposer.storage.files import DiskError, sha256_file

mount = Path(sys.argv[1])
trusting = 0
large = {group: {"w": torch.arange(36000.0)} for group in "abc"}
for check in (True, False):
    if not check:
        checkpoint.require_space = lambda path, needed: None  # some disks do not say
    for size in range(100, 300, 10):
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", mount], check=True)
        checkpoint.save(mount / "run", 1, {"net": {"w": torch.arange(4000.0)}}, {"config_hash": ""})
        before = [sha256_file(p) for p in sorted((mount / "run" / "step_00000001").iterdir())]
        try:
            checkpoint.save(mount / "run", 2, large, {"config_hash": ""})
        except DiskError as error:
            assert all(part in str(error) for part in (str(mount / "run"), "bytes", "free some space")), error
            trusting += not check
        else:
            raise SystemExit(f"{size} kB held everything")
        assert before == [sha256_file(p) for p in sorted((mount / "run" / "step_00000001").iterdir())]
        assert [p.name for p in (mount / "run").iterdir()] == ["step_00000001"]
        assert checkpoint.latest(mount / "run").step == 1
        subprocess.run(["mount", "-o", "remount,size=2m", mount], check=True)
        checkpoint.save(mount / "run", 2, large, {"config_hash": ""})
        assert checkpoint.latest(mount / "run").step == 2
        subprocess.run(["umount", mount], check=True)
assert trusting == 20, trusting
"""


@pytest.mark.slow
def test_a_really_full_disk(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode:
        pytest.skip("this kernel gives no private mounts to users")
    command = ["unshare", "-Urm", sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_a_read_only_folder_is_explained(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("root may write anywhere")
        with pytest.raises(UserError, match="grant write permission"):
            save(tmp_path, 1, groups_of(1), META)
    finally:
        tmp_path.chmod(0o700)
