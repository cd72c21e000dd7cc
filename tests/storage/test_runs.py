"""runs: one writer, one configuration, lines that survive a kill."""

from __future__ import annotations

import getpass
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from reposer.config import Config, load_config
from reposer.errors import UserError
from reposer.images import decode
from reposer.storage.files import DiskError
from reposer.storage.runs import RunFolder, environment, read_metrics


class Toy(Config):
    lr: float = 1e-3
    steps: int = 10


def test_a_run_folder_holds_what_it_says(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "deep" / "run", Toy(lr=0.5), {"threads": 3}) as run:
        run.log(1, {"loss": 0.25})
    folder = tmp_path / "deep" / "run"
    assert RunFolder.exists(folder)
    assert load_config(Toy, folder / "config.json") == Toy(lr=0.5)
    assert json.loads((folder / "environment.json").read_text())["threads"] == 3
    assert (folder / "metrics.jsonl").read_text() == '{"step": 1, "loss": 0.25}\n'
    assert run.checkpoints == folder / "checkpoints"
    assert run.checkpoints.is_dir()


def test_metrics_are_there_at_once_and_come_back(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, Toy()) as run:
        run.log(
            1,
            {
                "a": 0.1,
                "b": torch.tensor(2.5),
                "c": np.float32(1.5),
                "d": [1, np.int64(2)],
                "e": "ü",
                "f": None,
            },
        )
        run.log(2, {"a": float("nan"), "b": torch.tensor(float("inf"))})
        assert read_metrics(tmp_path) == [
            {"step": 1, "a": 0.1, "b": 2.5, "c": 1.5, "d": [1, 2], "e": "ü", "f": None},
            {"step": 2, "a": None, "b": None},
        ]


def test_rewind_drops_later_lines_and_logging_goes_on(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, Toy()) as run:
        for step in range(5):
            run.log(step, {"x": step / 3})
        run.rewind(2)
        run.log(3, {"x": -1})
    assert [(row["step"], row["x"]) for row in read_metrics(tmp_path)] == [
        (0, 0.0),
        (1, 1 / 3),
        (2, 2 / 3),
        (3, -1),
    ]
    with RunFolder.open(tmp_path, Toy()) as run:
        run.rewind(-1)
    assert read_metrics(tmp_path) == []


@pytest.mark.parametrize("torn", [b"{", b'{"step": 3, "x": 0.', b'{"step": 3}', b"\0" * 50])
def test_a_torn_last_line_is_left_out_and_cut(tmp_path: Path, torn: bytes) -> None:
    with RunFolder.create(tmp_path, Toy()) as run:
        run.log(1, {"x": 1})
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    assert read_metrics(tmp_path) == [{"step": 1, "x": 1}]
    with RunFolder.open(tmp_path, Toy()) as run:
        run.log(2, {"x": 2})
    assert read_metrics(tmp_path) == [{"step": 1, "x": 1}, {"step": 2, "x": 2}]


@pytest.mark.parametrize("line", ["", "nonsense", "[]", "{}", '{"step": "1"}', "\ufffd", "[" * 10**5])
def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl, row 2: .*delete this row"):
        read_metrics(tmp_path)


def test_missing_metrics_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metrics.jsonl: cannot be read: No such file"):
        read_metrics(tmp_path)


def test_a_full_disk_leaves_no_part_of_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    calls = []

    def fill_up(descriptor: int, data: bytes) -> int:
        calls.append(data)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return real(descriptor, data[:5])

    with RunFolder.create(tmp_path, Toy()) as run:
        run.log(1, {"x": 1})
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", fill_up)
            with pytest.raises(DiskError, match=r"metrics.jsonl"):
                run.log(2, {"x": 2})
        run.log(3, {"x": 3})
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 3]


def test_another_configuration_is_refused_with_the_keys_that_differ(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, Toy()).close()
    with pytest.raises(UserError, match=r"another configuration: lr: 0.001 -> 0.1; steps: 10 -> 20"):
        RunFolder.open(tmp_path, Toy(lr=0.1, steps=20))
    RunFolder.open(tmp_path, Toy()).close()


def test_create_refuses_runs_and_foreign_folders(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run", Toy()).close()
    with pytest.raises(UserError, match="holds a run already"):
        RunFolder.create(tmp_path / "run", Toy())
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"is not empty \(holds me.jpg\)"):
        RunFolder.create(tmp_path / "photos", Toy())
    assert [entry.name for entry in (tmp_path / "photos").iterdir()] == ["me.jpg"]
    with pytest.raises(UserError, match="a part of it is a file"):
        RunFolder.create(tmp_path / "photos" / "me.jpg" / "run", Toy())
    with pytest.raises(UserError, match="holds no run"):
        RunFolder.open(tmp_path / "photos", Toy())


def test_a_start_that_was_killed_can_be_repeated(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, Toy())
    run.close()
    (tmp_path / "config.json").rename(tmp_path / ".config.json.tmp-0123abcd")  # killed before the last rename
    assert not RunFolder.exists(tmp_path)
    RunFolder.create(tmp_path, Toy(steps=3)).close()
    assert load_config(Toy, tmp_path / "config.json").steps == 3


HOLD = """
import os, sys, time
from reposer.config import Config
from reposer.storage.runs import RunFolder as Run
class Toy(Config):
    lr: float = 1e-3
    steps: int = 10
run = Run.create(sys.argv[1], Toy())
run.log(1, {"x": 1})
if sys.argv[2] == "fork":
    child = os.fork()  # a data worker that outlives its trainer
    if child:
        print(child, flush=True)
        os.close(1)
    time.sleep(60)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["alone", "fork"])
def test_one_writer_at_a_time_and_a_kill_frees_the_folder(tmp_path: Path, kind: str) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path), kind], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    child = None
    try:
        first = holder.stdout.readline().strip()
        child = int(first) if kind == "fork" else None
        with pytest.raises(UserError, match="another process is writing in this run"):
            RunFolder.open(tmp_path, Toy())
        holder.kill()  # SIGKILL
        holder.wait(timeout=30)
        deadline = time.monotonic() + 30  # the child may not have closed its copy yet
        while True:
            try:
                RunFolder.open(tmp_path, Toy()).close()
                break
            except UserError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        assert read_metrics(tmp_path) == [{"step": 1, "x": 1}]
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
        if child is not None:
            os.kill(child, signal.SIGKILL)


def test_the_lock_holds_within_one_process_too(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, Toy())
    with pytest.raises(UserError, match="another process"):
        RunFolder.open(tmp_path, Toy())
    run.close()
    run.close()
    RunFolder.open(tmp_path, Toy()).close()


def test_samples_are_pictures(tmp_path: Path) -> None:
    image = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
    with RunFolder.create(tmp_path, Toy()) as run:
        path = run.save_sample("step_00000100", image)
    assert path == tmp_path / "samples" / "step_00000100.png"
    assert np.array_equal(decode(path), image)


def test_environment_tells_versions_and_nothing_personal() -> None:
    facts = environment({"threads": 2})
    assert facts["python"] == platform.python_version()
    assert facts["packages"]["torch"] == torch.__version__.split("+")[0]
    assert facts["packages"]["numpy"] == np.__version__
    assert facts["threads"] == 2
    assert facts["processor"]
    text = json.dumps(facts)
    assert str(Path.home()) not in text
    assert platform.node() not in text
    assert getpass.getuser() not in [word.strip('",{}:') for word in text.split()]


def test_the_git_revision_is_that_of_the_source() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("no git checkout")
    assert environment({})["git"].removesuffix("+changes") == done.stdout.strip()
