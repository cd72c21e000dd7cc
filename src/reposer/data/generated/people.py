"""Generated people ready for training: the pictures of a generated set, checked against the real set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from reposer.data.generated.cache import decoded, files_hash
from reposer.data.generated.checks import RealSet, check, complete
from reposer.data.generated.files import job_settings, read_rows
from reposer.data.packed import PackedPeople
from reposer.errors import UserError


@dataclass(frozen=True, slots=True)
class GeneratedPeople:
    """M generated pictures, those that a filter dropped among them."""

    folder: Path
    images: NDArray[np.uint8]  # (M, H, W, 3) RGB at the size of the real set, memory-mapped
    pids: NDArray[np.int64]  # (M,) whom the picture shows: its source's
    camids: NDArray[np.int64]  # (M,)
    names: tuple[str, ...]
    sources: tuple[str, ...]  # names of images
    donors: tuple[str, ...]
    kept: NDArray[np.bool_]  # (M,) False: dropped by a filter
    content_hash: str  # of the pictures and what is said about them here
    factor: int | None  # images afterwards per real one, where the set says so
    notes: tuple[str, ...]  # what a reader of the result should know

    @classmethod
    def open(cls, folder: str | Path, people: PackedPeople, splits: tuple[str, ...] = ("train",)) -> Self:
        """Check a finished set against the real one and map its pictures (decoded at the first call).

        Args:
            folder: written by `augment` or `generate`.
            people: the real data set; all of its splits other than ``splits`` are held out.
            splits: that are trained on.

        Raises:
            UserError: unfinished or damaged, or a row that must not be trained on (see generated_checks.py).
        """
        folder = Path(folder)
        table = complete(read_rows(folder), folder)
        if not table.num_rows:
            raise UserError(f"{folder}: holds no generated picture", "choose another folder")
        notes = check(table, folder, RealSet(people, splits))
        names, digests = table["file"].to_pylist(), table["sha256"].to_pylist()
        pids, camids = table["pid"].to_numpy(), table["camid"].to_numpy()
        kept = np.array(table["kept"].to_pylist(), np.bool_)
        said = [f"{pid} {camid} {keep}" for pid, camid, keep in zip(pids, camids, kept, strict=True)]
        return cls(
            folder=folder,
            images=decoded(folder, names, digests, people.size),
            pids=pids,
            camids=camids,
            names=tuple(names),
            sources=tuple(table["source"].to_pylist()),
            donors=tuple(table["donor"].to_pylist()),
            kept=kept,
            content_hash=files_hash([f"{n} {s}" for n, s in zip(names, said, strict=True)], digests),
            factor=_factor(folder),
            notes=tuple(notes),
        )

    def __len__(self) -> int:
        return len(self.names)


def _factor(folder: Path) -> int | None:
    factor = job_settings(folder).get("factor")
    return factor if isinstance(factor, int) else None
