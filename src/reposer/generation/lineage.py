"""Is an augmented set still what was written, and does every picture come from the person it should?

:func:`set_faults` holds every file against its hash, every row against its file's name, its set's settings
and the list of real images; it reads one part of the manifest at a time: a million rows need little memory.
Imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from reposer.config import foreign_values, read_json
from reposer.data.layouts.market1501 import generated_name, parse_generated, portable_stem
from reposer.data.records import DECISIONS
from reposer.errors import UserError
from reposer.generation.augmented_rows import (
    REAL,
    REAL_ROWS,
    REAL_SCHEMA,
    SOURCE,
    SUMMARY,
    columns_of,
    real_faults,
    summarize,
)
from reposer.generation.forgetting import CACHES, FORGETTING, REMOVED, removed_counts
from reposer.storage.lock import LOCK
from reposer.storage.manifest import (
    DECODING,
    FILE_COLUMNS,
    IMAGES,
    JOB,
    MANIFEST,
    file_faults,
    list_parts,
    names_in,
    read_part,
    seal_path,
)
from reposer.storage.outputs import SEAL, seal_faults

_MOST = 1000  # images per real one that are looked for
_SET_BY_JOB = ("policy", "background", "checkpoint", "trained_on", "seed")  # equal in all rows


def set_faults(folder: str | Path) -> list[str]:
    """Everything in a finished augmented set that is not as it was written, a line each.

    Raises:
        UserError: the folder holds no augmented set, or an unfinished one.
    """
    folder = Path(folder)
    job = read_json(folder / JOB)
    parts, settings = list_parts(folder), job["settings"]
    with foreign_values(folder / JOB):
        _check_settings(settings)
    if not isinstance(settings["factor"], int) or not 2 <= settings["factor"] <= _MOST:
        raise UserError(f"{folder / JOB}: factor is not 2 to {_MOST}", "restore this file")
    if (folder / FORGETTING).exists():
        return [f"{folder}: a removal was interrupted; run `reposer forget` for the same person again"]
    faults = seal_faults(folder, job) + real_faults(folder, settings["real"])
    try:
        real = _Real(read_part(folder / REAL_ROWS, REAL_SCHEMA))
    except UserError:
        return faults  # listed already; nothing can be held against a damaged list
    seen = np.zeros((len(real.stems), settings["factor"]), np.bool_)
    rows = 0
    for path in parts:
        try:
            table = read_part(path)
        except UserError as error:
            faults.append(str(error))
            continue
        rows += table.num_rows
        faults += _part_faults(folder, path.name, table, settings, real, seen)
    faults += _foreign(folder, parts, real, seen, settings)
    expected = job["items"] - removed_counts(folder)["pictures"]
    if rows != expected:
        faults.append(f"{MANIFEST}: {rows:,} rows can be read, not {expected:,}")
    return faults + _summary_faults(folder)


def _check_settings(settings: dict[str, Any]) -> None:
    """Raises what :func:`reposer.config.foreign_values` turns into a line of its own."""
    kinds = dict(columns_of(settings))
    for name in _SET_BY_JOB:
        pa.scalar(settings[name], kinds[name])
    if not isinstance(settings["format"], str) or not settings["format"].strip():
        raise TypeError("format is no text")


class _Real:
    """The list of real images, to look many names up at once."""

    def __init__(self, table: pa.Table) -> None:
        order = pc.sort_indices(table["file"].cast(pa.binary()))
        self._table = table.take(order).combine_chunks()
        self._keys = _bytes(self._table["file"])
        stems = np.array(
            [portable_stem(name).encode() for name in self._table["file"].to_pylist()], np.bytes_
        )
        self._stem_order = np.argsort(stems, kind="stable")
        self.stems = stems[self._stem_order]

    def find(self, names: pa.ChunkedArray) -> NDArray[np.int64]:
        """(M,) positions of names, -1 for one that is not listed."""
        return _find(self._keys, _bytes(names))

    def find_stem(self, wanted: str) -> int:
        """Position of the image with this stem, -1 for none."""
        at = int(_find(self.stems, np.array([wanted.encode("utf-8", "surrogatepass")], np.bytes_))[0])
        return int(self._stem_order[at]) if at >= 0 else -1

    def agrees(self, at: NDArray[np.int64], table: pa.Table, side: str) -> NDArray[np.bool_]:
        """(M,) whether hash, pid and camera of a side of the rows are those of the images at ``at``."""
        here = self._table.take(pa.array(np.maximum(at, 0)))
        same = at >= 0
        for column in ("sha256", "pid", "camid"):
            own = SOURCE[0] if column == "sha256" and SOURCE[0] in here.column_names else column
            equal = pc.fill_null(pc.equal(here[own], table[f"{side}_{column}"]), False)
            same &= np.asarray(equal.to_numpy(), np.bool_)
        return same


def _part_faults(
    folder: Path, part: str, table: pa.Table, settings: dict[str, Any], real: _Real, seen: NDArray[np.bool_]
) -> Iterator[str]:
    """The faults of the files and rows of a part; marks (real image, copy) in ``seen``."""
    expected = pa.schema([*FILE_COLUMNS, *columns_of(settings)])
    if not table.schema.equals(expected):
        yield f"{MANIFEST}/{part}: its columns are not those of an augmented set"
        return
    yield from (f"{IMAGES}/{name} {reason}" for name, reason in file_faults(folder, table))
    at = {side: real.find(table[side]) for side in ("source", "donor")}
    known = {side: real.agrees(at[side], table, side) for side in at} if len(real.stems) else {}
    wrong = _wrong_values(table, settings)
    files, copies = table["file"].to_pylist(), table["copy"].to_pylist()
    sources, file_format = table["source"].to_pylist(), settings["format"].split()[0]
    for row, name in enumerate(files):
        place = f"{MANIFEST}/{part}: row {row + 1}, {name}"
        if wrong[row]:
            yield f"{place}: {wrong[row]}"
        for side in known:
            if not known[side][row]:
                yield f"{place}: its {side} is no real image of this set, or its labels or hash are others"
        number, source = copies[row], int(at["source"][row])
        if number is None or not 0 < number < settings["factor"]:
            yield f"{place}: copy {number} is outside 1 to {settings['factor'] - 1}"
        elif sources[row] is None or name != generated_name(sources[row], number, file_format):
            yield f"{place}: the name is not that of copy {number} of its source"
        elif source >= 0:
            if seen[source, number]:
                yield f"{place}: stands in the manifest twice"
            seen[source, number] = True


def _wrong_values(table: pa.Table, settings: dict[str, Any]) -> list[str]:
    """For each row what disagrees with the settings or within the row; mostly empty."""
    wrong = [""] * table.num_rows

    def check(right: pa.ChunkedArray, text: str) -> None:
        for row in np.flatnonzero(~np.asarray(pc.fill_null(right, False).to_numpy(), np.bool_)).tolist():
            wrong[row] = wrong[row] or text

    for name in _SET_BY_JOB:
        check(
            pc.equal(table[name], pa.scalar(settings[name], table.schema.field(name).type)),
            f"{name} is not that of the set",
        )
    check(pc.equal(table["pid"], table["source_pid"]), "pid is not that of its source")
    side = "donor" if settings.get("camera") == "donor" else "source"
    check(pc.equal(table["camid"], table[f"{side}_camid"]), f"camid is not that of its {side}")
    check(table["synthetic"], "synthetic is not true")
    check(pc.equal(table["kept"], pc.is_null(table["dropped_because"])), "kept and dropped_because disagree")
    return wrong


def _foreign(
    folder: Path, parts: list[Path], real: _Real, seen: NDArray[np.bool_], settings: dict[str, Any]
) -> Iterator[str]:
    """Files that belong to nothing."""
    file_format = settings["format"].split()[0]
    for found in names_in(folder / IMAGES):
        name = parse_generated(found)
        at = real.find_stem(name.stem) if name is not None and name.file_format == file_format else -1
        if name is None or at < 0 or name.copy >= seen.shape[1] or not seen[at, name.copy]:
            yield f"{IMAGES}/{found} is in no readable part of the manifest"
    own = {path.name for path in parts} | {seal_path(path).name for path in parts}
    for extra in sorted({*names_in(folder / MANIFEST)} - own):
        yield f"{MANIFEST}/{extra} does not belong to the manifest"
    own = {JOB, IMAGES, MANIFEST, REAL, REAL_ROWS, seal_path(folder / REAL_ROWS).name, SUMMARY, REMOVED, SEAL}
    own |= {DECISIONS, LOCK, DECODING}
    for extra in sorted({entry.name for entry in os.scandir(folder)} - own):
        if not Path(extra).match(CACHES):
            yield f"{extra} does not belong to the set"


def _summary_faults(folder: Path) -> list[str]:
    try:
        same = read_json(folder / SUMMARY) == summarize(folder)
        return [] if same else [f"{SUMMARY} is not that of this manifest"]
    except UserError as error:
        return [str(error)]


def _bytes(names: pa.ChunkedArray) -> NDArray[np.bytes_]:
    """(M,) UTF-8 names, a null as no name."""
    return np.array([(name or "").encode("utf-8", "surrogatepass") for name in names.to_pylist()], np.bytes_)


def _find(keys: NDArray[np.bytes_], wanted: NDArray[np.bytes_]) -> NDArray[np.int64]:
    """(M,) positions in sorted keys, -1 for none."""
    if not len(keys):
        return np.full(len(wanted), -1, np.int64)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, at, -1)
