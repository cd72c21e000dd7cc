"""Is a folder still what was written? Runs, prepared, annotated and generated folders, exported networks.

What needs torch is imported where it is used: torch alone takes 500 MB, and the manifest of a million
generated pictures is to be verified with less.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from reposer.config import read_json
from reposer.data.generated.files import JOB, find_faults
from reposer.errors import UserError
from reposer.generation.augmented_rows import KIND
from reposer.generation.lineage import set_faults

ANNOTATION = "annotation"  # journal.BOOK


def verify_folder(folder: Path) -> tuple[str, list[str]]:
    """What kind of folder it is, with what was read, and every fault in it; no fault: an empty list.

    Raises:
        UserError: it is none of the folders that this program writes.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder", "give a folder that reposer wrote")
    if (folder / JOB).is_file():
        if read_json(folder / JOB).get("settings", {}).get("kind") == KIND:
            return "augmented set, every file, row and link", set_faults(folder)
        return "generated images, every file's sha256", find_faults(folder)
    if (folder / "checkpoints").is_dir():
        return "training run, every checkpoint's sha256", _checkpoint_faults(folder)
    if (folder / "packed").is_dir():
        return "prepared data set, every array's sha256", _faults(partial(_verify_packed, folder))
    if (folder / ANNOTATION).is_dir():
        from reposer.annotation.faults import annotation_faults, is_annotated

        if is_annotated(folder):
            return "annotated people, every file and row", annotation_faults(folder)
    if (folder / "model.safetensors").is_file():
        if "embedding" in read_json(folder / "config.json"):
            kind = "exported Re-ID network, hash, names and shapes"
            return kind, _faults(partial(_load_embedding, folder))
        return "exported generator, hash, names and shapes", _faults(partial(_load_generator, folder))
    raise UserError(
        f"{folder}: is no run, no prepared, annotated or generated folder and no exported network",
        "give a folder that reposer wrote",
    )


def _checkpoint_faults(run: Path) -> list[str]:
    from reposer import checkpoint

    found = checkpoint.steps(run / "checkpoints")
    if not found:
        return [f"{run}: has no checkpoint"]
    return [fault for _, path in found for fault in _faults(partial(checkpoint.verify, path))]


def _verify_packed(folder: Path) -> None:
    from reposer.data.packed import PackedPeople
    from reposer.data.preparing.prepare import PACKED

    PackedPeople.open(folder / PACKED).verify()


def _load_generator(folder: Path) -> None:
    from reposer.generation.export import load_generator

    load_generator(folder)


def _load_embedding(folder: Path) -> None:
    from reposer.models.embedding import Embedding

    Embedding.from_pretrained(folder)


def _faults(check: Callable[[], object]) -> list[str]:
    """The error of a check as a list of at most one line."""
    try:
        check()
    except UserError as error:
        return [str(error)]
    return []
