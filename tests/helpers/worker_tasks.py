"""What jobs/test_workers.py has done in spawned processes, which must be able to import it."""

from __future__ import annotations

import os
import signal

from reposer.storage.paths import RefusedFileError


def squares():
    return lambda number: (number**2, os.getpid())


def refusing():
    def work(number):
        if number == 3:
            raise RefusedFileError("a.onnx", "outputs", "answers nonsense", "correct it")
        return number

    return work


def refusing_to_begin():
    raise RefusedFileError("a.onnx", "unusable", "is no model", "get it again")


def dying():
    return lambda number: os.kill(os.getpid(), signal.SIGKILL)
