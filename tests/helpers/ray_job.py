"""A job that processes of Ray can import at once, without PyTorch: files of a few bytes, made slowly."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa

from reposer.errors import UserError
from reposer.jobs.executors import in_this_process
from reposer.jobs.shards import Encode, Folder, Job, Put, Rows, Shard, Work
from reposer.jobs.workers import Step, take_step
from reposer.storage.manifest import read_part
from reposer.storage.paths import made_folder

SHARD = 4


@dataclass(frozen=True)
class SmallFiles(Job):
    unit = "files"
    drift = "files may differ"
    another = ("holds another job", "choose another folder")

    items: int

    def refuse_foreign(self) -> None:
        """Nothing but this job comes here."""

    def planned(self) -> list[Shard]:
        starts = range(0, self.items, SHARD)
        return [Shard(n, range(start, min(start + SHARD, self.items))) for n, start in enumerate(starts)]

    def shards(self, notes: list[str]) -> list[Shard]:
        made_folder(self.folder.root, "images")
        return self.planned()

    def fault(self, part: Path, shard: Shard) -> str:
        return "" if read_part(part).num_rows == len(shard.items) else "another number of rows"

    def again(self, shard: Shard, fault: str) -> str:
        return fault


@dataclass(frozen=True)
class Slowly:
    """A Maker."""

    seconds: float  # for each file

    def read(self, items: range) -> Iterator[range]:
        for item in items:
            yield range(item, item + 1)

    def make(self, batch: range) -> Encode:
        time.sleep(self.seconds)
        return partial(self._encode, batch)

    def _encode(self, batch: range, put: Put) -> Rows:
        names = [f"{item:03d}.bin" for item in batch]
        return [
            {"file": name, "sha256": put(f"images/{name}", bytes([item % 256]) * 3000), "number": item}
            for name, item in zip(names, batch, strict=True)
        ]


def do(out: Path, items: int, seconds: float, step: Step | None = None) -> Work:
    """A step of it, or all of it in this process."""
    folder = Folder(out, out, [("number", pa.int64())], synthetic=True)
    work = Work(items)
    executor = in_this_process(lambda: Slowly(seconds), 1)
    take_step(step or Step(), SmallFiles(folder, {"model": "abc"}, {}, items), executor, work)
    return work


def refuse(step: Step) -> Work:
    if step.name == "work":
        raise UserError("no picture", "look again")
    return Work(said="begun")


def note(place: Path) -> None:
    """What shares itself out: a file for each call."""
    (place / f"{time.time_ns()}").write_bytes(b"")
