"""Generated pictures decoded once into a memory-mapped array beside their set, again when the set changes.

The folder ``packed_<H>x<W>`` holds images.npy (M, H, W, 3) uint8 in the order of the manifest and cache.json
(the hash of the listed files, the array's sha256). It appears complete or not at all; deleting it is safe.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from reposer.bounded import parse_json
from reposer.config import canonical_json
from reposer.data.generated.files import IMAGES
from reposer.data.preparing.packing import claimed
from reposer.errors import UserError
from reposer.files import (
    atomic_folder,
    clean_up_after_killed,
    disk_faults,
    refuse_foreign,
    require_space,
    sha256_bytes,
    sha256_file,
    write_new,
)
from reposer.images import read_picture, resize
from reposer.paths import contained, unlinked

_ARRAY, _HEADER = "images.npy", "cache.json"
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
    with claimed(folder / IMAGES):  # one process at a time decodes a set
        if not _is_current(cache, key):
            _build(cache, folder / IMAGES, list(zip(names, digests, strict=True)), shape, key)
    array = np.load(cache / _ARRAY, mmap_mode="r", allow_pickle=False)
    return np.asarray(array)  # as in packed.py: np.take on np.memmap itself is slower


def _is_current(cache: Path, key: dict[str, Any]) -> bool:
    """Whether the cache is of these files and undamaged."""
    try:
        header = parse_json((cache / _HEADER).read_bytes())
        return bool(header == key | {"sha256": sha256_file(cache / _ARRAY)})
    except (OSError, ValueError):
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
