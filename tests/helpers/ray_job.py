"""A job that processes of Ray can import: files of a few bytes, made slowly."""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow as pa
from given_files import GivenFiles, write_given

from reposer.errors import UserError
from reposer.generation.batch import WriteReport
from reposer.jobs.workers import Step


def small_file(item):
    return f"{item:03d}.bin", bytes([item % 256]) * 3000, {"number": item}


def do(out: Path, items: int, seconds: float, step: Step | None = None) -> WriteReport:
    """A step of it, or all of it in this process."""
    maker = GivenFiles(small_file, lambda: time.sleep(seconds))
    return write_given(out, maker, items, 4, [("number", pa.int64())], {"model": "abc"}, {}, step=step)


def refuse(step: Step) -> WriteReport:
    if step.name == "work":
        raise UserError("no picture", "look again")
    return WriteReport(said="begun")


def note(place: Path) -> None:
    """What shares itself out: a file for each call."""
    (place / f"{time.time_ns()}").write_bytes(b"")
