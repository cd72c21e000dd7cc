"""Stages are made once, by whoever comes first, and survive kills; keys follow everything they depend on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from reposer.errors import UserError
from reposer.jobs.stages import (
    LOGS,
    Stage,
    StageCache,
    in_order,
    make_all,
    progress_line,
    seal_study,
    seconds_left,
    work,
)
from reposer.storage.outputs import seal_faults

HERE = str(Path(__file__).parents[1] / "helpers")
sys.path.insert(0, HERE)  # processes that are started find the plans by their module
from stage_plans import failing_plan, hanging_plan, shared_plan, stage  # noqa: E402


def calls(cache, made):
    return len((cache.folder(made) / "calls").read_text().splitlines())


def test_a_key_follows_kind_inputs_and_needs_and_nothing_else():
    base = stage(x=1)
    assert base.key == stage(x=1, make=lambda folder: ()).key
    assert base.key == Stage("a", "another title", {"x": 1}, lambda folder: ()).key
    others = [
        stage(x=2),
        stage("b", x=1),
        stage(x=1, needs=[stage("n")]),
        stage(x=1, needs=[stage("n", y=1)]),
    ]
    assert len({base.key, *(other.key for other in others)}) == 5


def test_stages_are_shared_ordered_and_made_once(tmp_path):
    data = stage("data")
    left, right = stage("left", [data]), stage("right", [stage("data")])
    end = stage("end", [left, right])
    order = in_order([end, left])
    assert [s.kind for s in order] == ["data", "left", "right", "end"]
    cache = StageCache(tmp_path)
    for _ in range(2):
        work(cache, order)
    assert [calls(cache, s) for s in order] == [1, 1, 1, 1]
    assert seconds_left(cache, order, 1) == 0.0
    assert progress_line(cache, order, 1) == "4 of 4 stages"


def test_a_maker_that_fails_leaves_its_stage_open_and_the_next_call_goes_on(tmp_path):
    first, cache = stage("first"), StageCache(tmp_path)

    def fail(folder):
        raise UserError("no luck")

    with pytest.raises(UserError, match="no luck"):
        work(cache, in_order([stage("second", [first], make=fail)]))
    second = stage("second", [first])
    work(cache, in_order([second]))
    assert calls(cache, first) == 1
    assert cache.file(second, "result").read_text() == "second"


def test_a_changed_file_of_a_stage_is_refused_by_name(tmp_path):
    cache, made = StageCache(tmp_path), stage()
    work(cache, [made])
    (cache.folder(made) / "result").write_text("b")
    with pytest.raises(UserError, match="differs from its sha256"):
        cache.file(made, "result")


def test_three_workers_share_the_stages(tmp_path):
    make_all(tmp_path, shared_plan, workers=3)
    cache, stages = StageCache(tmp_path), shared_plan(tmp_path)
    assert [calls(cache, s) for s in stages] == [1] * 13
    logs = [(tmp_path / LOGS / f"{n}.log").read_text() for n in range(3)]
    assert sum(log.count("part-") for log in logs) == 12


def test_a_worker_that_fails_stops_all_and_says_why(tmp_path):
    with pytest.raises(UserError, match="part 3 is impossible"):
        make_all(tmp_path, failing_plan, workers=2)


def test_a_killed_process_leaves_no_lock(tmp_path):
    code = "import sys; from pathlib import Path; from stage_plans import hanging_plan; "
    code += "from reposer.jobs.stages import make_all; make_all(Path(sys.argv[1]), hanging_plan)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((HERE, os.environ.get("PYTHONPATH", "")))}
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environment)
    (hanging,) = hanging_plan(tmp_path)
    cache = StageCache(tmp_path)
    begun, deadline = cache.folder(hanging) / "begun", time.monotonic() + 60
    while not begun.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not cache.make(hanging)  # the child is at it
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not cache.is_done(hanging)
    make_all(tmp_path, hanging_plan)
    assert calls(cache, hanging) == 1


def test_a_seal_holds_every_table_of_a_study(tmp_path):
    StageCache(tmp_path).make(stage("data"))
    for name in ("study.json", "table.md", "mistakes.md", "mistakes.parquet"):
        (tmp_path / name).write_text("{}")
    seal_study(tmp_path)
    assert seal_faults(tmp_path, None) == []
    for name in ("table.md", "mistakes.md", "mistakes.parquet"):
        (tmp_path / name).write_text("{ }")
        assert [fault for fault in seal_faults(tmp_path, None) if name in fault], name


def test_no_worker_is_refused(tmp_path):
    with pytest.raises(UserError, match="--workers 0"):
        make_all(tmp_path, shared_plan, workers=0)
