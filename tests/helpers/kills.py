"""Processes of tests that are killed: at a call of choice, or from outside; run and awaited in a fork."""

from __future__ import annotations

import itertools
import os
import signal
import sys


def die_at(call, names):
    """Kill this process just before call number ``call`` of these functions of os."""
    count = itertools.count()

    def deadly(function):
        def wrapper(*args, **kwargs):
            if next(count) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return wrapper

    for name in names:
        setattr(os, name, deadly(getattr(os, name)))


def fork(work):
    """Run ``work`` in a child; returns its process id."""
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
    return child


def killed(child):
    """Wait for a child; whether it was killed. It may not have failed."""
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0, "an attempt failed"
    return False
