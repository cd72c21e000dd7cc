"""Work on images side by side: so many threads, each of which computes alone.

PyTorch splits every single operation among its threads. On images of 128 x 64 the threads then wait for each
other for longer than they work, and burn processor time doing so: two of them take four times that of one.
Threads that take an image, or some, from beginning to end never wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock, Thread
from typing import TypeVar

import torch

_Given = TypeVar("_Given")
_Made = TypeVar("_Made")
_starting = Lock()


class Lanes:
    """Threads with one thread of PyTorch's each.

    Args:
        count: of them; None: as many as PyTorch has.
    """

    def __init__(self, count: int | None = None) -> None:
        self.count = count or torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self.count, initializer=_alone)

    def map(self, work: Callable[[_Given], _Made], given: Iterable[_Given]) -> list[_Made]:
        """What ``work`` makes of each, in their order; it must not call this itself."""
        return list(self._pool.map(work, given))


def _alone() -> None:
    """Compute with one thread in this thread; PyTorch's number, which threads begin with, stays as it was."""
    with _starting:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        later = Thread(target=torch.set_num_threads, args=(before,))
        later.start()
        later.join()
