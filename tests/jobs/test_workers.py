"""A job planned once, worked at by many, finished once: one process's tree, whoever is killed or late."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pyarrow as pa
import pytest
from given_files import GivenFiles, write_given
from kills import die_at, fork, killed

from reposer.errors import UserError
from reposer.jobs import claims, workers
from reposer.jobs.workers import Step, parse_shard, scheduled_shard
from reposer.storage.manifest import find_faults

ITEMS, SHARD = 27, 4  # seven shards, the last of three items
PLAN, FINISH = Step("plan", lease=1), Step("finish")
LASTING = ("replace", "rename", "fsync", "unlink", "rmdir")


def tree(folder):
    """Relative path -> sha256 of everything below a folder, hidden files and empty folders too."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in folder.rglob("*")
    }


def small_file(item):
    return f"{item:03d}.bin", bytes([item]) * 3000, {"number": item}


def write(out, step=None, *, items=ITEMS, on_make=lambda: None, file=small_file, shard=SHARD, **settings):
    """All of the job, or a step of it."""
    settings = {"model": "abc", **settings}
    columns, environment = [("number", pa.int64())], {"threads": 1}
    return write_given(
        out, GivenFiles(file, on_make), items, shard, columns, settings, environment, step=step
    )


def worker(i, n=7):
    return Step("work", (i, n))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The tree that one process writes."""
    out = tmp_path_factory.mktemp("one") / "whole"
    write(out)
    return tree(out)


def made(out):
    return sorted(int(path.stem[-5:]) for path in (out / "manifest").glob("_*.sha256"))


def wait_until(true, seconds=20.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


@pytest.mark.parametrize("processes", [1, 4])
def test_workers_write_the_tree_of_one_process(tmp_path, whole, processes):
    out = tmp_path / "out"
    said = str(write(out, PLAN))
    assert "is planned: 7 of 7 shards are to be made" in said
    children = [fork(lambda i=i: write(out, worker(i, processes))) for i in range(processes)]
    assert [killed(child) for child in children] == [False] * processes
    write(out, FINISH)
    assert tree(out) == whole
    assert find_faults(out) == []


def test_seven_tasks_in_random_order_two_killed_and_started_again(tmp_path, whole):
    out = tmp_path / "out"
    write(out, PLAN)
    order = random.Random(1).sample(range(7), 7)
    for number, i in enumerate(order):
        deadly = (lambda: None) if number > 1 else (lambda: die_at(9, LASTING))

        def work(i=i, deadly=deadly):
            deadly()
            write(out, worker(i))

        assert killed(fork(work)) == (number < 2)
    for i in order[:2]:
        write(out, worker(i))
    write(out, FINISH)
    assert tree(out) == whole


@pytest.mark.slow
def test_a_worker_killed_at_every_lasting_change_costs_nothing(tmp_path):
    write(tmp_path / "whole", items=2, shard=1)
    for call in itertools.count():
        out = tmp_path / f"{call}"
        write(out, PLAN, items=2, shard=1)

        def work(call=call, out=out):
            die_at(call, LASTING)
            write(out, worker(0, 1), items=2, shard=1)

        struck = killed(fork(work))
        write(out, worker(0, 1), items=2, shard=1)
        write(out, FINISH, items=2, shard=1)
        assert tree(out) == tree(tmp_path / "whole")
        if not struck:
            break
    assert call > 20


def test_more_workers_than_shards_and_late_ones_have_nothing_to_do(tmp_path, whole):
    out = tmp_path / "out"
    write(out, PLAN)
    assert write(out, worker(60, 64)).written == ITEMS  # no shard is its own: it takes what is left
    late = write(out, worker(3, 64))
    assert (late.written, late.kept) == (0, ITEMS)
    write(out, FINISH)
    assert tree(out) == whole
    with pytest.raises(
        UserError, match=r"holds no plan for workers \(it is finished, or was never planned\)"
    ):
        write(out, worker(0))


def test_finish_names_what_is_missing_and_workers_make_it(tmp_path, whole):
    out = tmp_path / "out"
    write(out, PLAN)
    stopped = []

    def stop():
        if len(made(out)) >= 2:
            stopped.append(True)
            raise UserError("enough")

    with pytest.raises(UserError, match="enough"):
        write(out, worker(2), on_make=stop)
    before = made(out)
    with pytest.raises(UserError) as error:
        write(out, FINISH)
    missing = [n for n in range(7) if n not in before]
    assert f"{len(missing)} of 7 shards are missing: " in str(error.value)
    assert made(out) == before
    write(out, worker(0))
    (out / "images" / "005.bin").write_bytes(b"flipped")
    with pytest.raises(
        UserError, match=r"1 of 7 shards are missing: 1 \(1: images/005.bin differs from its sha256\)"
    ):
        write(out, FINISH)
    write(out, worker(0))
    write(out, FINISH)
    assert tree(out) == whole


def test_a_second_plan_keeps_the_first_and_another_one_is_refused(tmp_path, whole):
    out = tmp_path / "out"
    write(out, PLAN)
    plan = (out / ".claims" / "plan.json").read_bytes()
    with pytest.raises(UserError, match=r"holds another job, these differ: settings\.model"):
        write(out, PLAN, model="xyz")
    write(out, worker(0))
    assert "was planned before: 0 of 7 shards are to be made" in str(write(out, PLAN))
    assert (out / ".claims" / "plan.json").read_bytes() == plan
    with pytest.raises(UserError, match=r"holds another job, these differ: settings\.model"):
        write(out, worker(0), model="xyz")
    write(out, FINISH)
    assert tree(out) == whole


def test_one_command_ends_what_was_planned(tmp_path, whole):
    out = tmp_path / "out"
    write(out, PLAN)
    write(out)
    assert tree(out) == whole


def test_two_plans_at_once_and_a_finish_beside_a_worker_are_refused(tmp_path):
    out = tmp_path / "out"
    write(out, PLAN)
    tried = []

    def meddle():
        if not tried:
            tried.append(True)
            for step in (PLAN, FINISH, None):
                with pytest.raises(UserError, match="another process is writing there"):
                    write(out, step)

    assert write(out, worker(0), on_make=meddle).written == ITEMS
    assert tried


def test_a_worker_of_another_version_is_refused(tmp_path, monkeypatch):
    out = tmp_path / "out"
    write(out, PLAN)
    monkeypatch.setattr(workers, "__version__", "99.1")
    with pytest.raises(UserError, match=r"was planned by reposer .*, and this is 99\.1: install one version"):
        write(out, worker(0))
    write(out, PLAN)
    assert write(out, worker(0)).written == ITEMS


def test_shards_of_another_plan_are_named_and_made_again(tmp_path, whole):
    out, other = tmp_path / "out", tmp_path / "other"
    write(other, file=lambda item: small_file(item + 1))
    write(out, PLAN)
    write(out, worker(0))
    shutil.copytree(other / "images", out / "images", dirs_exist_ok=True)
    for name in ("part-00002.parquet", "_part-00002.sha256"):
        shutil.copy(other / "manifest" / name, out / "manifest" / name)
    with pytest.raises(
        UserError, match=r"2: part-00002\.parquet is of another plan: it names other pictures"
    ):
        write(out, FINISH)
    write(out, worker(0))
    (out / "images" / "027.bin").unlink()
    write(out, FINISH)
    assert tree(out) == whole


def test_a_plan_that_vanishes_stops_its_workers(tmp_path):
    out = tmp_path / "out"
    write(out, PLAN)
    with pytest.raises(UserError, match="was finished, or planned anew, while this worker worked"):
        write(out, worker(0), on_make=lambda: shutil.rmtree(out / ".claims", ignore_errors=True))


@pytest.mark.parametrize(
    "content", [b"{}", b'{"id": "../x", "version": "1", "lease": 9}', b"[", b'{"id": 3}']
)
def test_a_damaged_plan_is_one_clear_line(tmp_path, content):
    out = tmp_path / "out"
    write(out, PLAN)
    (out / ".claims" / "plan.json").write_bytes(content)
    with pytest.raises(UserError, match=r"plan\.json: is no"):
        write(out, worker(0))


@pytest.mark.parametrize("text", ["7/7", "8/7", "0/0", "-1/7", "1", "a/b", "1/2/3", "", "1.5/2", "٣/7"])
def test_shard_numbers_out_of_range_are_refused(text):
    with pytest.raises(UserError, match=r"--shard .*: is (out of range|no shard)"):
        Step("work", parse_shard(text))


def test_where_to_begin_is_what_the_scheduler_says():
    array = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "7"}
    assert scheduled_shard(array) == (3, 7)
    assert scheduled_shard(array | {"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}) == (7, 14)
    assert scheduled_shard(array | {"SLURM_ARRAY_TASK_ID": "70"}) == (0, 7)  # of --array=64-70
    assert scheduled_shard({"RANK": "1", "WORLD_SIZE": "4"}) == (1, 4)
    assert scheduled_shard({"JOB_COMPLETION_INDEX": "5"}) == (5, 6)
    assert scheduled_shard({"RANK": "x"}) is None


@pytest.mark.parametrize("text", ["\u00b2", "\u0663", "9" * 5000, "9" * 10, "-1", " 1", "1.0", "", "x"])
def test_a_scheduler_that_says_no_number_is_passed_over(text):
    for index, count in (
        ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"),
        ("SLURM_PROCID", "SLURM_NTASKS"),
        ("RANK", "WORLD_SIZE"),
    ):
        for environment in ({index: text, count: "2"}, {index: "1", count: text}, {index: text, count: text}):
            assert scheduled_shard(environment) is None
    assert scheduled_shard({"JOB_COMPLETION_INDEX": text}) is None


# ---- claims


def test_a_silent_worker_of_another_machine_is_overtaken_and_cannot_commit(tmp_path, whole, monkeypatch):
    """It stops in its first shard for longer than the lease; meanwhile this machine does all."""
    out = tmp_path / "out"
    write(out, PLAN)

    def elsewhere():
        monkeypatch.setattr(claims, "_this_machine", lambda: "elsewhere")
        stop_once = iter([True])

        def stop():
            if next(stop_once, False):
                os.kill(os.getpid(), signal.SIGSTOP)

        report = write(out, worker(0), on_make=stop)
        assert report.written == 0

    child = fork(elsewhere)
    os.waitpid(child, os.WUNTRACED)
    assert write(out, worker(3)).written == ITEMS
    os.kill(child, signal.SIGCONT)
    assert not killed(child)
    write(out, FINISH)
    assert tree(out) == whole


@pytest.mark.parametrize("hours", [1, pytest.param(-1, marks=pytest.mark.slow)])
def test_clocks_do_not_matter(tmp_path, monkeypatch, hours):
    """A living worker of another machine keeps its shard whatever the clocks say, and a dead one loses it."""
    out = tmp_path / "out"
    write(out, PLAN)
    real = time.time

    def skewed():
        monkeypatch.setattr(claims, "_this_machine", lambda: "elsewhere")
        monkeypatch.setattr(time, "time", lambda: real() + 3600 * hours)

    def slow():
        skewed()
        write(out, worker(0), on_make=lambda: time.sleep(0.2))

    def date_claims():
        for path in (out / ".claims").glob("*/*"):
            os.utime(path, (real() + 3600 * hours,) * 2)

    child = fork(slow)
    wait_until(lambda: list((out / ".claims").glob("*/00000.0")))
    date_claims()
    report = write(out, worker(1))
    assert report.written < ITEMS, "what the slow one holds is left to it"
    assert not killed(child)

    os.unlink(out / "manifest" / "_part-00006.sha256")
    other = fork(lambda: (skewed(), write(out, worker(0), on_make=lambda: os.kill(os.getpid(), 9))))
    assert killed(other)
    date_claims()
    assert write(out, worker(1)).written == 3
    write(out, FINISH)


def held(out):
    return claims.Claims(out, claims.Plan.of(out))


def test_two_claims_of_a_shard_never_both_commit(tmp_path):
    """Whatever the moment at which the first one stops: before, in or after its commit."""
    for moment, first_commits in (("claimed", False), ("begun", False), ("sealed", True)):
        out = tmp_path / moment
        write(out, PLAN)
        seal = out / "manifest" / "_part-00000.sha256"
        one, two = held(out), held(out)
        first = one._take(0, 0)
        if moment != "claimed":
            first.begin_commit()
        if moment == "sealed":
            first.seal(seal, b"first\n")
        second = two._take(0, 1)
        assert (second is None) == first_commits
        if moment == "claimed":
            with pytest.raises(claims.ClaimLostError):
                first.begin_commit()
        elif moment == "begun":
            with pytest.raises(claims.ClaimLostError):
                first.seal(seal, b"first\n")
        if second is not None:
            second.begin_commit()
            second.seal(seal, b"second\n")
        assert seal.read_bytes() == (b"first\n" if first_commits else b"second\n")


def test_no_descriptor_stays_open_however_a_commit_ends(tmp_path):
    """50 shards: committed, lost before the commit, lost in its midst, or given back within it."""
    write(tmp_path, PLAN, items=50, shard=1)

    def seal(number):
        return tmp_path / "manifest" / f"_part-{number:05d}.sha256"

    before = len(os.listdir("/proc/self/fd"))
    with held(tmp_path) as one, held(tmp_path) as two:
        for number in range(50):
            claim, ending = one._take(number, 0), number % 4
            if ending == 1:
                assert two._take(number, 1) is not None
                with pytest.raises(claims.ClaimLostError):
                    claim.begin_commit()
                continue
            claim.begin_commit()
            if ending == 2:
                assert two._take(number, 1) is not None
                with pytest.raises(claims.ClaimLostError):
                    claim.seal(seal(number), b"first\n")
            elif ending == 0:
                claim.seal(seal(number), b"first\n")
        committed = sorted(path.name for path in seal(0).parent.glob("_part*.sha256"))
        assert committed == [seal(number).name for number in range(0, 50, 4)]
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("beats", [0, 3])
def test_a_shard_that_is_given_back_while_others_wait_is_free(tmp_path, monkeypatch, beats):
    write(tmp_path, Step("plan", lease=3600))
    monkeypatch.setattr(claims, "_this_machine", lambda: "elsewhere")
    other = held(tmp_path)
    taken = [other._take(number, 0) for number in (2, 4)]
    monkeypatch.undo()
    looks = iter(range(100))

    def give_back(_seconds):
        if next(looks) == 0:
            os.write(taken[0].descriptor, b"." * beats)
            other._let_go(taken[0])

    monkeypatch.setattr(claims.time, "sleep", give_back)
    here = held(tmp_path)
    assert here.given_up([2, 4]) == [2]
    os.write(taken[1].descriptor, b".")  # this one shows life
    assert here._take(2, 1) is not None
    monkeypatch.setattr(claims.time, "sleep", lambda _: os.write(taken[1].descriptor, b"."))
    assert here.given_up([4]) == []


def test_a_claim_is_made_by_one_of_many(tmp_path):
    write(tmp_path, PLAN)
    everybody = [held(tmp_path) for _ in range(5)]
    taken = [(n, them._take(n, 0)) for n in range(7) for them in everybody]
    assert [n for n, claim in taken if claim is not None] == list(range(7))


def test_a_disk_without_locks_is_said_and_the_work_done(tmp_path, whole, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for out, steps in ((tmp_path / "one", [None]), (tmp_path / "many", [PLAN, worker(0), FINISH])):
        for step in steps:
            report = write(out, step)
            assert "this disk keeps no locks (No locks available): nothing stops a second start" in str(
                report
            )
        left = {name: digest for name, digest in tree(out).items() if name != ".lock"}
        assert left == whole


def test_a_worker_that_fails_gives_its_shards_back(tmp_path):
    out = tmp_path / "out"
    write(out, Step("plan", lease=3600))

    def fail():
        raise UserError("no luck")

    with pytest.raises(UserError, match="no luck"):
        write(out, worker(0), on_make=fail)
    assert write(out, worker(0)).written == ITEMS
    assert json.loads((out / ".claims" / "plan.json").read_text())["lease"] == 3600


def test_the_lock_of_a_folder_is_a_file_that_may_be_written(tmp_path):
    from reposer.storage.lock import LOCK, locked

    with locked(tmp_path) as descriptor:
        assert fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    assert list(tmp_path.iterdir()) == []
    Path(tmp_path / LOCK).write_bytes(b"")  # of a killed one
    with locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
