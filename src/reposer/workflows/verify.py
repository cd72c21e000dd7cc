"""Is a folder still what was written? Runs, prepared, annotated and generated folders, exported networks.

What needs torch is imported where it is used: torch alone takes 500 MB, and the manifest of a million
generated pictures is to be verified with less.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from reposer.config import foreign_values, read_json
from reposer.errors import UserError
from reposer.generation.augmented_rows import KIND
from reposer.generation.lineage import set_faults
from reposer.generation.pictures import is_marked
from reposer.images import MAX_FILE_BYTES
from reposer.jobs.stages import DONE, STAGES, study_faults
from reposer.storage.manifest import IMAGES, JOB, find_faults, job_settings, list_parts, read_part
from reposer.storage.outputs import seal_faults, sealed_names
from reposer.storage.paths import (
    CHECKPOINTS,
    RefusedFileError,
    contained,
    no_folder,
    printable,
    read_regular,
    require_inside,
)

ANNOTATION = "annotation"  # journal.BOOK


def verify_folder(folder: Path) -> tuple[str, list[str]]:
    """What kind of folder it is, with what was read, and every fault in it; no fault: an empty list.

    Raises:
        UserError: it is none of the folders that this program writes, or a record in it cannot be read.
    """
    with foreign_values(folder):
        return _verified(folder)


def _verified(folder: Path) -> tuple[str, list[str]]:
    if not folder.is_dir():
        raise no_folder(folder, "give a folder that reposer wrote")
    if (folder / JOB).is_file():
        if job_settings(folder).get("kind") == KIND:
            return "augmented set, every file, row, mark and link", set_faults(folder) + _unmarked(folder)
        return "generated images, every file's sha256 and mark", find_faults(folder) + _unmarked(folder)
    if (folder / CHECKPOINTS).is_dir():
        return "training run, every checkpoint's sha256", _run_faults(folder)
    if (folder / "packed").is_dir():
        from reposer.data.preparing.prepare import prepared_faults

        return "prepared data set, every file's sha256", prepared_faults(folder)
    if (folder / STAGES).is_dir():
        return "study, every stage, table and picture", study_faults(folder) + _inner_faults(folder)
    if (folder / ANNOTATION).is_dir():
        from reposer.annotation.faults import annotation_faults, is_annotated

        if is_annotated(folder):
            return "annotated people, every file and row", annotation_faults(folder)
    if (folder / "model.safetensors").is_file():
        from reposer.trained.networks import EMBEDDING, exported_kind

        kind = exported_kind(folder)
        word = "Re-ID network" if kind is EMBEDDING else kind.word
        return f"exported {word}, hash, names and shapes", _export_faults(folder)
    raise UserError(
        f"{printable(folder)}: is no run, no prepared, annotated or generated folder and no exported network",
        "give a folder that reposer wrote",
    )


def _unmarked(folder: Path) -> list[str]:
    """Generated pictures that do not say so themselves, whatever their hashes; missing ones are known."""
    faults = []
    for part in list_parts(folder):
        try:
            rows = read_part(part)
        except UserError:
            continue  # reported before
        names = rows["file"].to_pylist() if "synthetic" in rows.column_names else []
        for name in names:
            if Path(name).suffix not in (".png", ".jpg"):
                continue
            try:
                path = contained(folder, f"{IMAGES}/{name}")
                marked = is_marked(read_regular(path, max_bytes=MAX_FILE_BYTES, root=folder))
            except RefusedFileError:
                continue  # reported before
            if not marked:
                faults.append(f"{IMAGES}/{printable(name)} lacks the mark of a generated picture")
    return faults


def _run_faults(run: Path) -> list[str]:
    """Checkpoints, and what the seal of the last one finds; a run from before there were seals has none."""
    environment = run / "environment.json"
    record = read_json(environment) if environment.is_file() else None
    return _checkpoint_faults(run) + seal_faults(run, record)


def _inner_faults(study: Path) -> list[str]:
    """The runs and sets inside finished stages."""
    inner = [place for name in ("run", "set") for place in sorted((study / STAGES).glob(f"*/{name}"))]
    faults = []
    for place in inner:
        if (place.parent / DONE).is_file():
            outside = _faults(partial(require_inside, place, study))
            faults += outside or _faults(partial(verify_folder, place)) or verify_folder(place)[1]
    return faults


def _export_faults(folder: Path) -> list[str]:
    """What loading finds, and the seal: the card, and an ONNX file, are held against it."""
    from reposer.trained.networks import load_exported

    faults = _faults(partial(load_exported, folder))
    weights = f"{printable(folder / 'model.safetensors')}: "
    reported = any(fault.startswith(weights) for fault in faults)  # once is enough
    faults += [one for one in seal_faults(folder, None) if not (reported and one.startswith(weights))]
    listed = sealed_names(folder)
    strange = sorted(path.name for path in folder.glob("*.onnx") if listed and path.name not in listed)
    return faults + [f"{printable(folder)}/{printable(name)}: is not in the seal" for name in strange]


def _checkpoint_faults(run: Path) -> list[str]:
    from reposer.storage import checkpoint

    found = checkpoint.steps(run / CHECKPOINTS)
    if not found:
        return [f"{run}: has no checkpoint"]
    faults = []
    for _, path in found:
        damage = _faults(partial(checkpoint.verify, path))
        foreign = [] if damage else _line(path, checkpoint.foreign(run, checkpoint.entries(path)))
        faults += damage + foreign
    return faults


def _line(path: Path, fault: str) -> list[str]:
    return [f"{path}: {fault}"] * bool(fault)


def _faults(check: Callable[[], object]) -> list[str]:
    """The error of a check as a list of at most one line."""
    try:
        check()
    except UserError as error:
        return [str(error)]
    return []
