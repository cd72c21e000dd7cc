"""runtime: precision by hardware, seeds, threads, signals."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from reposer import runtime
from reposer.errors import UserError
from reposer.runtime import StopSignal, cpu_has_fast_bf16, setup


@pytest.fixture(autouse=True)
def _global_settings() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def test_setup_on_a_cpu() -> None:
    found = setup("cpu", "float32", threads=1, seed=5)
    assert (found.device.type, found.rank, found.world_size, found.is_main) == ("cpu", 0, 1, True)
    assert found.threads == torch.get_num_threads() == 1
    assert torch.are_deterministic_algorithms_enabled()
    assert found.accelerator.device == found.device
    assert found.describe() == {
        "torch": torch.__version__,
        "device": "cpu",
        "gpu": None,
        "precision": "float32",
        "threads": 1,
        "world_size": 1,
        "seed": 5,
    }


def test_threads_are_set_or_left_alone() -> None:
    for threads in (2, 1):
        assert setup("cpu", "float32", threads=threads).threads == torch.get_num_threads() == threads
    torch.set_num_threads(2)
    assert setup("cpu", "float32").threads == 2


def test_every_global_generator_is_seeded() -> None:
    def draws(seed: int) -> tuple[float, ...]:
        setup("cpu", "float32", seed=seed)
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    assert draws(1) == draws(1)
    assert all(a != b for a, b in zip(draws(1), draws(2), strict=True))
    assert draws(2**40) == draws(2**40)  # numpy takes 32 bits only


def test_nondeterministic_operations_are_refused_on_a_cpu() -> None:
    setup("cpu", "float32")
    values = torch.zeros(3).put_  # documented as nondeterministic without accumulate
    with pytest.raises(RuntimeError, match="deterministic"):
        values(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]), accumulate=False)


@pytest.mark.parametrize(
    ("flags", "fast"),
    [
        ("fpu sse2 avx2 avx512f avx512_bf16", True),
        ("fpu avx2 amx_tile amx_bf16", True),
        ("fpu sse2 avx2 avx512f avx512_vnni", False),
        ("fpu xavx512_bf16x", False),
        ("", False),
    ],
)
def test_fast_bf16_is_read_from_the_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, fast: bool
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nmodel name\t: amx_bf16 avx512_bf16\nflags\t\t: {flags}\nbugs\t\t:\n")
    assert cpu_has_fast_bf16(cpuinfo) is fast
    monkeypatch.setattr(runtime, "cpu_has_fast_bf16", lambda: fast)
    assert setup("cpu", "auto").precision == ("bfloat16" if fast else "float32")


def test_no_cpuinfo_means_no_fast_bf16(tmp_path: Path) -> None:
    assert cpu_has_fast_bf16(tmp_path / "absent") is False


def test_asked_for_slow_bf16_works_and_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "cpu_has_fast_bf16", lambda: False)
    with pytest.warns(UserWarning, match="float32 is faster"):
        found = setup("cpu", "bfloat16")
    layer = torch.nn.Linear(3, 3)
    with found.autocast():
        assert layer(torch.ones(1, 3)).dtype == torch.bfloat16
    assert layer.weight.dtype == torch.float32
    with setup("cpu", "float32").autocast():
        assert layer(torch.ones(1, 3)).dtype == torch.float32


@pytest.mark.parametrize(
    ("device", "precision"), [("gpu", "auto"), ("cuda:7", "auto"), ("cpu", "fp16"), ("cpu", "float64")]
)
def test_unknown_choices_are_refused(device: str, precision: str) -> None:
    with pytest.raises(UserError, match="unknown: did you mean"):
        setup(device, precision)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_absent_gpu_is_named() -> None:
    with pytest.raises(UserError, match="device cuda: there is none on this machine"):
        setup("cuda")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGINT, 130)]
)
def test_a_signal_raises_the_flag(number: signal.Signals, code: int) -> None:
    found = setup("cpu", "float32")
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert stop.received is None
        assert not stop.requested(found)
        os.kill(os.getpid(), number)
        assert stop.requested(found)
        assert stop.received is number
        assert stop.exit_code == code
    assert signal.getsignal(number) is before


def test_later_signals_do_not_break_the_save_but_a_second_interrupt_does() -> None:
    with StopSignal() as stop:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1):
            os.kill(os.getpid(), number)
        assert stop.received is signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.exit_code == 143


def test_a_stop_signal_in_another_thread_changes_nothing() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work() -> None:
        with StopSignal() as stop:
            seen.append((signal.getsignal(signal.SIGTERM), stop.received))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, None)]


TWO = """
import os, signal
from reposer.runtime import StopSignal, setup
found = setup("cpu", "float32", threads=1, seed=3)
assert found.world_size == 2 and found.rank == int(os.environ["RANK"]), found
assert found.is_main == (found.rank == 0)
with StopSignal() as stop:
    for step in range(10):
        if step == 4 and found.rank == 1:
            os.kill(os.getpid(), signal.SIGUSR1)  # one process is told
        if stop.requested(found):
            break
found.accelerator.wait_for_everyone()
print(f"rank {found.rank} step {step} exit {stop.exit_code} threads {found.threads}", flush=True)
found.accelerator.end_training()
"""


@pytest.mark.slow
def test_two_processes_stop_in_the_same_step(tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(TWO)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(tmp_path / "two.py")], capture_output=True, text=True, timeout=240, env=environment
    )
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        assert f"rank {rank} step 4 exit 143 threads 1" in done.stdout


@pytest.mark.skipif(torch.accelerator.is_available(), reason="processes compute on this machine's GPUs")
def test_processes_form_a_group_where_the_device_is_left_to_the_program() -> None:
    """What torchrun tells its processes: without a group, each would take the job for its own."""
    code = (
        "from reposer.runtime import setup\n"
        "runtime = setup()\n"
        "print(runtime.rank, runtime.world_size, runtime.device.type)"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    told = [one.communicate(timeout=120)[0].strip() for one in running]
    assert told == ["0 2 cpu", "1 2 cpu"]


def test_a_terminal_that_ends_saves_and_nohup_is_respected():
    earlier = signal.getsignal(signal.SIGHUP)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.received is signal.SIGHUP
            assert stop.exit_code == 143
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.received is None
    finally:
        signal.signal(signal.SIGHUP, earlier)


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"RANK": "abc", "WORLD_SIZE": "2"}, r"RANK='abc': is no number"),
        ({"RANK": "\u00b2", "WORLD_SIZE": "2"}, r"RANK='.*': is no number"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, r"RANK='-1': is no number of 0 to"),
        ({"RANK": "", "WORLD_SIZE": "2"}, r"RANK='': is no number"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, r"WORLD_SIZE='0': is no number of 1 to"),
        ({"RANK": "0", "WORLD_SIZE": "9" * 5000}, r"WORLD_SIZE='9+': is no number"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "x\x1b[31m"}, r"LOCAL_RANK='x.*': is no number"),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "0"},
            "LOCAL_WORLD_SIZE='0'",
        ),
        ({"WORLD_SIZE": "2"}, r"WORLD_SIZE=2: without RANK"),
        ({"RANK": "5", "WORLD_SIZE": "2"}, r"RANK=5: is out of range: of WORLD_SIZE=2 the last is 1"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, r"RANK=2: is out of range"),
        (
            {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "1"},
            r"LOCAL_RANK=1: is out of range: of LOCAL_WORLD_SIZE=1 the last is 0",
        ),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "99999999"},
            r"MASTER_PORT='99999999': is no number",
        ),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "0"},
            r"MASTER_PORT='0': is no number of 1 to 65,535",
        ),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a b"}, r"MASTER_ADDR='a b': is no address"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": ""}, r"MASTER_ADDR='': is no address"),
    ],
)
def test_what_no_launcher_says_is_refused_before_a_group_is_formed(
    environment: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(runtime, "Accelerator", lambda **_: pytest.fail("Accelerate was asked"))
    with pytest.raises(UserError, match=told) as refusal:
        setup("cpu", "float32", threads=1)
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize(
    "environment",
    [{}, {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "-1"}, {"RANK": "0"}, {"WORLD_SIZE": "1"}],
)
def test_one_process_of_a_launcher_needs_no_group(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert setup("cpu", "float32", threads=1).world_size == 1


def test_a_group_that_cannot_be_formed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(**_: object) -> None:
        raise RuntimeError("The server socket has failed to listen\nand a traceback of C++")

    for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(runtime, "Accelerator", refuses)
    with pytest.raises(UserError, match=r"2 processes cannot be formed: The server socket .* listen: start"):
        setup("cpu", "float32", threads=1)
