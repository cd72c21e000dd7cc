"""Generated people ready for training: the pictures of a generated set, checked against the real set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from reposer.config import canonical_json
from reposer.data.packed import PackedPeople
from reposer.data.synthetic.checks import RealSet, check, complete
from reposer.errors import UserError
from reposer.images import read_picture, resize
from reposer.storage.bounded import parse_json
from reposer.storage.files import (
    atomic_folder,
    clean_up_after_killed,
    disk_faults,
    refuse_foreign,
    require_space,
    sha256_bytes,
    sha256_file,
    write_new,
)
from reposer.storage.lock import locked
from reposer.storage.manifest import IMAGES, job_settings, read_rows
from reposer.storage.paths import RefusedFileError, contained, read_regular, unlinked

# ---- Generated pictures decoded once into a memory-mapped array beside their set, again when the set
# changes.
#
# The folder ``packed_<H>x<W>`` holds images.npy (M, H, W, 3) uint8 in the order of the manifest and
# cache.json (the hash of the listed files, the array's sha256). It appears complete or not at all; deleting
# it is safe.

_ARRAY, _HEADER = "images.npy", "cache.json"
_MAX_HEADER_BYTES = 2**24
_CHUNK = 256  # pictures decoded at once; bounds memory
_THREADS = 4  # Pillow decodes outside the GIL


def files_hash(names: Sequence[str], digests: Sequence[str]) -> str:
    """Hexadecimal sha256 over the names and contents of the pictures, in their order."""
    return sha256_bytes(canonical_json([list(names), list(digests)]))


def decoded(
    folder: Path, names: Sequence[str], digests: Sequence[str], size: tuple[int, int]
) -> NDArray[np.uint8]:
    """(M, H, W, 3) uint8 RGB of ``folder``/images/<name>, memory-mapped; resized where their size differs.

    Each file is compared with its sha256 when it is decoded, the array with its own at every call.

    Args:
        folder: of the generated set.
        names: M file names.
        digests: M sha256 of the files.
        size: (H, W).

    Raises:
        UserError: a picture is missing, changed or cannot be decoded, or the disk refuses.
    """
    cache = unlinked(folder, f"packed_{size[0]}x{size[1]}")
    for name in (_ARRAY, _HEADER):
        unlinked(cache, name)
    shape = (len(names), *size, 3)
    key = {"files": files_hash(names, digests), "shape": list(shape)}
    with locked(folder / IMAGES, wait=True):  # one process at a time decodes a set
        if not _is_current(cache, key):
            _build(cache, folder / IMAGES, list(zip(names, digests, strict=True)), shape, key)
    array = np.load(cache / _ARRAY, mmap_mode="r", allow_pickle=False)
    return np.asarray(array)  # as in data/packed.py: np.take on np.memmap itself is slower


def _is_current(cache: Path, key: dict[str, Any]) -> bool:
    """Whether the cache is of these files and undamaged."""
    try:
        header = parse_json(read_regular(cache / _HEADER, max_bytes=_MAX_HEADER_BYTES))
        return bool(header == key | {"sha256": sha256_file(cache / _ARRAY)})
    except (RefusedFileError, ValueError):
        return False


def _build(
    cache: Path, images: Path, files: list[tuple[str, str]], shape: tuple[int, ...], key: dict[str, Any]
) -> None:
    require_space(cache.parent, int(np.prod(shape)))
    clean_up_after_killed(cache, always=True)
    size = (shape[1], shape[2])
    with atomic_folder(cache, _refuse_foreign) as new:
        # Not np.memmap: on a full disk a write into a map kills the process (SIGBUS).
        with disk_faults(cache), (new / _ARRAY).open("xb") as array, ThreadPoolExecutor(_THREADS) as pool:
            np.lib.format.write_array_header_1_0(
                array, {"descr": "|u1", "fortran_order": False, "shape": shape}
            )
            for chunk in _chunks(files):
                for pixels in pool.map(lambda file: _read(images, file, size), chunk):
                    array.write(pixels.tobytes())
        write_new(new / _HEADER, canonical_json(key | {"sha256": sha256_file(new / _ARRAY)}))


def _refuse_foreign(cache: Path) -> None:
    refuse_foreign(cache, lambda name: name in (_ARRAY, _HEADER), "decoded pictures")


def _chunks(files: list[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    for start in range(0, len(files), _CHUNK):
        yield files[start : start + _CHUNK]


def _read(images: Path, file: tuple[str, str], size: tuple[int, int]) -> NDArray[np.uint8]:
    name, digest = file
    picture = read_picture(contained(images, name), images)
    if picture.sha256 != digest:
        raise UserError(f"{images}/{name}: differs from its sha256 in the manifest", "generate the set again")
    pixels = torch.from_numpy(picture.pixels).permute(2, 0, 1)[None]
    return resize(pixels, size)[0].permute(1, 2, 0).contiguous().numpy()


@dataclass(frozen=True, slots=True)
class GeneratedPeople:
    """M generated pictures, those that a filter dropped among them."""

    folder: Path
    images: NDArray[np.uint8]  # (M, H, W, 3) RGB at the size of the real set, memory-mapped
    pids: NDArray[np.int64]  # (M,) who the picture shows: its source's
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
            UserError: unfinished or damaged, or a row that must not be trained on (see checks.py).
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
