"""kill -9 at any moment, a full disk, a failing call: the finished folder is the same, byte for byte."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from given_files import GivenFiles, write_given
from kills import fork, killed

from reposer.errors import UserError
from reposer.jobs import shards
from reposer.storage.files import DiskError
from reposer.storage.manifest import find_faults, read_rows

CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000  # linux/sched.h
RUNNER = Path(__file__).parents[1] / "helpers" / "crash_runner.py"


def tree(folder):
    """Relative path -> sha256 of everything below a folder, hidden files too."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in folder.rglob("*")
    }


def run(*arguments):
    done = subprocess.run(
        [sys.executable, RUNNER, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


@pytest.mark.slow
def test_twenty_random_kills(tmp_path):
    assert run(tmp_path, "random", 20) == 20
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")
    assert read_rows(tmp_path / "killed").num_rows == 96
    assert find_faults(tmp_path / "killed") == []


@pytest.mark.slow
def test_a_kill_at_every_lasting_change_of_the_disk(tmp_path):
    kills = run(tmp_path, "points")
    assert kills > 40
    whole = tree(tmp_path / "whole")
    assert all(tree(tmp_path / f"{n}") == whole for n in range(kills))


# ---- the writer alone, with a job that needs no model


def small_file(item):
    return f"{item:03d}.bin", bytes([item]) * 3000, {"number": item}


def write_small(out, items=10, on_make=lambda: None, **changes):
    settings = {"model": "abc", "inputs": {"seed": 1}}
    values = {"settings": settings, "environment": {"threads": 1}, "columns": [("number", pa.int64())]}
    return write_given(out, GivenFiles(small_file, on_make), items, **({"shard_items": 4} | values | changes))


FALLIBLE = [
    *((os, name) for name in ("replace", "fsync", "write", "mkdir", "rmdir", "open")),
    (shards, "open"),
]


def failing(function, folder, count, call, fault, failed):
    """``function``, whose call number ``call`` on ``folder`` or an open file raises ``fault``."""

    def wrapper(*args, **kwargs):
        here = isinstance(args[0], int) or str(folder) in str(args[0])
        if here and next(count) == call:
            failed.append(True)
            raise OSError(fault, os.strerror(fault))
        return function(*args, **kwargs)

    return wrapper


def test_a_fault_of_any_call_is_one_clear_line_and_loses_nothing(tmp_path, monkeypatch):
    write_small(tmp_path / "whole", 3, shard_items=2)
    for call in itertools.count():
        fault = (errno.ENOSPC, errno.EDQUOT, errno.EIO)[call % 3]
        out, count, failed = tmp_path / f"out{call}", itertools.count(), []
        with monkeypatch.context() as patch:
            for place, name in FALLIBLE:
                function = failing(getattr(place, name, open), out, count, call, fault, failed)
                patch.setattr(place, name, function, raising=False)
            try:
                write_small(out, 3, shard_items=2, encoders=1)
                message = ""
            except UserError as error:
                message = str(error)
        assert bool(message) == bool(failed), "a fault went unnoticed"
        if not failed:
            break
        if "cannot be read" in message:  # job.json, read again
            assert f"{out}/" in message
            assert os.strerror(fault) in message
        else:
            assert message.startswith(f"{out}: stopped after ")
            assert f"of 3 pictures: {os.strerror(fault)}: make room" in message
        assert not (out / ".staging").exists()
        write_small(out, 3, shard_items=2)
        assert tree(out) == tree(tmp_path / "whole")
    assert call > 30


def small_disk(place):
    """Mount 64 kB of memory at ``place``, for this process alone: one without threads, a fork."""
    user, group, libc = os.getuid(), os.getgid(), ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "no unprivileged mounts here")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", place], check=True)


def test_a_full_disk_says_how_far_it_came_and_goes_on_with_more_room(tmp_path):
    disk, said = tmp_path / "disk", tmp_path / "said.json"
    disk.mkdir()

    def fill():
        small_disk(disk)
        try:
            write_small(disk / "out", 40)
        except DiskError as error:
            message = str(error)
        subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
        write_small(disk / "out", 40)
        said.write_text(json.dumps([message, tree(disk / "out")]))

    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no unprivileged mounts here")
    assert not killed(fork(fill))
    write_small(tmp_path / "whole", 40)
    message, made = json.loads(said.read_text())
    assert "of 40 pictures: No space left on device" in message
    assert int(message.split("stopped after ")[1].split()[0]) in range(4, 24, 4)
    assert made == tree(tmp_path / "whole")


def test_another_job_in_the_folder_is_refused_with_what_differs(tmp_path):
    out = tmp_path / "out"
    write_small(out)
    before = tree(out)
    other = {"model": "xyz", "inputs": {"seed": 1}}
    with pytest.raises(
        UserError, match=r'these differ: settings\.model: "abc" -> "xyz": choose another'
    ) as error:
        write_small(out, settings=other)
    assert "seed" not in str(error.value)
    with pytest.raises(UserError, match="items: 10 -> 11"):
        write_small(out, items=11)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match=r"is not empty \(holds letter\.txt\)"):
        write_small(tmp_path / "full")
    assert tree(out) == before


def test_another_environment_is_reported_and_the_folder_finished(tmp_path):
    write_small(tmp_path)
    report = write_small(tmp_path, environment={"threads": 4})
    assert (report.kept, report.written) == (10, 0)
    assert "threads: 1 -> 4" in str(report)


def test_two_writers_cannot_mix(tmp_path):
    def meddle():
        with pytest.raises(UserError, match="another process is writing there"):
            write_small(tmp_path)

    assert write_small(tmp_path, on_make=meddle).written == 10


def test_a_damaged_shard_is_made_again_and_reported(tmp_path):
    write_small(tmp_path)
    before = tree(tmp_path)
    (tmp_path / "images" / "005.bin").write_bytes(b"other")
    part = tmp_path / "manifest" / "part-00002.parquet"
    data = bytearray(part.read_bytes())
    data[len(data) // 4] ^= 1
    part.write_bytes(data)
    report = write_small(tmp_path)
    assert report.written == 6, "the second shard of four and the third of two"
    assert "images/005.bin differs from its sha256" in str(report)
    assert tree(tmp_path) == before


def test_verification_finds_every_kind_of_fault(tmp_path):
    write_small(tmp_path)
    assert find_faults(tmp_path) == []
    images = tmp_path / "images"
    (images / "001.bin").unlink()
    (images / "002.bin").write_bytes(b"flipped")
    (images / "003.bin").rename(images / "renamed.bin")
    a, b = (images / "004.bin").read_bytes(), (images / "005.bin").read_bytes()
    (images / "004.bin").write_bytes(b)
    (images / "005.bin").write_bytes(a)
    part = tmp_path / "manifest" / "part-00002.parquet"
    part.write_bytes(part.read_bytes() + b"\0")
    (tmp_path / "manifest" / "part-00003.parquet").write_bytes(part.read_bytes())
    text = "\n".join(find_faults(tmp_path))
    for name in ("001", "002", "003", "renamed", "004", "005"):
        assert f"images/{name}.bin" in text
    assert "manifest/part-00002.parquet: is damaged: differs from its sha256" in text
    assert "manifest/part-00003.parquet does not belong" in text
    assert "images/000.bin" not in text
    (tmp_path / "manifest" / "_part-00000.sha256").unlink()
    with pytest.raises(UserError, match="1 of 3 shards are not there"):
        find_faults(tmp_path)


def test_the_manifest_is_plain_parquet_with_plain_checksums(tmp_path):
    write_small(tmp_path)
    table = pq.read_table(tmp_path / "manifest")
    assert table["number"].to_pylist() == list(range(10))
    assert table.equals(read_rows(tmp_path))
    for seal in (tmp_path / "manifest").glob("_*.sha256"):
        subprocess.run(["sha256sum", "--check", seal.name], cwd=seal.parent, check=True, capture_output=True)
