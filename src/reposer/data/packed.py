"""Packed people: every image decoded once into memory-mapped arrays; a batch is then one index per field.

A packed folder holds images.npy (N, H, W, 3) uint8, parsing.npy (N, H, W) uint8 LIP-20 with MISSING_LABEL
where there is no map, mask.npy (N, H, W) bool, rows.parquet and packed.json (schema version, size, counts,
hashes). All of them are ordinary files that NumPy and Arrow read without this code.
``data/preparing/packing.py`` writes them.
"""

from __future__ import annotations

import hashlib
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reposer.data.keypoints import Pose
from reposer.data.records import AnnotationError
from reposer.storage.bounded import parse_json
from reposer.storage.files import sha256_bytes, sha256_file
from reposer.storage.paths import RefusedFileError, read_regular, require_inside, require_regular
from reposer.storage.tables import read_table
from reposer.structures import MISSING_LABEL, NUM_JOINTS, MoreSources, PairBatch

if TYPE_CHECKING:
    import torch

SCHEMA_VERSION = 1
ARRAYS = ("images", "parsing", "mask")  # <name>.npy each
ROWS, HEADER = "rows.parquet", "packed.json"
_MAX_HEADER_BYTES, _MAX_ROWS_BYTES = 2**24, 2**32
_AGAIN = "prepare the data set again"
_TOLD_FROM = 1.0  # seconds that a check of the arrays takes
_log = logging.getLogger(__name__)


class PackedPeople:
    """N people ready for training; arrays stay on disk and are paged in as batches ask for them.

    Args:
        folder: a folder written by ``packing.pack``.

    Raises:
        RefusedFileError: it, or a file of it, is a link that leads out of the folder that holds it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        for name in ("", HEADER, ROWS, *(f"{array}.npy" for array in ARRAYS)):
            require_inside(self.folder / name, self.folder.parent)  # somebody else's links lead nowhere
        self.header = _read_header(self.folder)
        height, width = self.header["size"]
        count = self.header["count"]
        self.size: tuple[int, int] = (height, width)
        self.images: NDArray[np.uint8] = self._map("images", (count, height, width, 3))  # (N, H, W, 3) RGB
        self.parsing: NDArray[np.uint8] = self._map("parsing", (count, height, width))  # (N, H, W) LIP-20
        # (N, H, W) True on the person
        self.mask: NDArray[np.bool_] = self._map("mask", (count, height, width))
        rows = self._read_rows()
        self.names: tuple[str, ...] = tuple(rows["name"].to_pylist())
        self.pids: NDArray[np.int64] = rows["pid"].to_numpy()
        self.camids: NDArray[np.int64] = rows["camid"].to_numpy()
        known = "clothes" in rows.column_names  # of data sets that tell a person's outfits apart
        # (N,) number of the outfit, -1 unknown
        self.clothes: NDArray[np.int64] = (
            rows["clothes"].to_numpy() if known else np.full(count, -1, np.int64)
        )
        self.splits: NDArray[np.str_] = np.array(rows["split"].to_pylist(), np.str_)
        self.sha256: tuple[str, ...] = tuple(rows["sha256"].to_pylist())  # of the original image files
        flat = rows["keypoints"].combine_chunks().values.to_numpy(zero_copy_only=False)
        # pixels of the packed size
        self.keypoints: Pose = flat.astype(np.float32).reshape(count, NUM_JOINTS, 2)
        self._index = {name: i for i, name in enumerate(self.names)}

    @classmethod
    def open(cls, folder: str | Path, *, verify: bool = False) -> Self:
        """Open a packed folder.

        Args:
            verify: read every array now, see :meth:`verify`: for a run, which pins the recorded hashes.

        Raises:
            AnnotationError: not a packed folder, another schema version, or a file of the wrong size; or, if
                asked for, one that differs from its hash.
        """
        people = cls(folder)
        if verify:
            people.verify()
        return people

    def __len__(self) -> int:
        return len(self.names)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder,)  # a worker process maps the files again instead of copying them

    def index(self, name: str) -> int:
        """Position of an image; KeyError when it is not here."""
        return self._index[name]

    def name_index(self) -> dict[str, int]:
        """Image name -> position, of all images."""
        return dict(self._index)

    @property
    def content_hash(self) -> str:
        """sha256 over the hashes of all arrays and rows: what a run pins, and finds unchanged or refuses."""
        return str(self.header["content_hash"])

    def identity_hash(self, *splits: str) -> str:
        """sha256 over the sorted pids of some splits: equal when two data sets hold the same people there."""
        return hash_of_people(self.pids[np.isin(self.splits, splits)])

    def images_hash(self, *splits: str) -> str:
        """sha256 over the sorted hashes of the original image files of some splits, at any packed size.

        Two data sets of other people can have the same numbers; they do not have the same files.
        """
        return self.hash_of_rows(np.flatnonzero(np.isin(self.splits, splits)))

    def hash_of_rows(self, rows: NDArray[np.int64]) -> str:
        """The same of some images (N,)."""
        chosen = sorted(self.sha256[row] for row in rows.tolist())
        return hashlib.sha256("\n".join(chosen).encode()).hexdigest()

    def training_facts(self, *splits: str) -> dict[str, str]:
        """What a checkpoint says of the people it was trained on: ``identity_hash`` and ``images_hash``."""
        return {"identity_hash": self.identity_hash(*splits), "images_hash": self.images_hash(*splits)}

    def pair_batch(
        self,
        source_indices: NDArray[np.int64],
        target_indices: NDArray[np.int64],
        more_sources: NDArray[np.int64] | None = None,
    ) -> PairBatch:
        """Images and annotations of B pairs, on the CPU; images are (B, 3, H, W) in channels_last order.

        Args:
            source_indices: (B,).
            target_indices: (B,).
            more_sources: (B, K) further images of the source persons, -1 for none; see
                :mod:`reposer.data.sources`.
        """
        import torch  # here: who only looks into the folder does without

        source = np.asarray(source_indices, np.int64)
        target = np.asarray(target_indices, np.int64)
        return PairBatch(
            source_image=self._image_tensor(source),
            target_image=self._image_tensor(target),
            source_parsing=torch.from_numpy(np.take(self.parsing, source, axis=0)),
            target_parsing=torch.from_numpy(np.take(self.parsing, target, axis=0)),
            source_mask=torch.from_numpy(np.take(self.mask, source, axis=0)),
            target_mask=torch.from_numpy(np.take(self.mask, target, axis=0)),
            source_keypoints=torch.from_numpy(np.take(self.keypoints, source, axis=0)),
            target_keypoints=torch.from_numpy(np.take(self.keypoints, target, axis=0)),
            pids=torch.from_numpy(np.take(self.pids, source)),
            more_sources=None if more_sources is None else self._more_sources(more_sources),
        )

    def _more_sources(self, indices: NDArray[np.int64]) -> MoreSources | None:
        import torch

        known = indices >= 0
        if not known.any():
            return None
        used = known.any(0)
        known, rows = known[:, used], np.maximum(indices[:, used], 0)
        return MoreSources(
            image=torch.from_numpy(np.take(self.images, rows, axis=0)).permute(0, 1, 4, 2, 3),
            parsing=torch.from_numpy(np.take(self.parsing, rows, axis=0)),
            mask=torch.from_numpy(np.take(self.mask, rows, axis=0)),
            keypoints=torch.from_numpy(np.take(self.keypoints, rows, axis=0)),
            known=torch.from_numpy(known),
        )

    def verify(self) -> None:
        """Read every array and compare with the hashes in packed.json.

        Raises:
            AnnotationError: a file differs.
        """
        started, read = time.monotonic(), 0
        for name in (*(f"{array}.npy" for array in ARRAYS), ROWS):
            read += (self.folder / name).stat().st_size
            if sha256_file(self.folder / name) != self.header["sha256"][name]:
                raise AnnotationError(self.folder / name, "sha256", f"differs from {HEADER}", _AGAIN)
        if (seconds := time.monotonic() - started) > _TOLD_FROM:
            _log.info("%s: checked %.1f GB against their sha256, %.0f s", self.folder, read / 1e9, seconds)

    def _read_rows(self) -> pa.Table:
        path = self.folder / ROWS
        try:
            data = read_regular(path, max_bytes=_MAX_ROWS_BYTES)
        except RefusedFileError as error:
            raise AnnotationError(path, "file", f"cannot be read ({error.reason})", _AGAIN) from None
        if sha256_bytes(data) != self.header["sha256"][ROWS]:
            raise AnnotationError(path, "sha256", f"differs from {HEADER}", _AGAIN)
        return read_table(data)

    def _image_tensor(self, indices: NDArray[np.int64]) -> torch.Tensor:
        import torch

        return torch.from_numpy(np.take(self.images, indices, axis=0)).permute(0, 3, 1, 2)

    def _map(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        path = self.folder / f"{name}.npy"
        try:
            require_regular(path)
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (RefusedFileError, OSError, ValueError, EOFError) as error:
            raise AnnotationError(path, "file", f"is damaged or missing ({error})", _AGAIN) from None
        if array.shape != shape:
            raise AnnotationError(path, "shape", f"is {array.shape}, expected {shape}", _AGAIN)
        return np.asarray(array)  # an ndarray view of the map: np.take on np.memmap itself is slower


def by_person(pids: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
    """Places in ``pids`` (N,) of each person, ascending; the persons ascending too."""
    order = np.argsort(pids, kind="stable")
    found, starts = np.unique(pids[order], return_index=True)
    return dict(zip(found.tolist(), np.split(order, starts)[1:], strict=True))


def has_maps(people: PackedPeople, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(N,) whether something is known of the label map of each of the rows (N,)."""
    known = [bool((people.parsing[row] != MISSING_LABEL).any()) for row in rows.tolist()]
    return np.array(known, np.bool_)


def hash_of_people(pids: NDArray[np.int64]) -> str:
    """sha256 over the sorted, different pids."""
    return hashlib.sha256("\n".join(str(pid) for pid in np.unique(pids)).encode()).hexdigest()


def _read_header(folder: Path) -> dict[str, Any]:
    path = folder / HEADER
    try:
        header = parse_json(read_regular(path, max_bytes=_MAX_HEADER_BYTES))
        version = header["schema_version"]
        complete = {"size", "count", "sha256", "content_hash"} <= header.keys()
        hashes = [header["sha256"][name] for name in (*(f"{array}.npy" for array in ARRAYS), ROWS)]
        whole = header["content_hash"] == hashlib.sha256("\n".join(hashes).encode()).hexdigest()
    except (RefusedFileError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise AnnotationError(path, "file", "is missing or damaged", "run reposer prepare") from None
    if version != SCHEMA_VERSION or not complete:
        message = f"is {version}, expected {SCHEMA_VERSION} and all its fields"
        raise AnnotationError(path, "schema_version", message, _AGAIN)
    numbers = [header["count"], *(header["size"] if isinstance(header["size"], list) else ())]
    if len(numbers) != 3 or not all(type(number) is int and 0 <= number < 2**31 for number in numbers):
        raise AnnotationError(path, "size", "and count are no numbers of images and pixels", _AGAIN)
    if not whole:
        raise AnnotationError(path, "content_hash", "is not that of its files' hashes", _AGAIN)
    return dict(header)
