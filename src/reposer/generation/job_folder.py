"""The folder of a job: is it the same job, which of its shards are done. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reposer.config import differences, read_json
from reposer.data.generated.files import IMAGES, JOB, MANIFEST, file_faults, is_sealed, part_path, read_part
from reposer.errors import UserError
from reposer.files import remove_temporaries, remove_tree, write_atomic
from reposer.paths import made_folder, unlinked
from reposer.seals import MARK, SEAL

STAGING = ".staging"


def open_job(folder: Path, document: Mapping[str, Any], environment: Mapping[str, Any]) -> list[str]:
    """Start the job or recognize it, and clear away what a killed writer left; for who holds the lock alone.

    Args:
        document: what job.json says of the job.
        environment: versions, threads, device; a change is reported, not refused.

    Returns:
        Notes for the user.

    Raises:
        UserError: the folder holds another job, or something else.
    """
    path = folder / JOB
    if not path.exists():
        names = (entry.name for entry in folder.iterdir())
        foreign = sorted(name for name in names if not name.startswith(f".{JOB}.tmp-"))  # a killed start
        if foreign:
            raise UserError(f"{folder}: is not empty (holds {foreign[0]})", "choose a new folder")
        said = {**document, MARK: SEAL, "environment": dict(environment)}
        whole = json.dumps(said, indent=2, sort_keys=True)
        write_atomic(path, (whole + "\n").encode())
    earlier = read_json(path)
    before = earlier.pop("environment", {})
    earlier.pop(MARK, None)
    changed = differences(earlier, document)
    if changed:
        raise UserError(
            f"{folder}: holds another job, these differ: {'; '.join(changed)}",
            "choose another folder, or the settings the job was started with",
        )
    remove_temporaries(folder)
    for name in (IMAGES, MANIFEST):
        made_folder(folder, name)
    remove_temporaries(folder / MANIFEST)
    remove_tree(unlinked(folder, STAGING))  # of a killed writer
    other = differences(before, environment)
    return [f"started in another environment, pictures may differ by 1/255: {'; '.join(other)}"] * bool(other)


def unfinished(folder: Path, shards: Sequence[range], notes: list[str]) -> list[tuple[int, range]]:
    """Number and range of the shards that are not done; adds a note for each that has to be made again."""
    todo = []
    for number, shard in enumerate(shards):
        path = part_path(folder, number)
        if is_sealed(path):
            fault = _shard_fault(folder, path, len(shard))
            if not fault:
                continue
            notes.append(f"shard {number} is made again: {fault}")
        todo.append((number, shard))
    return todo


def _shard_fault(folder: Path, path: Path, items: int) -> str:
    """What is wrong with a shard whose part is there; empty when it is done."""
    try:
        rows = read_part(path)
    except UserError as error:
        return str(error)
    if rows.num_rows != items:
        return f"{path.name} has {rows.num_rows} rows, not {items}"
    return next((f"{IMAGES}/{name} {reason}" for name, reason in file_faults(folder, rows)), "")
