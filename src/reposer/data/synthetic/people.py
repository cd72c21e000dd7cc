"""Generated people ready for training: the pictures of a generated set, checked against the real set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from reposer.config import canonical_json
from reposer.data.packed import PackedPeople, hash_of_people
from reposer.data.records import DECISIONS, SPLITS, kept_by_hand
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
from reposer.storage.lock import in_turn
from reposer.storage.manifest import DECODING, IMAGES, MANIFEST, RowSchema, job_settings, read_rows
from reposer.storage.paths import RefusedFileError, check_name, contained, read_regular, unlinked

# ---- What a generated set must be before anybody trains on it: about training people, made from them.
#
# The manifest is not trusted: it may come from somebody else, or from before the data set was split again.
# Test people are looked for by number and by the sha256 of the files, since a renamed copy keeps its bytes.

REQUIRED = {  # column -> type, as the writers give them; no value may be missing
    **dict.fromkeys(("file", "sha256", "source", "source_sha256", "donor", "donor_sha256"), pa.string()),
    **dict.fromkeys(("source_pid", "source_camid", "donor_pid"), pa.int64()),
    "synthetic": pa.bool_(),
}
DEFAULTS: dict[str, Callable[[pa.Table], Any]] = {  # of sets that `generate` wrote, which knows no such thing
    "pid": lambda table: table["source_pid"],
    "camid": lambda table: table["source_camid"],
    "kept": lambda table: pa.array(np.ones(table.num_rows, np.bool_)),
    "trained_on": lambda table: pa.array([""] * table.num_rows),
}
_FURTHER = {  # the types of DEFAULTS
    **dict.fromkeys(("pid", "camid"), pa.int64()),
    "kept": pa.bool_(),
    "trained_on": pa.string(),
}
_ANOTHER = "generate the set from training people only"


@dataclass(frozen=True, slots=True)
class RealSet:
    """What of a real data set the rows are held against."""

    people: PackedPeople
    splits: tuple[str, ...]  # that are trained on

    @property
    def trained(self) -> NDArray[np.bool_]:
        """(N,) images that may be used."""
        return np.isin(self.people.splits, self.splits) & (self.people.pids > 0)

    @property
    def held_out(self) -> NDArray[np.bool_]:
        """(N,) images of all other splits, junk and distractors too."""
        return ~np.isin(self.people.splits, self.splits)

    def digests(self, rows: NDArray[np.bool_]) -> pa.Array:
        """sha256 of the chosen images."""
        return pa.array([self.people.sha256[i] for i in np.flatnonzero(rows).tolist()], pa.string())

    def trainings_with_test_people(self) -> dict[str, str]:
        """Identity hash -> who, of every training that we can think of with a held-out person in it."""
        found: dict[str, str] = {}
        for rows, who in self._with_test_people():
            found.setdefault(hash_of_people(self.people.pids[rows]), who)
        return found

    def held_out_in(self, identity_hash: str, images_hash: str = "") -> str:
        """Who of the held-out people a training has seen; "" where it is none that we can think of.

        Args:
            identity_hash, images_hash: what it says of itself. Where it says of which images it was, people
                of the same numbers in other images are others.
        """
        for rows, who in self._with_test_people():
            same = hash_of_people(self.people.pids[rows]) == identity_hash
            if same and images_hash in ("", self.people.hash_of_rows(rows)):
                return who
        return ""

    def _with_test_people(self) -> Iterator[tuple[NDArray[np.int64], str]]:
        """Images of a training with a held-out person in it, and what it is.

        These are the unions of splits, and the training folder prepared with another ``--holdout``.
        """
        pids, splits = self.people.pids, self.people.splits
        test = np.unique(pids[self.held_out & (pids > 0)])
        present = [split for split in SPLITS if split in splits]
        for count in range(1, len(present) + 1):
            for chosen in combinations(present, count):
                rows = np.flatnonzero(np.isin(splits, chosen))
                if np.isin(pids[rows], test).any():
                    yield rows, " + ".join(chosen)
        inside = np.isin(splits, ("train", "val"))
        folder = np.unique(pids[inside])
        for held in range(int(np.isin(folder, test).sum())):  # as labeled_files.hold_out chooses them
            kept = folder[: len(folder) - held]
            if np.isin(kept, test).any():
                yield np.flatnonzero(inside & np.isin(pids, kept)), f"a holdout of {held} people"


def complete(folder: Path) -> pa.Table:
    """The manifest of a set with every column of REQUIRED and DEFAULTS, typed and without gaps.

    Raises:
        UserError: the set is unfinished or damaged, a column is missing or of another type, a value is
            missing, a name is none or there twice.
    """
    columns = [*REQUIRED.items(), *_FURTHER.items()]
    all_of_them = "kind" in job_settings(folder)  # `augment` writes every column
    later, gaps = () if all_of_them else tuple(_FURTHER), (*REQUIRED, *_FURTHER)  # gaps: refused by row below
    table = read_rows(folder, RowSchema(columns, gaps, later))
    for name, default in DEFAULTS.items():
        if name not in table.column_names:
            table = table.append_column(name, default(table))
    rows = Rows(table, folder)
    for name in (*REQUIRED, *DEFAULTS):
        rows.refuse(_array(pc.is_null(table[name])), f"{name} is missing", "augment again")
    names = table["file"].to_pylist()
    no_name = np.array([not _is_name(name) for name in names], np.bool_)
    rows.refuse(no_name, "file must be a plain file name", "augment again")
    first: dict[str, int] = {}
    again = np.array([first.setdefault(name, i) != i for i, name in enumerate(names)], np.bool_)
    rows.refuse(again, "the file stands in an earlier row too", "augment again")
    return table


def check(table: pa.Table, folder: Path, real: RealSet) -> list[str]:
    """Refuse what must not be trained on; returns what a reader of the result should know.

    Args:
        table: of :func:`complete`.
        folder: of the generated set, for messages.
        real: the data set that is trained on.

    Raises:
        UserError: a row that is not synthetic, of an unknown or test person, from a test person's source or
            donor, with the bytes of a held-out image, or by a generator that was trained on test people.
            Names the first row.
    """
    rows, people = Rows(table, folder), real.people
    known, test = np.unique(people.pids[real.trained]), np.unique(people.pids[real.held_out])
    test = test[test > 0]
    pids, donors, sources = (table[name].to_numpy() for name in ("pid", "donor_pid", "source_pid"))
    rows.refuse(~_array(table["synthetic"]), "synthetic is false", "only generated pictures belong here")
    for name, numbers in (("pid", pids), ("donor_pid", donors)):
        rows.refuse(np.isin(numbers, test), f"{name} {{}} is a test person", _ANOTHER, numbers)
    rows.refuse(~np.isin(pids, known), "pid {} is nobody of the training people", _ANOTHER, pids)
    rows.refuse(sources != pids, "pid is not that of its source, {}", "augment again", sources)
    held_out = real.digests(real.held_out)
    for name in ("sha256", "source_sha256", "donor_sha256"):
        same = _array(pc.is_in(table[name], held_out))
        rows.refuse(same, f"{name} is that of a held-out image", _ANOTHER)
    trained_on = table["trained_on"].to_pylist()
    bad = real.trainings_with_test_people()
    unions = [bad.get(value) for value in trained_on]
    rows.refuse(
        np.array([union is not None for union in unions]),
        "the generator was trained on test people ({})",
        "use a generator trained on training people, or on another data set",
        unions,
    )
    return list(_notes(table, real, known, set(trained_on)))


def _notes(table: pa.Table, real: RealSet, known: NDArray[np.int64], trained_on: set[str]) -> Iterator[str]:
    """Facts that refuse nothing."""
    kept = _array(table["kept"])
    if not kept.all():
        yield f"{int((~kept).sum())} of {table.num_rows} generated pictures were dropped by the filter"
    without = len(known) - len(np.unique(table["pid"].to_numpy()[kept]))
    if without:
        yield f"{without} of {len(known)} people have no generated picture"
    training = real.digests(real.trained)
    for side in ("source", "donor"):
        other = int((~_array(pc.is_in(table[f"{side}_sha256"], training))).sum())
        if other:
            yield f"{other} generated pictures have a {side} that is no training image of this data set"
    if "" in trained_on:
        yield "who the generator was trained on is not recorded"
    if trained_on - {"", real.people.identity_hash(*real.splits)}:
        yield (
            "the generator was trained on people other than this set's; that they are none of its test people"
            " cannot be told from their hash"
        )


class Rows:
    """Refusals by row of a manifest."""

    def __init__(self, table: pa.Table, folder: Path) -> None:
        self._table, self._folder = table, folder

    def refuse(self, bad: NDArray[np.bool_], reason: str, advice: str, values: Sequence[Any] = ()) -> None:
        """Raise UserError for the first of the ``bad`` (M,) rows, counted from 1, if there is one.

        ``values`` (M,), where given, fill the {} of ``reason``.
        """
        where = np.flatnonzero(bad)
        if not len(where):
            return
        row = int(where[0])
        more = f" (and {len(where) - 1} rows more)" if len(where) > 1 else ""
        place = f"{self._folder / MANIFEST}: row {row + 1}, {self._table['file'][row].as_py()}"
        said = reason.format(values[row]) if len(values) else reason
        raise UserError(f"{place}: {said}{more}", advice)


def _array(column: pa.ChunkedArray | pa.Array) -> NDArray[np.bool_]:
    """A column of truth values."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return np.asarray(array.to_numpy(zero_copy_only=False), np.bool_)


def _is_name(name: str) -> bool:
    try:
        check_name(name)
    except ValueError:
        return False
    return True


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
    if not _is_current(cache, key):
        with in_turn(folder, DECODING):  # one process at a time decodes a set
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
            UserError: unfinished or damaged, or a row that must not be trained on (see :func:`check`).
        """
        folder = Path(folder)
        table = complete(folder)
        if not table.num_rows:
            raise UserError(f"{folder}: holds no generated picture", "choose another folder")
        notes = check(table, folder, RealSet(people, splits))
        names, digests = table["file"].to_pylist(), table["sha256"].to_pylist()
        pids, camids = table["pid"].to_numpy(), table["camid"].to_numpy()
        kept = kept_by_hand(folder, names, digests, table["kept"].to_pylist())
        by_hand = int((kept != np.array(table["kept"].to_pylist())).sum())
        notes += [f"{by_hand} pictures were kept or dropped by hand ({DECISIONS})"] if by_hand else []
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
