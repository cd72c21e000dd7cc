"""Features of person images under an embedding: batches in, one vector of length 1 for each image out."""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import nn

from reposer.arrays import float_array
from reposer.errors import UserError
from reposer.reid.foreign_features import (
    KEYS,
    by_prefix,
    name_unread,
    read_mat_features,
    read_npy_features,
    read_torch_features,
)
from reposer.storage.bounded import read_npz
from reposer.storage.files import write_atomic
from reposer.storage.paths import printable
from reposer.storage.tables import parquet_bytes, parquet_source, read_table
from reposer.structures import FeatureSet

Progress = Callable[[int], None]  # images done


class LabeledImages(Protocol):
    """Images with the labels that a protocol needs; ``data.packed.PackedPeople`` is one."""

    @property
    def images(self) -> NDArray[np.uint8]: ...  # (N, H, W, 3) RGB

    @property
    def pids(self) -> NDArray[np.int64]: ...  # (N,)

    @property
    def camids(self) -> NDArray[np.int64]: ...  # (N,)

    @property
    def clothes(self) -> NDArray[np.int64]: ...  # (N,) number of the outfit, -1 unknown

    @property
    def names(self) -> Sequence[str]: ...  # (N,)


def embed_images(
    embedding: nn.Module,
    images: NDArray[np.uint8],
    batch_size: int = 64,
    on_progress: Progress | None = None,
) -> NDArray[np.float32]:
    """(N, H, W, 3) uint8 RGB -> (N, D) float32 of length 1, in the embedding's device and precision.

    Args:
        embedding: (B, 3, H, W) uint8 -> (B, D) of length 1; put into eval mode for the call.
        images: an array, or a memory map that is read batch by batch.
        batch_size: B; the last batch may be smaller.
        on_progress: called after every batch.
    """
    device = next(embedding.parameters()).device
    training = embedding.training
    embedding.eval()
    chunks = []
    try:
        with torch.inference_mode():
            for start in range(0, len(images), batch_size):
                batch = torch.from_numpy(np.array(images[start : start + batch_size]))  # maps are read-only
                batch = batch.permute(0, 3, 1, 2).to(device)  # channels_last as it is stored
                chunks.append(embedding(batch).float().cpu())
                if on_progress:
                    on_progress(min(start + batch_size, len(images)))
    finally:
        embedding.train(training)
    return np.asarray(torch.cat(chunks).numpy()) if chunks else np.empty((0, 0), np.float32)


def extract_features(
    embedding: nn.Module,
    people: LabeledImages,
    indices: NDArray[np.int64] | None = None,
    batch_size: int = 64,
    on_progress: Progress | None = None,
) -> FeatureSet:
    """Features and labels of the images at ``indices`` (N,) of ``people``, None for all of them.

    Camera numbers are those of the folder; ``reid.search.with_cameras`` says what becomes of unknown ones.

    Args as of :func:`embed_images`.
    """
    chosen = np.arange(len(people.images)) if indices is None else np.asarray(indices, np.int64)
    rows: Any = _Rows(people.images, chosen)
    features = embed_images(embedding, rows, batch_size, on_progress)
    names = tuple(people.names[i] for i in chosen.tolist())
    known = (people.clothes != -1).any()  # of the whole folder, so that all its sets are alike
    return FeatureSet(
        features, people.pids[chosen], people.camids[chosen], names, people.clothes[chosen] if known else None
    )


class _Rows:
    """Some rows of an array, gathered slice by slice: a memory map is never copied as a whole."""

    def __init__(self, array: NDArray[Any], rows: NDArray[np.int64]) -> None:
        self._array, self._rows = array, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, part: slice) -> NDArray[Any]:
        return np.take(self._array, self._rows[part], axis=0)


# ---- Features on disk, from any tool: one .npz or Parquet file with a row for each image, or what
# ``foreign_features`` reads.
#
# Columns (arrays of an .npz): ``features`` (N, D) numbers; ``pid``, ``camid`` whole numbers (-1 junk and 0
# distractor in ``pid``); ``split`` text, such as query, gallery, train; optionally ``name`` text, the image
# file, and ``clothes`` whole numbers, the outfit that a person wears. Features of any real dtype are taken as
# the numbers that they are: float32 where it holds them exactly, else float64.

REQUIRED = ("features", "pid", "split")
COLUMNS = (*REQUIRED, "camid", "name", "clothes")
UNKNOWN_CAMERA = -1
_NAMELESS = re.compile(r"(\w+ )?row [0-9]+")  # a row that a file gives no name
_LAYOUT = "give columns features (N, D), pid, camid, split and, if you like, name and clothes"


def read_features(path: Path | str, labels: Path | None = None) -> dict[str, FeatureSet]:
    """The feature sets of a file by split name, rows in file order.

    Args:
        path: .npz or .parquet; or .mat, .pt, .pth, .npy (``foreign_features``).
        labels: the label file of an .npy file.

    Values are not judged here (``reposer.reid.search.checked`` does that), their form is.

    Raises:
        UserError: not readable, a column missing, of another type or length, an empty split name.
    """
    whole, splits = read_rows(Path(path), labels)
    return {split: whole.rows(np.flatnonzero(splits == split)) for split in dict.fromkeys(splits.tolist())}


def read_rows(path: Path, labels: Path | None = None) -> tuple[FeatureSet, NDArray[np.str_]]:
    """As :func:`read_features`: all rows of a file in its order, and the (N,) names of their splits."""
    readers: dict[str, Callable[[Path], dict[str, NDArray[Any]]]] = {
        ".npz": _read_npz,
        ".parquet": _read_parquet,
        ".mat": read_mat_features,
        **dict.fromkeys((".pt", ".pth"), lambda file: read_torch_features(file, COLUMNS)),
        ".npy": lambda file: read_npy_features(file, labels),
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: features are read from {' and '.join(readers)} files", "convert the file")
    if not path.is_file():
        raise UserError(f"{path}: no such file", "give the path of a feature file")
    columns = reader(path)
    _require(set(columns), path)
    features = _numbers(columns["features"], path)
    columns.setdefault("camid", np.full(len(features), UNKNOWN_CAMERA))
    pids, camids = (_whole(columns[name], name, len(features), path) for name in ("pid", "camid"))
    splits = _texts(columns["split"], "split", len(features), path)
    if "name" in columns:
        names = _texts(columns["name"], "name", len(features), path)
    else:
        names = np.array([f"row {i}" for i in range(len(features))])
    clothes = None
    if "clothes" in columns:
        clothes = _whole(columns["clothes"], "clothes", len(features), path)
    return FeatureSet(features, pids, camids, tuple(names.tolist()), clothes), splits


def refuse_values(
    path: Path, whole: FeatureSet, used: NDArray[np.bool_], asked: NDArray[np.bool_], *, unit: bool
) -> None:
    """Refuse rows that cannot be scored, by file and row.

    Args:
        path: of :func:`read_rows`.
        whole: all of its rows.
        used: (N,) rows that are compared.
        asked: (N,) rows that are queries.
        unit: features are brought to length 1.

    Raises:
        UserError: NaN or infinity; with ``unit`` a row of zeros; a person below -1, or below 1 in a query.
    """
    features = whole.features
    with np.errstate(over="ignore", invalid="ignore"):
        squared = np.einsum("nd,nd->n", features, features, dtype=np.float64)
    broken, zero = ~np.isfinite(squared), squared == 0  # or too large, or too small, for a square
    broken[broken] = ~np.isfinite(features[broken]).all(axis=1)
    zero[zero] = ~features[zero].any(axis=1)
    again = "extract these features again"
    for rows, reason, advice in (
        (broken, "holds NaN or infinity", f"{again}: a distance to them means nothing"),
        (zero & unit, "is all zeros, so it has no direction to compare", f"{again}, or take the rows out"),
        (whole.pids < -1, "person {} is below -1", "number the people from 1; -1 means junk, 0 distractor"),
        (
            asked & (whole.pids < 1),
            "person {} cannot be searched for: -1 means junk and 0 distractor",
            "number the people from 1, or take these rows out of the query set",
        ),
    ):
        at = np.flatnonzero(rows & used)
        if len(at):
            name = printable(whole.names[at[0]])[:200]
            place = name if _NAMELESS.fullmatch(name) else f"row {at[0]}, {name}"
            problem = f"{place}: {reason.format(whole.pids[at[0]])} ({len(at)} such rows)"
            raise UserError(f"{printable(path)}: {problem}", advice)


def write_features(path: Path | str, sets: dict[str, FeatureSet]) -> None:
    """Write sets by split name as .npz or .parquet (the path's suffix decides), whole or not at all."""
    path = Path(path)
    sizes = {features.features.shape[1] for features in sets.values()}
    if len(sizes) != 1:
        raise UserError(f"{path}: feature sets of {sorted(sizes)} numbers", "write sets of one network")
    columns = {
        "features": np.concatenate([s.features for s in sets.values()]),
        "pid": np.concatenate([s.pids for s in sets.values()]),
        "camid": np.concatenate([s.camids for s in sets.values()]),
        "split": np.array([split for split, s in sets.items() for _ in range(len(s))]),
        "name": np.array([name for s in sets.values() for name in s.names]),
    }
    outfits = [s.clothes for s in sets.values()]
    known = [numbers for numbers in outfits if numbers is not None]
    if known:
        if len(known) != len(outfits):
            raise UserError(
                f"{path}: only some of the sets tell the clothes", "give them for all, or for none"
            )
        columns["clothes"] = np.concatenate(known)
    if path.suffix.lower() == ".npz":
        content = io.BytesIO()
        np.savez(content, **columns)  # type: ignore[arg-type]  # its allow_pickle stays as it is
        write_atomic(path, content.getbuffer())
    elif path.suffix.lower() == ".parquet":
        features = columns.pop("features")
        rows = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), features.shape[1])
        write_atomic(path, parquet_bytes(pa.table({"features": rows, **columns})))
    else:
        raise UserError(f"{path}: features are written to .npz and .parquet files", "choose one of the two")


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    if not zipfile.is_zipfile(path):  # numpy takes anything else for a pickle
        raise UserError(f"{path}: not a readable .npz file", "write it again")
    try:
        with path.open("rb") as file:
            there = {name.removesuffix(".npy") for name in zipfile.ZipFile(file).namelist()}
            arrays = read_npz(path, file, (*COLUMNS, *KEYS))
        if "features" not in there and there.intersection(KEYS):
            return by_prefix(path, arrays)
        _require(there, path)
        name_unread(path, there, COLUMNS)
        return {name: values for name, values in arrays.items() if name in COLUMNS}
    except (ValueError, OSError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, ValueError) and "allow_pickle" in str(error):
            advice = "save plain arrays: numbers and text, not Python objects"
            raise UserError(f"{path}: holds pickled objects, which may run code", advice) from error
        raise UserError(f"{path}: not a readable .npz file ({error})", "write it again") from error


def _read_parquet(path: Path) -> dict[str, NDArray[Any]]:
    try:
        names = set(pq.read_schema(parquet_source(path)).names)
        _require(names, path)
        name_unread(path, names, COLUMNS)
        table = read_table(path, columns=[name for name in COLUMNS if name in names])
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({error})", "write it again") from error
    for name in table.column_names:
        if table[name].null_count:
            row = table[name].is_null().to_numpy().argmax()
            raise UserError(f"{path}: row {row}: {name} is empty", "fill it in or take the row out")
    column = table["features"].combine_chunks()
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(is_list(column.type) for is_list in lists):
        problem = f"features is a column of {column.type}"
        raise UserError(f"{path}: {problem}", "make it a column of lists of numbers")
    values = column.flatten()
    if len(column) == 0 or len(values) % len(column) or values.null_count:
        raise UserError(f"{path}: features are lists of several lengths, or none", _LAYOUT)
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    uneven = np.flatnonzero(lengths != lengths[0])
    if len(uneven):
        problem = f"row {uneven[0]}: {lengths[uneven[0]]} features where row 0 has {lengths[0]}"
        raise UserError(f"{path}: {problem}", _LAYOUT)
    columns = {name: table[name].to_numpy() for name in table.column_names if name != "features"}
    return {"features": values.to_numpy(zero_copy_only=False).reshape(len(column), -1), **columns}


def _require(names: set[str], path: Path) -> None:
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        found = ", ".join(printable(name[:40]) for name in sorted(names)[:12]) or "nothing"
        raise UserError(f"{path}: no column {', '.join(missing)} (found: {found})", _LAYOUT)


def _numbers(values: NDArray[Any], path: Path) -> NDArray[np.floating]:
    if values.ndim != 2 or values.dtype.kind not in "bfiu":
        raise UserError(f"{path}: features of shape {values.shape} and type {values.dtype}", _LAYOUT)
    exact = float_array(values, f"{path}: features")
    with np.errstate(over="ignore"):
        single = exact.astype(np.float32, copy=False)
    return np.ascontiguousarray(single if np.array_equal(single, exact, equal_nan=True) else exact)


def _whole(values: NDArray[Any], name: str, count: int, path: Path) -> NDArray[np.int64]:
    if values.shape != (count,) or values.dtype.kind not in "iu":
        problem = f"{name} of shape {values.shape} and type {values.dtype} for {count} features"
        raise UserError(f"{path}: {problem}", f"give {count} whole numbers")
    if values.dtype.kind == "u" and count and values.max() > np.iinfo(np.int64).max:  # would turn into junk
        row = int(values.argmax())
        problem = f"row {row}: {name} {values[row]} does not fit into 64 bits with a sign"
        raise UserError(f"{path}: {problem}", "number people and cameras from 1")
    return values.astype(np.int64)


def _texts(values: NDArray[Any], name: str, count: int, path: Path) -> NDArray[np.str_]:
    if values.shape != (count,) or not all(isinstance(value, str) for value in values.tolist()):
        problem = f"{name} of shape {values.shape} and type {values.dtype} for {count} features"
        raise UserError(f"{path}: {problem}", f"give {count} texts")
    if (values == "").any():
        raise UserError(f"{path}: row {int((values == '').argmax())}: {name} is empty", "fill it in")
    return values.astype(np.str_)
