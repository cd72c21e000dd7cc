"""Parquet tables, read in this thread."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

MAX_DECODED_BYTES = 4_000_000_000  # of memory; Parquet compresses, so a small file may hold a bomb
_BATCH = 4096  # rows


def read_table(source: str | Path | bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a Parquet file or of its bytes; some columns of them, or all.

    ``pq.read_table`` reads in threads of Arrow's; one that is still winding up when Python ends aborts the
    process (pyarrow 26, about one short command in 40 on a busy machine).

    Raises:
        OSError, pyarrow.ArrowException: no Parquet file, or a damaged one; a missing column; it would unpack
            to more than MAX_DECODED_BYTES.
    """
    opened = pa.BufferReader(source) if isinstance(source, bytes) else str(source)
    with pq.ParquetFile(opened) as file:
        check_decoded(file, opened)
        return file.read(columns=None if columns is None else list(columns), use_threads=False)


def check_decoded(file: pq.ParquetFile, source: str | pa.BufferReader, most: int = MAX_DECODED_BYTES) -> None:
    """Refuse a file whose rows would take more than ``most`` bytes of memory.

    A text that a dictionary holds once may fill a million rows, of which the footer says nothing: where that
    could be, texts are counted as places in their dictionaries. A row of a list column may hold any number of
    values, whatever the footer says: there the headers of the pages count.

    Raises:
        pyarrow.ArrowInvalid: it would, or a page has no header.
    """
    metadata = file.metadata
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    total = sum(group.total_byte_size for group in groups)
    values = possible = 0
    texts: dict[str, None] = {}  # paths, each once
    for group in groups:
        for i in range(group.num_columns):
            chunk, count = group.column(i), max(group.num_rows, group.column(i).num_values)
            if file.schema.column(i).max_repetition_level:
                count = max(count, _values_in_pages(chunk, source))
            values += count
            if chunk.physical_type == "BYTE_ARRAY":  # a text is no longer than its part of the file
                texts[chunk.path_in_schema] = None
                possible += count * chunk.total_uncompressed_size
    total = max(total, 8 * values)
    if total <= most < possible:
        total = _text_bytes(source, list(texts), most)
    if not 0 <= total <= most:
        raise pa.ArrowInvalid(f"unpacks to more than {most:,} bytes")


def _text_bytes(source: str | pa.BufferReader, texts: list[str], most: int) -> int:
    """Bytes of all texts of these columns; counted no further than ``most``."""
    total = 0
    _to_start(source)
    with pq.ParquetFile(source, read_dictionary=texts) as file:
        for batch in file.iter_batches(_BATCH, columns=texts, use_threads=False):
            total += sum(map(_bytes_of, batch.columns))
            if total > most:
                break
    _to_start(source)
    return total


def _bytes_of(column: pa.Array) -> int:
    """Bytes of all texts of a column, those in its lists too."""
    if isinstance(column, pa.DictionaryArray):
        lengths = pc.binary_length(column.dictionary.cast(pa.binary()))
        return int(pc.sum(pc.take(lengths, column.indices).cast(pa.int64())).as_py() or 0)
    if isinstance(column, pa.StructArray):
        return sum(map(_bytes_of, column.flatten()))
    if isinstance(column, pa.MapArray):
        return _bytes_of(column.keys) + _bytes_of(column.items)
    if pa.types.is_nested(column.type):
        return _bytes_of(column.flatten())
    return int(column.nbytes)


def _to_start(source: str | pa.BufferReader) -> None:
    if isinstance(source, pa.BufferReader):
        source.seek(0)


# ---- Headers of Parquet's pages: Thrift's compact protocol, as far as they use it
# (parquet.thrift and thrift-compact-protocol.md of Apache's repositories).

_COMPRESSED_SIZE, _PAGES_OF_DATA, _NUM_VALUES = 3, (5, 8), 1  # fields
_BOOLEANS, _BYTE, _INTEGERS, _DOUBLE, _BINARY, _STRUCT = (1, 2), 3, (4, 5, 6), 7, 8, 12  # types


def _values_in_pages(chunk: pq.ColumnChunkMetaData, source: str | pa.BufferReader) -> int:
    """Values that the pages of a column say they hold."""
    start = chunk.data_page_offset
    if chunk.has_dictionary_page and chunk.dictionary_page_offset:
        start = min(start, chunk.dictionary_page_offset)
    length = chunk.total_compressed_size
    if start < 0 or length < 0:
        raise pa.ArrowInvalid("a column lies outside the file")
    if isinstance(source, str):
        with open(source, "rb") as file:
            file.seek(start)
            data = file.read(min(length, os.path.getsize(source)))
    else:
        source.seek(start)
        data = source.read(min(length, source.size()))
        source.seek(0)
    place = values = 0
    try:
        while place < len(data):
            header, place = _struct(data, place)
            values += sum(header[field][_NUM_VALUES] for field in _PAGES_OF_DATA if field in header)
            place += max(0, header[_COMPRESSED_SIZE])
    except (IndexError, KeyError, TypeError) as error:
        raise pa.ArrowInvalid("a page has no header") from error
    return values


def _struct(data: bytes, place: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """Number -> value of the fields of a struct that begins at ``place``, and where it ends."""
    fields: dict[int, Any] = {}
    number = 0
    while head := data[place]:
        place += 1
        number += head >> 4
        if not head >> 4:  # the number itself follows
            number, place = _integer(data, place)
        fields[number], place = _value(data, place, head & 15, depth)
    return fields, place + 1


def _value(data: bytes, place: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in _BOOLEANS:
        return kind == 1, place
    if kind in _INTEGERS:
        return _integer(data, place)
    if kind == _BYTE:
        return data[place], place + 1
    if kind == _DOUBLE:
        return None, place + 8
    if kind == _BINARY:
        length, place = _varint(data, place)
        return None, place + length
    if kind == _STRUCT and depth < 4:
        return _struct(data, place, depth + 1)
    raise KeyError(kind)


def _integer(data: bytes, place: int) -> tuple[int, int]:
    value, place = _varint(data, place)
    return (value >> 1) ^ -(value & 1), place


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise KeyError("a number is too long")
