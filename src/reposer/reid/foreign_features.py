"""Feature files as other Re-ID code leaves them: pytorch_result.mat, .pt, and .npy beside a list of labels.

Each reader gives the columns of ``feature_files``. All of them are strangers' files: .mat is parsed in a
child process with limits, .pt by torch's restricted reader, .npy by its header's claim first; none runs any
code.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reposer.arrays import float_array, whole_labels
from reposer.errors import UserError
from reposer.storage.bounded import MAX_ARRAY_BYTES, read_mat, read_npy
from reposer.storage.paths import RefusedFileError, printable, read_regular
from reposer.weights.files import load_arrays_file

Columns = dict[str, NDArray[Any]]
SPLITS = {"query": "query", "gallery": "gallery", "train": "train", "mquery": "multi_query"}  # by prefix
KEYS = tuple(f"{prefix}_{part}" for prefix in SPLITS for part in ("f", "label", "cam"))
LABEL_FILES = (".csv", ".tsv", ".txt")
_ORDER = ("pid", "camid", "split", "name")  # of the columns of a label file without a header
_KNOWN = (*_ORDER, "clothes")
_MAX_LABEL_BYTES = 500_000_000
_log = logging.getLogger(__name__)
_MAT_ADVICE = f"save {KEYS[0]} (N, D), {KEYS[1]}, {KEYS[2]} and the same of gallery"


def read_mat_features(path: Path) -> Columns:
    """The sets of a MATLAB 5 file, as the widely used PyTorch baseline writes pytorch_result.mat.

    Raises:
        UserError: damaged, hostile, no MATLAB 5 file, or keys missing.
    """
    return by_prefix(path, read_mat(path, read_regular(path, max_bytes=MAX_ARRAY_BYTES), KEYS))


def read_torch_features(path: Path, columns: Sequence[str]) -> Columns:
    """A .pt or .pth file: a dict of dense tensors and lists, by the keys of :func:`read_mat_features` or by
    the names of the columns.

    Raises:
        UserError: damaged, more than tensors and lists, or keys missing.
    """
    values = load_arrays_file(path)
    if "features" not in values:
        return by_prefix(path, values)
    name_unread(path, values, columns)
    found = {name: values[name] for name in columns if name in values}
    for name in ("pid", "camid", "clothes"):
        if name in found:
            found[name] = whole_labels(found[name], f"{printable(path)}: {name}")
    return found


def read_npy_features(path: Path, labels: Path | None) -> Columns:
    """An array (N, D) and a text file with a row of pid, camid, split, name for each of its rows.

    Args:
        labels: CSV, TSV or text between blanks, UTF-8; a header may name the columns. None: the file of
            that name beside ``path``. Without a column split all rows are of the split that ``path`` is named
            after.

    Raises:
        UserError: either file is missing, damaged or hostile, or their rows do not fit.
    """
    data = read_regular(path, max_bytes=MAX_ARRAY_BYTES)
    try:
        features = read_npy(path, data)
    except RefusedFileError:
        raise
    except (ValueError, OSError, EOFError, MemoryError, SyntaxError, TypeError, OverflowError) as error:
        if "allow_pickle" in str(error):
            problem, advice = "holds pickled objects, which may run code", "save an array of numbers"
            raise UserError(f"{printable(path)}: {problem}", advice) from error
        raise UserError(f"{printable(path)}: not a readable .npy file", "write it again") from error
    if labels is None:
        beside = [path.with_suffix(suffix) for suffix in LABEL_FILES]
        labels = next((file for file in beside if file.is_file()), None)
        if labels is None:
            wanted = f"put {beside[0].name} with pid, camid, split beside it, or name it after {path.name}"
            raise UserError(f"{printable(path)}: no list of its labels", wanted)
    columns = _labels(labels)
    if "split" not in columns:
        if path.stem not in (*SPLITS.values(), "test"):
            problem = f"{printable(labels)}: no column split, and {path.name} is named after none"
            raise UserError(problem, f"add it: {', '.join(SPLITS.values())}")
        columns["split"] = np.full(len(columns["pid"]), path.stem)
    if features.ndim != 2 or len(features) != len(columns["pid"]):
        problem = f"{len(columns['pid']):,} rows of labels for features of shape {features.shape}"
        raise UserError(f"{printable(labels)}: {problem}", "give one row for each image")
    return {"features": features, **columns}


def with_labels(files: Sequence[Path]) -> list[tuple[Path, Path | None]]:
    """Feature files, each with the label file that follows it in the list."""
    pairs: list[tuple[Path, Path | None]] = []
    for path in files:
        if path.suffix.lower() in LABEL_FILES and pairs and pairs[-1] == (pairs[-1][0], None):
            if pairs[-1][0].suffix.lower() != ".npy":
                problem = f"{printable(path)}: labels for {printable(pairs[-1][0])}, which has its own"
                raise UserError(problem, "give labels after an .npy file only")
            pairs[-1] = (pairs[-1][0], path)
        else:
            pairs.append((path, None))
    return pairs


def by_prefix(path: Path, values: Mapping[str, NDArray[Any]]) -> Columns:
    """Columns of the sets that are there: PREFIX_f, PREFIX_label and, where cameras are known, PREFIX_cam."""
    parts: list[Columns] = []
    for prefix, split in SPLITS.items():
        given = {
            part: values[f"{prefix}_{part}"] for part in ("f", "label", "cam") if f"{prefix}_{part}" in values
        }
        if not given:
            continue
        if "f" not in given or "label" not in given:
            missing = f"{prefix}_{'label' if 'f' in given else 'f'}"
            raise UserError(f"{printable(path)}: no {missing}", _MAT_ADVICE)
        features = given["f"]
        if features.ndim != 2:
            raise UserError(f"{printable(path)}: {prefix}_f of shape {features.shape}", _MAT_ADVICE)
        columns: Columns = {"features": float_array(features, f"{printable(path)}: {prefix}_f")}
        for part, name in (("label", "pid"), ("cam", "camid")):
            what = f"{printable(path)}: {prefix}_{part}"
            numbers = whole_labels(given[part].ravel(), what) if part in given else np.full(len(features), -1)
            if len(numbers) != len(features):
                raise UserError(
                    f"{what}: {len(numbers):,} numbers for {len(features):,} features", _MAT_ADVICE
                )
            columns[name] = numbers
        columns["split"] = np.full(len(features), split)
        columns["name"] = np.array([f"{split} row {i}" for i in range(len(features))], np.str_)
        parts.append(columns)
    if not parts:
        raise UserError(f"{printable(path)}: none of the keys {', '.join(KEYS[:6])}", _MAT_ADVICE)
    sizes = {part["features"].shape[1] for part in parts}
    if len(sizes) > 1:
        raise UserError(
            f"{printable(path)}: sets of {sorted(sizes)} features each", "save those of one network"
        )
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def name_unread(path: Path, names: Iterable[str], columns: Sequence[str]) -> None:
    """Warn about columns of a file that nothing reads: one of them may have been meant as a known one."""
    unread = sorted(printable(name[:40]) or "(no name)" for name in names if name not in columns)
    if unread:
        told = ", ".join(unread[:12]) + (f" and {len(unread) - 12} more" if len(unread) > 12 else "")
        _log.warning("%s: not read: column %s; known are %s", printable(path), told, ", ".join(columns))


def _labels(path: Path) -> Columns:
    """The columns of a label file."""
    try:
        text = read_regular(path, max_bytes=_MAX_LABEL_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{printable(path)}: not UTF-8 text", "save it as UTF-8") from error
    head = text.split("\n", 1)[0]
    mark = next((mark for mark in "\t,;" if mark in head), None)
    try:
        lines: list[list[str]] = (
            [line.split() for line in text.splitlines()]
            if mark is None
            else list(csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True))
        )
    except csv.Error as error:
        raise UserError(f"{printable(path)}: not a readable table ({error})", "write it again") from error
    rows = [
        (n, [field.strip() for field in row]) for n, row in enumerate(lines, 1) if any(map(str.strip, row))
    ]
    if not rows:
        raise UserError(f"{printable(path)}: holds no row", "give a row of pid, camid, split for each image")
    names: Sequence[str] = [field.lower() for field in rows[0][1]]
    if "pid" in names:
        twice = next((name for name in _KNOWN if names.count(name) > 1), None)
        if twice is not None:
            count = {2: "two"}.get(names.count(twice), "several")
            problem = f"{printable(path)}:{rows[0][0]}: {count} columns {twice}"
            raise UserError(problem, "name every column once")
        name_unread(path, names, _KNOWN)
        rows = rows[1:]
    else:
        names = _ORDER[: len(names)]
    width = len(rows[0][1]) if rows else 0
    columns: dict[str, list[Any]] = {name: [] for name in names if name in _KNOWN}
    for number, row in rows:
        if len(row) != len(names) or len(row) != width:
            problem = f"{printable(path)}:{number}: {len(row)} fields where {len(names)} are wanted"
            raise UserError(problem, "give pid, camid, split and, if you like, name")
        for name, field in zip(names, row, strict=True):
            if name in columns:
                columns[name].append(
                    field if name in ("split", "name") else _number(field, name, path, number)
                )
    return {name: np.array(values) for name, values in columns.items()}


def _number(field: str, name: str, path: Path, line: int) -> int:
    try:
        value = int(field)
    except ValueError:
        value = 2**63
    if not -(2**63) <= value < 2**63:
        problem = f"{printable(path)}:{line}: {name} {field[:40]!r} is no whole number of 64 bits"
        raise UserError(problem, "number people and cameras from 1")
    return value
