"""Tasks in processes: every result once, errors with their text, a kill noticed, nobody left behind."""

from __future__ import annotations

import errno
import multiprocessing
import os
from concurrent.futures.process import BrokenProcessPool

import pytest
from worker_tasks import dying, refusing, refusing_to_begin, squares

from reposer.errors import DiskError, UserError
from reposer.jobs.executors import run_in_processes
from reposer.storage.lock import locked, share


def test_every_task_is_done_once_in_other_processes():
    done = list(run_in_processes(squares, range(6), 2))
    assert sorted(square for square, _ in done) == [0, 1, 4, 9, 16, 25]
    assert os.getpid() not in {process for _, process in done}
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("begin", "text"), [(refusing, "nonsense: correct"), (refusing_to_begin, "no model")]
)
def test_a_users_error_comes_with_its_text_although_it_cannot_be_pickled(begin, text):
    with pytest.raises(UserError, match=text):
        list(run_in_processes(begin, [3], 2))
    assert not multiprocessing.active_children()


def test_a_killed_process_is_noticed():
    with pytest.raises(BrokenProcessPool):
        list(run_in_processes(dying, [1, 2], 2))
    assert not multiprocessing.active_children()


def test_one_exclusive_holder_or_many_shared_ones(tmp_path):
    with locked(tmp_path) as lock:
        for shared in (False, True):
            with (
                pytest.raises(UserError, match="another process is writing"),
                locked(tmp_path, shared=shared),
            ):
                pass
        share(tmp_path, lock)
        with locked(tmp_path, shared=True), pytest.raises(UserError), locked(tmp_path):
            pass
    with locked(tmp_path):
        pass


def test_a_lock_that_cannot_be_made_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for folder, told in ((tmp_path / "file", "a part of it is a file"), (tmp_path / "no", "is not there")):
        with pytest.raises(DiskError, match=rf"\.lock: cannot be written: .*{told}"), locked(folder):
            pass

    def fail(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", fail)
    with (
        pytest.raises(DiskError, match=r"\.lock: cannot be written: Permission denied: grant"),
        locked(tmp_path),
    ):
        pass


def test_code_in_the_present_folder_is_not_imported(tmp_path, monkeypatch):
    for name in ("pickle", "runpy", "signal", "threading"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    assert [square for square, _ in run_in_processes(squares, [3], 1)] == [9]
    assert not (tmp_path / "ran").exists()
