"""Forget a person: remove every picture made of or by them from an augmented set. Imports no torch.

A picture derives from two people, its source and its donor; both count. First a note of what is going on is
written, then each part of the manifest and its pictures, then the real images, and the note goes last: after
a kill at any moment the same command finishes, and until then the set is refused. What stays says that people
were removed, and how many pictures, not who.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from reposer.config import foreign_values, read_json
from reposer.data.layouts.market1501 import parse_generated, portable_stem, stem
from reposer.data.records import decide, read_decisions
from reposer.errors import UserError
from reposer.generation.augmented_rows import (
    KIND,
    REAL,
    REAL_COLUMNS,
    REAL_ROWS,
    REAL_SCHEMA,
    SOURCE,
    set_schema,
    write_summary,
)
from reposer.jobs.shards import STAGING
from reposer.storage.files import disk_faults, remove_temporaries, remove_tree, sync_folder, write_atomic
from reposer.storage.lock import locked
from reposer.storage.manifest import (
    IMAGES,
    JOB,
    MANIFEST,
    MAX_PART_BYTES,
    RowSchema,
    checked_names,
    fitted,
    job_settings,
    list_parts,
    read_part,
    seal_job,
    unlisted_pictures,
    write_part,
)
from reposer.storage.paths import delete, leads_to, no_folder, printable, read_regular, unlinked
from reposer.storage.tables import read_table

_COUNTED = ("people", "pictures", "real")
FORGETTING = "forgetting.json"  # the note; names the person, since it is there only while they are
REMOVED = "removed.json"  # counts of people, pictures and real images removed so far
CACHES = "packed_*"  # decoded pictures, kept by trainings; made again when needed
LEFTOVERS = (CACHES, f".{CACHES}", STAGING)  # decoded pictures, and what killed processes left of them


@dataclass(frozen=True, slots=True)
class ForgetReport:
    """What went."""

    folder: Path
    pictures: int  # generated
    real: int
    unlisted: tuple[str, ...] = ()  # files in no list that are still there: who is on them is not known
    networks: tuple[Path, ...] = ()  # trainings on this set, below the folders that were looked through

    def __str__(self) -> str:
        lines = [
            f"{self.folder}: {self.pictures:,} generated pictures and {self.real:,} real images removed",
            "not touched: the data set itself, its prepared folder, exports of this set, and every network"
            " trained on them (the generator too)",
        ]
        lines += [f"not touched: {printable(run)}: was trained on this set" for run in self.networks]
        if self.unlisted:
            shown = ", ".join(map(printable, self.unlisted[:5]))
            lines.append(f"look at {len(self.unlisted)} files that are in no list and stay: {shown}")
        return "\n".join(lines)


def removed_counts(folder: Path) -> dict[str, int]:
    """How many people, pictures and real images were removed from a set so far."""
    if not (folder / REMOVED).exists():
        return {"people": 0, "pictures": 0, "real": 0}
    counts = read_json(folder / REMOVED)
    with foreign_values(folder / REMOVED):
        return {name: _count(counts[name], name) for name in _COUNTED}


def _count(value: Any, name: str) -> int:
    """``value``; raises what :func:`reposer.config.foreign_values` turns into a line of its own."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name} is no whole number of at least 0")
    return value


def refuse_removed(folder: Path) -> None:
    """Refuse to go on with a set that people were removed from: they would come back.

    Raises:
        UserError: somebody was removed, or is being removed.
    """
    if (folder / FORGETTING).exists() or (folder / REMOVED).exists():
        raise UserError(
            f"{folder}: people were removed from this set; going on would make their pictures again",
            "use it as it is, or write a new set of a data set without them",
        )


def forget(folder: str | Path, pid: int, runs: Sequence[Path] = ()) -> ForgetReport:
    """Remove all that derives from a person, as source or as donor, from a finished set.

    Args:
        folder: the set.
        pid: the person.
        runs: folders to look through for trainings on this set, which are reported and not touched.

    Raises:
        UserError: no augmented set, an unfinished or damaged one, nobody of that number in it, another
            process writes there, or another person's removal is not finished.
        DiskError: the disk refuses; the same call goes on.
    """
    folder = Path(folder)
    settings = job_settings(folder)
    if settings.get("kind") != KIND:
        raise UserError(f"{folder}: is no augmented set", "give a folder that augment has written")
    schema = set_schema(folder)
    with locked(folder), disk_faults(folder):
        places = [unlinked(folder, name) for name in (MANIFEST, IMAGES, REAL)]  # else half of it would go
        parts = list_parts(folder)
        for place in (folder, *places):
            if place.is_dir():
                remove_temporaries(place)
        read_decisions(folder)  # is refused before anything goes
        note = _begin(folder, parts, pid, schema)
        for path in parts:
            _clean_part(folder, path, pid, schema)
        _clean_real(folder, pid)
        unlisted = _clean_unlisted(folder, parts, note)
        _clean_decisions(folder, parts)
        for leftover in LEFTOVERS:
            for place in folder.glob(leftover):
                remove_tree(place)
        summary = write_summary(folder)
        before, job = note["removed_before"], read_json(folder / JOB)
        counts = {
            "people": before["people"] + 1,
            "pictures": job["items"] - summary["generated"],
            "real": before["real"] + note["real"],
        }
        _write_json(folder / REMOVED, counts)
        seal_job(folder)
        (folder / FORGETTING).unlink()
        sync_folder(folder)
    pictures = counts["pictures"] - before["pictures"]
    return ForgetReport(folder, pictures, note["real"], unlisted, trained_networks(folder, runs))


def trained_networks(folder: Path, places: Sequence[Path]) -> tuple[Path, ...]:
    """Runs below ``places`` (each a run, or a folder of runs at any depth) whose config.json names this set.

    Raises:
        UserError: a place is no folder.
    """
    found = []
    here = os.path.realpath(folder)
    for place in places:
        if not place.is_dir():
            raise no_folder(place, "give the folder of your runs")
        for path in sorted(place.rglob("config.json")):
            try:
                settings = read_json(path, root=place)
            except UserError:
                continue  # no run of ours
            named = {leads_to(text) for text in _texts(settings) if "/" in text or os.sep in text}
            if here in named:
                found.append(path.parent)
    return tuple(found)


def _texts(value: Any) -> Iterator[str]:
    """Every text in a JSON value."""
    if isinstance(value, str):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(part)


def _check_note(note: dict[str, Any]) -> None:
    """Raises what :func:`reposer.config.foreign_values` turns into a line of its own."""
    for name in ("pid", "real"):
        _count(note[name], name)
    for name in _COUNTED:
        _count(note["removed_before"][name], f"removed_before.{name}")
    if not isinstance(note["stems"], list) or not all(isinstance(text, str) for text in note["stems"]):
        raise TypeError("stems is no list of names")


def _begin(folder: Path, parts: list[Path], pid: int, schema: RowSchema) -> dict[str, Any]:
    """The note of this removal, written or found; every part has been read once before anything goes."""
    path = folder / FORGETTING
    if path.exists():
        note = read_json(path)
        with foreign_values(path):
            _check_note(note)
        if note["pid"] != pid:
            raise UserError(
                f"{folder}: the removal of person {note['pid']} was interrupted", "finish that one first"
            )
        for part in parts:
            _read_unsealed(folder, part, schema)
        _read_unsealed(folder, folder / REAL_ROWS, REAL_SCHEMA)
        return note
    real = read_part(folder / REAL_ROWS, REAL_SCHEMA)
    listed = int(pc.sum(_of(real, "pid", pid)).as_py() or 0)
    derived = sum(int(pc.sum(_derived(read_part(part, schema), pid)).as_py() or 0) for part in parts)
    if not listed and not derived:
        raise UserError(f"{folder}: nobody of pid {pid} is in this set", "check the number")
    names = real.filter(_of(real, "pid", pid))["file"].to_pylist()
    stems = sorted({of(name) for name in names for of in (stem, portable_stem)})
    note = {"pid": pid, "real": listed, "stems": stems, "removed_before": removed_counts(folder)}
    _write_json(path, note)
    return note


def _clean_part(folder: Path, path: Path, pid: int, schema: RowSchema) -> None:
    """Remove the pictures, then their rows: a row may lack its picture for a moment, never the reverse."""
    rows = _read_unsealed(folder, path, schema)
    gone = _derived(rows, pid)
    for name in rows.filter(gone)["file"].to_pylist():
        delete(folder, f"{IMAGES}/{name}")
    sync_folder(folder / IMAGES)
    write_part(path, rows.filter(pc.invert(gone)).to_pylist(), schema.columns)


def _clean_real(folder: Path, pid: int) -> None:
    path = folder / REAL_ROWS
    rows = _read_unsealed(folder, path, REAL_SCHEMA)
    gone = _of(rows, "pid", pid)
    if (folder / REAL).is_dir():
        for name in rows.filter(gone)["file"].to_pylist():
            delete(folder, f"{REAL}/{name}")
        sync_folder(folder / REAL)
    columns = (*REAL_COLUMNS, SOURCE) if SOURCE[0] in rows.column_names else REAL_COLUMNS
    write_part(path, rows.filter(pc.invert(gone)).to_pylist(), columns, synthetic=False)


def _clean_unlisted(folder: Path, parts: list[Path], note: dict[str, Any]) -> tuple[str, ...]:
    """Remove pictures that no list names and whose own name says that they are of the person; returns the
    others, about which nothing is known."""
    stems, left = set(note.get("stems", ())), []
    real = set(read_part(folder / REAL_ROWS)["file"].to_pylist())
    strange = {IMAGES: unlisted_pictures(folder, parts) if (folder / IMAGES).is_dir() else []}
    strange[REAL] = sorted(set(os.listdir(folder / REAL)) - real) if (folder / REAL).is_dir() else []
    for inside, names in strange.items():
        for name in names:
            generated = parse_generated(name)
            if (generated.stem if generated else stem(name)) in stems:
                delete(folder, f"{inside}/{name}")
            else:
                left.append(f"{inside}/{name}")
        if (folder / inside).is_dir():
            sync_folder(folder / inside)
    return tuple(left)


def _clean_decisions(folder: Path, parts: list[Path]) -> None:
    """Forget what was decided about pictures that are gone."""
    if gone := set(read_decisions(folder)):
        for part in parts:
            gone.difference_update(read_part(part)["file"].to_pylist())
        if gone:
            decide(folder, dict.fromkeys(gone))


def _read_unsealed(folder: Path, path: Path, schema: RowSchema) -> pa.Table:
    """A part whose seal may be older: an interrupted removal comes between the two renames."""
    try:
        rows = checked_names(read_table(read_regular(path, max_bytes=MAX_PART_BYTES, root=folder)))
    except (ValueError, UserError, pa.ArrowException) as error:
        raise UserError(f"{path}: is damaged: {str(error).splitlines()[0]}", "write the set again") from error
    return fitted(rows, schema, path)


def _derived(rows: pa.Table, pid: int) -> pa.ChunkedArray:
    return pc.or_(_of(rows, "source_pid", pid), _of(rows, "donor_pid", pid))


def _of(rows: pa.Table, column: str, pid: int) -> pa.ChunkedArray:
    return pc.fill_null(pc.equal(rows[column], pid), False)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    write_atomic(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())
