"""Processes that render: NumPy holds the interpreter between its many small steps, so threads would gain
nothing.

A worker is ``python -m reposer.data.rendered.workers``. It reads one JSON line for each batch, the keys of
the images, and answers with one JSON line and the raw arrays. Images are pure functions of their keys, so
nothing else has to travel, and it does not matter who renders which.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

Key: TypeAlias = tuple[int, int, int]  # seed, pid, index
Arrays: TypeAlias = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]


class RenderWorkers:
    """A few rendering processes; a context manager that ends them."""

    def __init__(self, count: int) -> None:
        source = str(Path(__file__).parents[3])  # so that a worker finds this very package
        paths = [source, os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "OMP_NUM_THREADS": "1",
        }
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
            )
            for _ in range(count)
        ]
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        for process in self._processes:
            self._idle.put(process)
        self._threads = ThreadPoolExecutor(count)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()  # it holds nothing that is worth an orderly end
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        self._threads.shutdown(cancel_futures=True)

    def render(
        self, batches: Sequence[Sequence[Key]], size: tuple[int, int], samples: int
    ) -> Iterator[Arrays]:
        """images (N, H, W, 3), parsing (N, H, W) and keypoints (N, 18, 2) of each batch, in order.

        Raises:
            RuntimeError: a worker failed; its own message went to the error output.
        """
        ahead: deque[Future[Arrays]] = deque()
        waiting = iter(batches)
        for batch in waiting:
            ahead.append(self._threads.submit(self._ask, batch, size, samples))
            if len(ahead) > 2 * len(self._processes):
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    def _ask(self, batch: Sequence[Key], size: tuple[int, int], samples: int) -> Arrays:
        process = self._idle.get()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            request = {"keys": [list(key) for key in batch], "size": list(size), "samples": samples}
            try:
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
            except OSError as error:
                raise RuntimeError(f"a rendering process ended early: {error}") from error
            n, (height, width) = len(batch), size
            images = _read(process.stdout, n * height * width * 3).reshape(n, height, width, 3)
            parsing = _read(process.stdout, n * height * width).reshape(n, height, width)
            keypoints = _read(process.stdout, n * 18 * 2 * 4).view(np.float32).reshape(n, 18, 2)
            return images, parsing, keypoints
        finally:
            self._idle.put(process)


def _read(stream: IO[bytes], count: int) -> NDArray[np.uint8]:
    data = bytearray(stream.read(count))
    if len(data) != count:
        raise RuntimeError("a rendering process ended early")
    return np.frombuffer(data, np.uint8)


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer requests until there are no more."""
    from reposer.data.rendered.shots import plan_shot, render_shots  # shots.py itself starts workers

    for line in requests:
        request = json.loads(line)
        shots = [plan_shot(*key) for key in request["keys"]]
        batch = render_shots(shots, tuple(request["size"]), samples=request["samples"])
        for array in (batch.images, batch.parsing, batch.keypoints):
            answers.write(array.tobytes())
        answers.flush()


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
