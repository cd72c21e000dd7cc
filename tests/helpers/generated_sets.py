"""A small finished set of generated pictures on disk: mirrored people, donor is the next image."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from reposer.data.packed import PackedPeople
from reposer.generation.pictures import encode_marked
from reposer.storage.files import sha256_bytes
from reposer.storage.manifest import IMAGES, JOB, MANIFEST, SCHEMA_VERSION, part_path, write_part

Change = Callable[[list[dict[str, Any]]], None]
_KINDS = {bool: pa.bool_(), int: pa.int64(), str: pa.string()}


def write_set(
    folder: Path,
    people: PackedPeople,
    *,
    change: Change | None = None,
    size_factor: int = 1,
    settings: dict[str, Any] | None = None,
    splits: tuple[str, ...] = ("train",),
) -> Path:
    """One picture for each image of ``splits``; ``change`` edits the rows before they are written."""
    rows = []
    used = np.flatnonzero(np.isin(people.splits, splits) & (people.pids > 0)).tolist()
    (folder / IMAGES).mkdir(parents=True)
    (folder / MANIFEST).mkdir()
    for number, source in enumerate(used):
        donor = used[(number + 1) % len(used)]
        name = f"{people.names[source].split('.')[0]}_g01.png"
        pixels = np.repeat(np.repeat(people.images[source][:, ::-1], size_factor, 0), size_factor, 1)
        data = encode_marked(np.ascontiguousarray(pixels), "png")
        (folder / IMAGES / name).write_bytes(data)
        row: dict[str, Any] = {"file": name, "sha256": sha256_bytes(data)}
        for side, i in (("source", source), ("donor", donor)):
            row |= {side: people.names[i], f"{side}_sha256": people.sha256[i]}
            row |= {f"{side}_pid": int(people.pids[i]), f"{side}_camid": int(people.camids[i])}
        row |= {"pid": row["source_pid"], "camid": row["source_camid"], "copy": 1, "kept": True}
        rows.append(row | {"trained_on": people.identity_hash("train"), "synthetic": True})
    if change is not None:
        change(rows)
    write_part(part_path(folder, 0), rows, [(n, _KINDS[type(v)]) for n, v in rows[0].items()][2:])
    job = {"schema_version": SCHEMA_VERSION, "items": len(rows), "shard_items": len(rows)}
    job |= {"settings": settings or {}}
    (folder / JOB).write_text(json.dumps(job))
    return folder
