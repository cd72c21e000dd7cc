"""A job of generated files without a network, for tests of what writes and checks them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from reposer.generation.batch import PictureJob, WriteReport, write_pictures
from reposer.jobs.executors import in_this_process
from reposer.jobs.shards import Encode, Folder, Put, Rows
from reposer.jobs.workers import Step

File = tuple[str, bytes, dict[str, Any]]  # name in images/, content, the columns after FILE_COLUMNS


@dataclass
class GivenFiles:
    """A Maker: ``file`` says what an item's file is; ``on_make`` is called before each."""

    file: Callable[[int], File]
    on_make: Callable[[], None] = lambda: None

    def read(self, items: range) -> Iterator[range]:
        for item in items:
            yield range(item, item + 1)

    def make(self, batch: range) -> Encode:
        self.on_make()
        return partial(self._encode, batch)

    def _encode(self, batch: range, put: Put) -> Rows:
        files = map(self.file, batch)
        return [{"file": name, "sha256": put(f"images/{name}", data), **row} for name, data, row in files]


def write_given(
    out: Path,
    maker: GivenFiles,
    items: int,
    shard_items: int,
    columns: list[tuple[str, pa.DataType]],
    settings: dict[str, Any],
    environment: dict[str, Any],
    encoders: int = 2,
    step: Step | None = None,
) -> WriteReport:
    """Write them by the rules of reposer.jobs.shards, or do a step of that."""
    folder = Folder(out, out, columns, synthetic=True)
    names = [maker.file(item)[0] for item in range(items)]
    job = PictureJob(folder, settings, environment, items=items, shard_items=shard_items, names=names)
    return write_pictures(job, in_this_process(lambda: maker, encoders), step)
