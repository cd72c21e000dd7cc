"""Work on untrusted bytes within bounds: a child process with limits, JSON, NumPy arrays, pickles of tensors.

A parser that may crash, hang or ask for any memory (SciPy's for .mat) works in a child, which is ended by the
system when it goes too far; nothing but plain arrays comes back. What is quicker to bound beforehand, by
counting what a file claims, is bounded here without one. Imports no torch.
"""

from __future__ import annotations

import io
import json
import lzma
import math
import mmap
import os
import pickletools
import re
import resource
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from reposer.storage.paths import RefusedFileError, open_regular, printable

MAX_JSON_VALUES = 50_000_000  # about 5 GB of Python objects; COCO's keypoints of a large set have fewer
MAX_ARRAY_BYTES = 8_000_000_000  # decoded, of one file
_MAX_ENTRIES = 1000  # of an archive
_SOURCE = str(Path(__file__).parents[2])
_SECONDS, _MEMORY, _OUTPUT = 60, 3 << 30, 2 << 30


# ---- a child process with limits


def read_mat(path: Path, data: bytes, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Variables of a MATLAB 5 file; those that are not there are absent.

    Args:
        path: for messages.
        data: its bytes.
        names: of the variables. A cell array comes as the texts or first values of its cells.

    Raises:
        RefusedFileError: damaged, no MATLAB 5 file, too slow, too large, or the parser died.
    """
    return read_in_child("mat", path, data, names)


def read_in_child(
    reader: str,
    path: Path,
    data: bytes,
    arguments: Iterable[str] = (),
    *,
    seconds: int = _SECONDS,
    memory: int = _MEMORY,
) -> dict[str, NDArray[Any]]:
    """The arrays that READERS[reader] makes of ``data`` in a process of its own.

    Args:
        reader: a key of READERS.
        path: for messages.
        seconds: of processor time, and twice that by the clock.
        memory: bytes of address space.

    Raises:
        RefusedFileError: what the reader says of the bytes, or which limit it met.
    """
    # -P: a numpy.py in the present folder, which may be somebody else's, must not be imported
    command = [
        sys.executable,
        "-P",
        "-m",
        "reposer.storage.bounded",
        reader,
        str(seconds),
        str(memory),
        *arguments,
    ]
    environment = {
        **os.environ,
        **{"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},  # each thread reserves address space
        "PYTHONPATH": os.pathsep.join(filter(None, (_SOURCE, os.environ.get("PYTHONPATH", "")))),
    }
    advice = "get the file again"
    with tempfile.TemporaryFile() as output:
        try:
            done = subprocess.run(
                command,
                input=data,
                stdout=output,
                stderr=subprocess.PIPE,
                env=environment,
                timeout=2 * seconds + 30,
            )
        except subprocess.TimeoutExpired as error:
            raise RefusedFileError(path, "too-long", "reading it took too long", advice) from error
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            reason = lines[-1][:200] if lines and done.returncode == 1 else _ended(done.returncode)
            raise RefusedFileError(path, "damaged", f"cannot be read: {printable(reason)}", advice)
        output.seek(0)
        return read_npz(path, output)


def _ended(code: int) -> str:
    if -code in (24, 9):  # SIGXCPU, SIGKILL
        return "reading it took too long or too much memory"
    return f"its parser crashed (exit status {code})"


def _read_mat(data: bytes, names: list[str]) -> dict[str, NDArray[Any]]:
    import scipy.io

    content: dict[str, Any] = scipy.io.loadmat(io.BytesIO(data), variable_names=names)
    found = {name: np.asarray(content[name]) for name in names if name in content}
    return {name: _plain(values) for name, values in found.items()}


def _plain(values: NDArray[Any]) -> NDArray[Any]:
    """A cell array as texts or numbers, in its shape."""
    if values.dtype.kind != "O":
        if values.dtype.kind not in "biufcU":
            raise ValueError(f"a variable of type {values.dtype}")
        return values
    cells = [np.asarray(cell).ravel() for cell in values.ravel()]
    if any(not len(cell) or cell.dtype.kind not in "biufU" for cell in cells):
        raise ValueError("a cell that holds neither text nor numbers")
    return np.array([cell[0] for cell in cells]).reshape(values.shape)


READERS: dict[str, Callable[[bytes, list[str]], dict[str, NDArray[Any]]]] = {"mat": _read_mat}


def _main(reader: str, seconds: str, memory: str, *arguments: str) -> None:
    data = sys.stdin.buffer.read()
    for kind, limit in (
        (resource.RLIMIT_CPU, int(seconds)),
        (resource.RLIMIT_AS, int(memory)),
        (resource.RLIMIT_FSIZE, _OUTPUT),
        (resource.RLIMIT_CORE, 0),
    ):
        with suppress(ValueError, OSError):  # a system without this limit, or with a lower one
            resource.setrlimit(kind, (limit, resource.getrlimit(kind)[1]))
    try:
        arrays = READERS[reader](data, list(arguments))
        content = io.BytesIO()
        np.savez(content, **arrays)  # type: ignore[arg-type]  # its allow_pickle stays as it is
        sys.stdout.buffer.write(content.getbuffer())
        sys.stdout.buffer.flush()
    except MemoryError:
        sys.exit("reading it takes too much memory")
    except Exception as error:  # whatever a parser raises on hostile bytes
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}"[:300])


# ---- NumPy


def read_npz(
    path: Path, file: IO[bytes], names: Iterable[str] | None = None, max_bytes: int = MAX_ARRAY_BYTES
) -> dict[str, NDArray[Any]]:
    """Arrays of an .npz archive; what its entries claim is counted before any is unpacked.

    Args:
        path: for messages.
        names: the arrays to read where they are there; None: all.
        max_bytes: unpacked, in all.

    Raises:
        RefusedFileError: rule ``absurd-size``.
        ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error: damaged.
    """
    try:
        return _unpacked(path, file, names, max_bytes)
    except (RuntimeError, OverflowError, TypeError, struct.error, lzma.LZMAError) as error:
        # encrypted, packed in a way that zipfile does not know, or its directory is nonsense
        raise ValueError(str(error)) from error


def _unpacked(
    path: Path, file: IO[bytes], names: Iterable[str] | None, max_bytes: int
) -> dict[str, NDArray[Any]]:
    arrays = {}
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
        if len(archive.infolist()) > _MAX_ENTRIES:
            raise RefusedFileError(path, "absurd-size", f"holds more than {_MAX_ENTRIES:,} arrays")
        wanted = [name for name in (entries if names is None else names) if name in entries]
        total = sum(entries[name].file_size for name in wanted)
        if total > max_bytes:
            raise RefusedFileError(path, "absurd-size", f"unpacks to {total:,} bytes, over {max_bytes:,}")
        for name in wanted:
            with archive.open(entries[name]) as entry:
                _check_claim(path, entry, entries[name].file_size)
            with archive.open(entries[name]) as entry:
                arrays[name] = np.lib.format.read_array(entry, allow_pickle=False)
    return arrays


def read_npy(path: Path, data: bytes) -> NDArray[Any]:
    """The array of an .npy file.

    Raises:
        RefusedFileError: rule ``absurd-size``: it claims more numbers than it holds.
        ValueError, OSError, EOFError: damaged, or no array.
    """
    _check_claim(path, io.BytesIO(data), len(data))
    array: NDArray[Any] = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    return array


def _check_claim(path: Path, file: IO[bytes], size: int) -> None:
    """Refuse an .npy header that wants more bytes than there are: NumPy would take the memory first."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the format")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, _, dtype = read(file)
    except ValueError as error:  # NumPy's own words, or those of a Python that finds a NUL in it
        raise ValueError(f"a header that is none ({error})") from error
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error):
        raise
    except Exception as error:  # NumPy parses it as Python: whatever a tokenizer raises on hostile bytes
        raise ValueError(f"a header that is none ({type(error).__name__})") from error
    claimed = math.prod(shape) * dtype.itemsize
    if any(side < 0 for side in shape) or (not dtype.hasobject and claimed > size):
        raise RefusedFileError(path, "absurd-size", f"an array {shape} of {dtype} in {size:,} bytes")


# ---- JSON


def parse_json(data: bytes | str, **options: Any) -> Any:
    """As ``json.loads``, in memory that is bounded before anything is built.

    Raises:
        ValueError: no JSON, nested too deeply, or more than MAX_JSON_VALUES values.
    """
    marks: tuple[Any, ...] = (b",", b"[", b"{") if isinstance(data, bytes) else (",", "[", "{")
    if sum(data.count(mark) for mark in marks) > MAX_JSON_VALUES:
        raise ValueError(f"holds more than {MAX_JSON_VALUES:,} values")
    try:
        return json.loads(data, **options)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


# ---- what torch.save wrote

_SIZES = {  # of a number, by the storage that holds it
    **dict.fromkeys(("Bool", "Byte", "Char", "Untyped"), 1),
    **dict.fromkeys(("Half", "BFloat16", "Short"), 2),
    **{"Float": 4, "Int": 4, "Double": 8, "Long": 8, "ComplexFloat": 8, "ComplexDouble": 16},
}
_STORAGE = re.compile(r"torch(?:\.cuda|\.storage)? (\w+)Storage")
_ORDERED = "collections OrderedDict"
_REBUILT = ("tensor", "tensor_v2", "tensor_v3", "parameter", "parameter_with_state")
_PARAMETER = "torch.nn.parameter Parameter"
_EMPTY_TENSOR = re.compile(r"torch(?:\.cuda)? \w*Tensor")
_CALLED = {_ORDERED, _PARAMETER, "torch Size", *(f"torch._utils _rebuild_{kind}" for kind in _REBUILT)}
_LEGACY_PICKLES = 5  # a number, the version, the system, the values, the keys of the storages
# what torch's own reader of pickles knows, and state dicts hold
_CONSTANTS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"}
_EMPTY = {"NONE", "NEWTRUE", "NEWFALSE", "EMPTY_LIST", "EMPTY_DICT"}
_TAKEN = {"APPEND": 1, "SETITEM": 2}  # from the stack
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True, slots=True)
class _Global:
    """What a pickle names (module and name), or what a call of that gave."""

    name: str
    called: bool = False


@dataclass(frozen=True, slots=True)
class _Storage:
    """Numbers of a file that tensors are views of."""

    key: str | int
    taken: int  # bytes
    size: int  # bytes of a number


def check_torch_file(path: Path) -> None:
    """Refuse a file that would take ``torch.load`` more memory than its size suggests.

    Torch makes what a pickle says before anybody sees it, byte arrays and tensors of any size among it.

    Raises:
        RefusedFileError: rule ``absurd-size``: a compressed archive, which could unpack to any size.
        ValueError, KeyError, IndexError, OSError, zipfile.BadZipFile, struct.error: damaged, or no tensors.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if file.read(4) != b"PK\x03\x04":  # what torch looks at too
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                for _ in range(_LEGACY_PICKLES):
                    _check_pickle(content, size)
            return
        _check_directory(file, size)
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            if not stored or sum(entry.file_size for entry in entries) > size:
                advice = "save it again with torch.save"
                raise RefusedFileError(path, "absurd-size", "a compressed archive", advice)
            for entry in entries:
                if entry.filename.lower().endswith("data.pkl"):  # torch finds it in any letter case
                    _check_pickle(io.BytesIO(archive.read(entry)), size)


def _check_directory(file: IO[bytes], size: int) -> None:
    """The list of an archive's files stands right before its last record, where every reader looks for it."""
    file.seek(max(0, size - 98))
    tail = file.read()
    length, start = struct.unpack("<2L", tail[-10:-2])
    end = size - 22
    if tail[-42:-38] == b"PK\x06\x07":  # lengths of 64 bits
        length, start = struct.unpack("<2Q", tail[40:56])
        end = struct.unpack("<Q", tail[-34:-26])[0]
        if end != size - 98 or tail[:4] != b"PK\x06\x06":
            raise ValueError("an archive with two ends")
    if tail[-22:-18] != b"PK\x05\x06" or tail[-2:] != b"\0\0" or start + length != end:
        raise ValueError("an archive with two lists")
    file.seek(0)


def _check_pickle(file: Any, most: int) -> None:
    """Go through a pickle as torch does, without making anything.

    Args:
        file: with ``read`` and ``readline``; left behind the pickle.
        most: bytes that all its storages may take.

    Raises:
        ValueError: they take more, or it calls something else than what tensors are made by, or is damaged.
        KeyError, IndexError: damaged.
    """
    stack: list[Any] = []
    outer: list[list[Any]] = []
    memo: dict[int, Any] = {}
    storages: set[_Storage] = set()
    total = 0
    value: Any
    for count, (operation, value, _) in enumerate(pickletools.genops(file)):
        name = operation.name
        if count > MAX_JSON_VALUES:
            raise ValueError(f"holds more than {MAX_JSON_VALUES:,} values")
        if name in _CONSTANTS:
            stack.append(value)
        elif name in _EMPTY:
            stack.append(None)
        elif name == "EMPTY_TUPLE":
            stack.append(())
        elif name == "GLOBAL":
            stack.append(_Global(value))
        elif name == "MARK":
            outer.append(stack)
            stack = []
        elif name in _TAKEN:
            del stack[len(stack) - _TAKEN[name] :]
        elif name in ("APPENDS", "SETITEMS"):
            stack = outer.pop()
        elif name == "TUPLE":
            items, stack = tuple(stack), outer.pop()
            stack.append(items)
        elif name in _TUPLES:
            stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
        elif name in ("REDUCE", "NEWOBJ"):
            given = stack.pop()
            stack[-1] = _called(stack[-1], given)
        elif name == "BUILD":
            stack.pop()
            if not (isinstance(stack[-1], _Global) and stack[-1].called):
                raise ValueError("sets up something else than a tensor or a dictionary")
        elif name == "BINPERSID":
            storage = _storage(stack.pop())
            total += 0 if storage in storages else storage.taken
            storages.add(storage)
            stack.append(storage)
            if total > most:
                raise ValueError("its tensors are larger than the file")
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[value])
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[value] = stack[-1]
        elif name not in ("PROTO", "STOP"):
            raise ValueError(f"holds {name}")


def _called(what: Any, given: Any) -> _Global:
    """What a call gives.

    Raises:
        ValueError: of something that could take any memory.
    """
    if not isinstance(what, _Global) or what.called:
        raise ValueError("calls what is nothing to call")
    # without sizes these are empty; as files of before 2018 begin with them
    if what.name not in _CALLED and not (given == () and _EMPTY_TENSOR.fullmatch(what.name)):
        raise ValueError("calls something else than what makes tensors")
    if what.name.startswith("torch._utils _rebuild_tensor"):  # a storage grows to what a tensor wants
        storage, offset, shape, strides = given[:4]
        last = offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
        if not isinstance(storage, _Storage) or min(offset, *shape, *strides, 0) < 0:
            raise ValueError("a tensor of another kind")
        if math.prod(shape) and (last + 1) * storage.size > storage.taken:
            raise ValueError("a tensor larger than its storage")
    return _Global(what.name, called=True)


def _storage(saved: Any) -> _Storage:
    """What stands for a storage, by its key, kind and length."""
    if isinstance(saved, tuple) and len(saved) >= 5 and isinstance(saved[1], _Global):
        kind, key, numbers = _STORAGE.fullmatch(saved[1].name), saved[2], saved[4]
        if kind and kind[1] in _SIZES and isinstance(key, str | int) and isinstance(numbers, int):
            if numbers < 0:
                raise ValueError("a storage of less than nothing")
            return _Storage(key, numbers * _SIZES[kind[1]], _SIZES[kind[1]])
    raise ValueError("a storage of another kind")


if __name__ == "__main__":
    _main(*sys.argv[1:])
