"""Where and how a job computes: device, precision, seeds, threads, process group (Accelerate), stop signal.

``torchrun --nproc-per-node N`` and a plain start take the same path: gloo on CPUs, NCCL on GPUs, any number
of nodes. Results are reproducible for one (torch version, device, thread count, world size); all four stand
in :meth:`Runtime.describe`. Two threads give other bits than one.
"""

from __future__ import annotations

import ctypes
import os
import platform
import random
import re
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from reposer.errors import LARGEST, UserError, known
from reposer.storage.paths import printable

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "float32", "bfloat16")
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of glibc's mallopt
_SLOW_BF16 = (
    "precision bfloat16 is emulated here and several times slower than float32; precision=float32 is faster"
)


@dataclass(frozen=True)
class Runtime:
    """Device, precision and process group of this job."""

    accelerator: Accelerator
    device: torch.device
    precision: str  # "float32" or "bfloat16"
    threads: int
    seed: int

    @property
    def rank(self) -> int:
        """Number of this process, 0 to world_size - 1."""
        return int(self.accelerator.process_index)

    @property
    def world_size(self) -> int:
        """Number of processes over all nodes."""
        return int(self.accelerator.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[None]:
        """Context where matrix products and convolutions run in the chosen precision; weights stay float32.

        bfloat16 has float32's range, so there is no gradient scaler (Accelerate's is shared by two optimizers
        and updated by each of them).
        """
        enabled = self.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def is_past(self, deadline: float | None) -> bool:
        """Whether ``time.monotonic()`` has passed the deadline on any process; a collective call."""
        if deadline is None:
            return False
        flag = torch.tensor([float(time.monotonic() > deadline)], device=self.device)
        if self.world_size > 1:
            torch.distributed.all_reduce(flag)
        return bool(flag.item() > 0)

    def describe(self) -> dict[str, Any]:
        """What the bits of a result depend on, for environment.json."""
        gpu = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else None
        return {
            "torch": str(torch.__version__),
            "device": self.device.type,
            "gpu": gpu,
            "precision": self.precision,
            "threads": self.threads,
            "world_size": self.world_size,
            "seed": self.seed,
        }


def setup(
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    seed: int = 0,
    timeout: float = 1800.0,
    *,
    alone: bool = False,
) -> Runtime:
    """Prepare this process: process group, device, threads, global seeds, deterministic algorithms on a CPU.

    Args:
        device: "auto" (a GPU if there is one), "cpu", "cuda" or "mps".
        precision: "float32", "bfloat16", or "auto": bfloat16 where the hardware has it
            (:func:`cpu_has_fast_bf16`, GPUs since Ampere), else float32.
        threads: CPU threads of this process; None keeps torch's own choice (OMP_NUM_THREADS, else the cores).
        seed: for python, numpy and torch on every device; equal on all processes.
        timeout: seconds after which a process gives up waiting for another.
        alone: join no process group, although a launcher started several: each has its own part of a job.

    Raises:
        UserError: an unknown or absent device, an unknown precision, or a launcher's environment that forms
            no group.
    """
    require_device(device)
    known("precision", precision, PRECISIONS)
    group = InitProcessGroupKwargs(timeout=timedelta(seconds=timeout))
    # Accelerate forms no group of processes without GPUs unless it is told that the CPU is wanted
    on_cpu = device == "cpu" or (device == "auto" and not torch.accelerator.is_available())
    with _outside_groups() if alone else _launched():
        accelerator = Accelerator(cpu=on_cpu, mixed_precision="no", kwargs_handlers=[group])
    where = torch.device(accelerator.device)
    if device not in ("auto", where.type):
        raise UserError(
            f"device {device}: this process computes on {where.type}", "set the device in one place only"
        )
    if threads is not None:
        torch.set_num_threads(threads)  # after Accelerate, which sets it too
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries still draw from it
    torch.manual_seed(seed)
    _set_determinism(where)
    if where.type == "cpu":
        _keep_freed_memory()
    return Runtime(accelerator, where, _resolve(precision, where), torch.get_num_threads(), seed)


def require_device(device: str, names: Sequence[str] = DEVICES) -> None:
    """Whether a device has one of these names and is on this machine.

    Raises:
        UserError: it has not, or is not.
    """
    known("device", device, names)
    absent = {"cuda": not torch.cuda.is_available(), "mps": not torch.backends.mps.is_available()}
    if absent.get(device, False):
        others = " or ".join(f"device={name}" for name in ("auto", "cpu") if name in names)
        raise UserError(f"device {device}: there is none on this machine", f"use {others}")


_COUNTED = {  # least and most of what torchrun and its like say; -1: of nobody
    **{"WORLD_SIZE": (1, 2**20), "RANK": (0, 2**20), "LOCAL_WORLD_SIZE": (1, 2**20)},
    **{"LOCAL_RANK": (-1, 2**20), "MASTER_PORT": (1, 65_535)},
}
_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


@contextmanager
def _launched() -> Iterator[None]:
    """Around the forming of a group of processes: what a launcher says of it is looked at before.

    Raises:
        UserError: it says nonsense, for which torch would wait without end; or the group cannot be formed.
    """
    said = {name: _said(name, *bounds) for name, bounds in _COUNTED.items() if name in os.environ}
    several = said.get("WORLD_SIZE", 1) > 1
    advice = "start the processes with torchrun, or unset these variables"
    for rank, size in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        if said.get(rank, -1) >= said.get(size, LARGEST):
            problem = f"{rank}={said[rank]}: is out of range: of {size}={said[size]} the last is"
            raise UserError(f"{problem} {said[size] - 1}", advice)
    if several and not any(name in os.environ for name in _RANKS):
        raise UserError(f"WORLD_SIZE={said['WORLD_SIZE']}: without RANK, the number of this process", advice)
    address = os.environ.get("MASTER_ADDR", "localhost")
    if not (0 < len(address) < 254 and address.isprintable() and " " not in address):
        raise UserError(f"MASTER_ADDR={printable(address[:80])!r}: is no address", advice)
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if not several:
            raise
        reason = printable((str(error).splitlines() or [type(error).__name__])[0][:200])
        problem = f"the group of WORLD_SIZE={said['WORLD_SIZE']} processes cannot be formed: {reason}"
        raise UserError(problem, advice) from error


def _said(name: str, least: int, most: int) -> int:
    text = os.environ[name]
    if not re.fullmatch("-?[0-9]{1,9}", text) or not least <= int(text) <= most:
        problem = f"{name}={printable(text[:40])!r}: is no number of {least} to {most:,}"
        raise UserError(problem, "start the processes with torchrun, or unset it")
    return int(text)


_GROUPS = ("PMI_", "OMPI_", "MV2_")  # of MPI's launchers; torchrun's have no common name


@contextmanager
def _outside_groups() -> Iterator[None]:
    """Hide the launcher from libraries that would join its group; this process takes the launcher's GPU."""
    names = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    names |= {name for name in os.environ if name.startswith(_GROUPS)}
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    local = hidden.get("LOCAL_RANK", "")
    try:
        if local.isascii() and local.isdigit() and torch.cuda.device_count() > 1:
            torch.cuda.set_device(int(local) % torch.cuda.device_count())
        yield
    finally:
        os.environ.update(hidden)


def _keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors for the next ones instead of handing it back to the kernel.

    By default every large tensor is mapped, faulted in page by page and unmapped again: about a tenth of the
    time of a training step on a CPU. The peak grows by some percent. Other C libraries have other ways.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 64 << 20)):
            libc.mallopt(option, value)


def give_freed_memory_back() -> None:
    """Hand what glibc keeps to the kernel, once: where a process waits after its start."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _set_determinism(device: torch.device) -> None:
    """Deterministic algorithms on a CPU; on a GPU the fast ones, among them TensorFloat-32 for float32."""
    # use_deterministic_algorithms does the same, but imports the compiler first: two seconds at every start
    torch.set_deterministic_debug_mode("error" if device.type == "cpu" else "default")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs a pass over every new tensor
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True


def _resolve(precision: str, device: torch.device) -> str:
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and cpu_has_fast_bf16()
    if precision == "auto":
        return "bfloat16" if fast else "float32"
    if precision == "bfloat16" and not fast:
        warnings.warn(_SLOW_BF16, stacklevel=3)
    return precision


def cpu_has_fast_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU multiplies bfloat16 in hardware: avx512_bf16 (since Zen 4, Cooper Lake) or amx_bf16.

    Elsewhere oneDNN emulates it: on an AVX2-only machine a 256-channel 3x3 convolution ran at 32 GFLOP/s in
    bfloat16 and 174 in float32. Read from the kernel's flags; False where there is no such file (not Linux)
    or no such flag.
    """
    try:
        text = cpuinfo.read_text()
    except OSError:
        return False
    flags = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    return "avx512_bf16" in flags or "amx_bf16" in flags


class StopSignal:
    """Turns SIGTERM, SIGUSR1, SIGHUP, Ctrl-C into a flag that the loop polls: finish the step, save, exit.

    Used as a context manager; the earlier handlers come back at its end. Signals after the first change
    nothing, so that they cannot break the save, but a second Ctrl-C interrupts. Python runs signal handlers
    in the main thread only: in another thread nothing is installed and the flag stays down.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._earlier: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT):
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup's wish
                    self._earlier[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._earlier.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number)
        elif number == signal.SIGINT:
            raise KeyboardInterrupt

    def requested(self, runtime: Runtime) -> bool:
        """Whether any process of the group was asked to stop; all get the same answer in the same step.

        A collective call when there are several processes: every process must make it in every step.
        """
        asked = self.received is not None
        if runtime.world_size == 1:
            return asked
        flag = torch.tensor([float(asked)], device=runtime.device)
        torch.distributed.all_reduce(flag)
        return bool(flag.item() > 0)

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, else 143 (128 + SIGTERM), also on the processes that only heard of it."""
        return 130 if self.received is signal.SIGINT else 143
