"""A foreign ONNX model in a process of its own, with limits: it can neither hang a job nor take all memory.

What a model asks for can depend on what it computes, so no look at the file bounds it. The operating system
does: every call gets memory and processor time by the pixels that it is given; a model that wants more is
ended, and the job says so. The process ends with the pipe to its parent, or with its next limit.

Run as ``python -m reposer.annotation.onnx_session``: the other side. Imports no torch.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import resource
import select
import struct
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_LENGTH = struct.Struct("<Q")
_CALL = struct.Struct("<Qdq")  # number of the output, seconds, bytes (-1: any)
_SOURCE = str(Path(__file__).parents[2])
_LOADING_SECONDS = 120  # of processor time, to read a model and fold its constants
_SECONDS, _SECONDS_PER_PIXEL = 60.0, 1e-3  # a call's: a hundred times what the parsers of people need
_MEMORY, _BYTES_PER_PIXEL = 2 << 30, 4000  # a call's, beyond the model: several times what those need
_SHARE = 0.75  # of the machine's memory is the most in any case
_MAX_ANSWER = 16 << 30
_NO_MEMORY = re.compile(r"bad_alloc|bfc_arena|failed to allocate", re.IGNORECASE)  # onnxruntime's words


class SessionError(Exception):
    """The model cannot be loaded, cannot run, or met a limit; the text says which."""


class Value(NamedTuple):
    """An input or output of a model, as onnxruntime tells it."""

    name: str
    type: str  # "tensor(float)", "tensor(float16)", ...
    shape: list[Any]  # numbers, and names where any number will do


class OnnxSession:
    """A model in onnxruntime, in another process.

    Args:
        data: the ONNX file, checked by onnx_checks.
        threads: of the processor.
        cuda: with the CUDA provider; memory is not limited then, since CUDA reserves addresses at will.

    Attributes:
        inputs, outputs: of the model.

    Raises:
        SessionError: onnxruntime refuses the model, or loading it met a limit.
    """

    def __init__(self, data: bytes, threads: int, cuda: bool = False) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": "1"}
        paths = (_SOURCE, os.environ.get("PYTHONPATH", ""))
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "reposer.annotation.onnx_session", str(threads), str(int(cuda))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        self._end = weakref.finalize(self, _end, self._process)
        self._cuda = cuda
        memory = -1 if cuda else _MEMORY + 8 * len(data)
        answer = json.loads(self._asked(_CALL.pack(0, _LOADING_SECONDS, memory) + data, _LOADING_SECONDS))
        self.inputs = [Value(*value) for value in answer["inputs"]]
        self.outputs = [Value(*value) for value in answer["outputs"]]

    def run(self, output: int, images: NDArray[Any]) -> NDArray[Any]:
        """Output number ``output`` for (B, 3, h, w) float32 or float16 images.

        Raises:
            SessionError: it cannot run, or wants more time or memory than a call may take.
        """
        pixels = images.size // 3
        seconds = _SECONDS + _SECONDS_PER_PIXEL * pixels
        content = io.BytesIO()
        content.write(_CALL.pack(output, seconds, -1 if self._cuda else _MEMORY + _BYTES_PER_PIXEL * pixels))
        np.lib.format.write_array(content, images, allow_pickle=False)
        answer = io.BytesIO(self._asked(content.getbuffer(), seconds))
        values: NDArray[Any] = np.lib.format.read_array(answer, allow_pickle=False)
        return values

    def _asked(self, request: bytes | memoryview, seconds: float) -> bytes:
        """Send, and wait for the answer: by the clock a little longer than the processor time it may take."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            _send(process.stdin, request)
            kind, answer = _answer(process.stdout, time.monotonic() + 3 * seconds + 30)
        except TimeoutError as error:
            self._end()
            raise SessionError(f"a call took more than {3 * seconds + 30:.0f} seconds") from error
        except (OSError, EOFError) as error:
            code = process.wait()
            self._end()
            raise SessionError(_died(code, seconds)) from error
        if kind:
            raise SessionError(answer.decode(errors="replace"))
        return answer


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # what was not sent yet has nowhere to go
                pipe.close()
    process.wait()


def _died(code: int, seconds: float) -> str:
    if -code == 24:  # SIGXCPU
        return f"a call took more than {seconds:.0f} seconds of each processor core"
    return f"its process ended (exit status {code}): a crash, or more memory than a call may take"


def _send(pipe: IO[bytes], data: bytes | memoryview) -> None:
    pipe.write(_LENGTH.pack(len(data)))
    pipe.write(data)
    pipe.flush()


def _answer(pipe: IO[bytes], deadline: float) -> tuple[int, bytes]:
    """0 and the answer, or 1 and an error's text.

    Raises:
        TimeoutError: not there by ``deadline``.
        EOFError: the process has ended.
    """
    (length,) = _LENGTH.unpack(_received(pipe, _LENGTH.size, deadline))
    if not 0 < length <= _MAX_ANSWER:
        raise EOFError
    content = _received(pipe, length, deadline)
    return content[0], content[1:]


def _received(pipe: IO[bytes], length: int, deadline: float) -> bytes:
    content = bytearray()
    while len(content) < length:
        ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError
        part = os.read(pipe.fileno(), min(length - len(content), 1 << 20))
        if not part:
            raise EOFError
        content += part
    return bytes(content)


# ---- the other side


def _limit(threads: int, seconds: float, memory: int) -> None:
    """Let this process go on for so long, with so many more bytes (-1: any)."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu = int(usage.ru_utime + usage.ru_stime + threads * seconds) + 1
    limits = {resource.RLIMIT_CPU: cpu}
    if memory >= 0:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        limits[resource.RLIMIT_AS] = _addresses() + min(memory, int(_SHARE * machine))
    for kind, limit in limits.items():
        hard = resource.getrlimit(kind)[1]
        # a lower limit of the system's stays
        resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _addresses() -> int:
    """Bytes of address space in use now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _request() -> bytes:
    header = sys.stdin.buffer.read(_LENGTH.size)
    if len(header) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(header)
    data = sys.stdin.buffer.read(length)
    if len(data) < length:
        raise EOFError
    return data


def _load(data: bytes, threads: int, cuda: bool) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # what goes wrong is raised
    # between two batches idle threads would hold the cores that reading and encoding need
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.load_model_format", "ONNX")
    providers = ["CUDAExecutionProvider"] * cuda + ["CPUExecutionProvider"]
    return ort.InferenceSession(data, options, providers=providers)


def _respond(out: IO[bytes], work: Any) -> Any:
    """Send what ``work`` returns first, or its error; returns the rest."""
    try:
        answer, rest = work()
    except Exception as error:  # onnxruntime has a class for each of its status codes
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
            reason = "it wants more memory than a call may take"
        answer, rest = b"\1" + reason.encode(errors="replace"), None
    _send(out, answer)
    return rest


def _serve(threads: int, cuda: bool) -> None:
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not stand between the answers
    request = _request()

    def load() -> tuple[bytes, Any]:
        import onnxruntime  # noqa: F401 - its own address space is not the model's

        _, seconds, memory = _CALL.unpack_from(request)
        _limit(threads, seconds, memory)
        session = _load(request[_CALL.size :], threads, cuda)
        described = {
            kind: [(entry.name, entry.type, list(entry.shape)) for entry in entries]
            for kind, entries in (("inputs", session.get_inputs()), ("outputs", session.get_outputs()))
        }
        return b"\0" + json.dumps(described).encode(), session

    session = _respond(out, load)
    if session is None:
        return
    names = [entry.name for entry in session.get_outputs()]
    takes = session.get_inputs()[0].name if session.get_inputs() else ""
    while True:
        call = _request()

        def run(call: bytes = call) -> tuple[bytes, Any]:
            output, seconds, memory = _CALL.unpack_from(call)
            images = np.lib.format.read_array(io.BytesIO(call[_CALL.size :]), allow_pickle=False)
            _limit(threads, seconds, memory)
            (values,) = session.run([names[output]], {takes: images})
            answer = io.BytesIO()
            answer.write(b"\0")
            np.lib.format.write_array(answer, np.asarray(values), allow_pickle=False)
            return answer.getvalue(), None

        _respond(out, run)


if __name__ == "__main__":
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        _serve(int(sys.argv[1]), bool(int(sys.argv[2])))
