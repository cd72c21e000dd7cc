"""The list of an augmented set's real images, ``real.parquet``, and the check of ``real/`` against it.

The list stands there even when the images do not: it says who was trained on, so that every generated row
can be held against it without the data set. Imports no torch.
"""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa

from reposer.data.generated.files import read_part
from reposer.data.generated.names import collisions
from reposer.errors import UserError
from reposer.files import sha256_file
from reposer.paths import contained

REAL, REAL_ROWS = "real", "real.parquet"
COLUMNS = (("pid", pa.int64()), ("camid", pa.int64()))  # after file and sha256
SOURCE = ("source_sha256", pa.string())  # last, where a copy lost its metadata: of the image it was made of


def real_faults(out: Path, how: str) -> list[str]:
    """Everything in ``real/`` and its list that is not as it was written, a line each."""
    try:
        rows = read_part(out / REAL_ROWS)
    except UserError as error:
        return [str(error)]
    wanted = ["file", "sha256", *(name for name, _ in COLUMNS)]
    if rows.schema.names not in (wanted, [*wanted, SOURCE[0]]):
        return [f"{REAL_ROWS}: its columns are not those of a list of real images"]
    names = rows["file"].to_pylist()
    faults = [f"{REAL_ROWS}: {name} is listed twice" for name in collisions(names)]
    folder = contained(out, REAL)
    found = {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
    if how == "none":
        return faults + [f"{REAL}/{name} does not belong to the set" for name in sorted(found)]
    for name, digest in zip(names, rows["sha256"].to_pylist(), strict=True):
        place = contained(out, f"{REAL}/{name}")
        if "/" in name or name not in found or not place.is_file():
            faults.append(f"{REAL}/{name} is missing")
        elif sha256_file(place) != digest:
            faults.append(f"{REAL}/{name} differs from its sha256")
    return faults + [f"{REAL}/{name} is in no list" for name in sorted(found - set(names))]
