"""Plans of small stages, in a module of their own: a started process must be able to import them."""

from __future__ import annotations

import time

from reposer.errors import UserError
from reposer.jobs.stages import Stage, in_order


def write(text, folder):
    """A maker that leaves a line for every time it was called."""
    with open(folder / "calls", "a") as file:
        file.write("called\n")
    (folder / "result").write_text(text)
    return ("result",)


def stage(kind="a", needs=(), make=None, **inputs):
    return Stage(kind, f"{kind} {inputs}", inputs, make or (lambda folder: write(kind, folder)), tuple(needs))


def _slow(folder):
    time.sleep(0.05)
    return write("slow", folder)


def shared_plan(root):
    parts = [stage("part", make=_slow, number=n) for n in range(12)]
    return in_order([stage("end", parts)])


def _fail(folder):
    raise UserError("part 3 is impossible", "mend it")


def failing_plan(root):
    return [stage("part", make=_fail if n == 3 else _slow, number=n) for n in range(6)]


def _hang_once(folder):
    if not (folder / "begun").exists():
        (folder / "begun").write_text("")
        time.sleep(60)
    return write("done", folder)


def hanging_plan(root):
    return [stage("hang", make=_hang_once)]
