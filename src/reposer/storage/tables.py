"""Parquet tables, read in this thread, in memory that is bounded before anything is unpacked.

A file's footer says how much there is, and may lie; the header of each page says it again, and that is what a
reader goes by. So the headers are counted: a struct each, in Thrift's compact protocol (parquet.thrift).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from reposer.storage.paths import require_regular

MAX_DECODED_BYTES = 4_000_000_000  # of memory; Parquet compresses, so a small file may hold a bomb
_BATCH, _FEW = 4096, 64  # rows
_NESTED_BYTES = 12  # of one value in a list: itself and its two levels
# encodings of parquet.thrift: PLAIN_DICTIONARY and RLE_DICTIONARY; DELTA_BYTE_ARRAY, where texts begin alike
_DICTIONARIES, _DELTA_TEXTS = (2, 8), 7
_PAGES_OF_VALUES = {0: (5, 2), 3: (8, 4)}  # type -> field that describes it, and that field's encoding
_MAX_PAGE_HEADER, _MOST_PAGES = 16 * 2**20, 100_000  # bytes: Arrow's own limit; of a column in a row group
_PADDING = 100  # bytes that Arrow reads beyond a column of some old writers


def parquet_bytes(table: pa.Table, compression: str = "snappy") -> bytes:
    """The Parquet file of a table, to be written whole or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression=compression)
    return bytes(sink.getvalue())


def read_table(source: str | Path | bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a Parquet file or of its bytes; some columns of them, or all.

    ``pq.read_table`` reads in threads of Arrow's; one that is still winding up when Python ends aborts the
    process (pyarrow 26, about one short command in 40 on a busy machine).

    Raises:
        OSError, pyarrow.ArrowException: no Parquet file, or a damaged one; a missing column; it would unpack
            to more than MAX_DECODED_BYTES.
        RefusedFileError: no regular file, or none at all.
    """
    if isinstance(source, bytes):
        opened: str | pa.BufferReader = pa.BufferReader(source)
    else:
        require_regular(Path(source))
        opened = parquet_source(source)
    with pq.ParquetFile(opened) as file:
        check_decoded(file, opened)
        return file.read(columns=None if columns is None else list(columns), use_threads=False)


def parquet_source(path: str | Path) -> str | pa.BufferReader:
    """What Arrow opens a file by: its path, or its bytes where the path is no UTF-8, which Arrow refuses."""
    text = str(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        with pa.OSFile(os.fsencode(text)) as file:
            return pa.BufferReader(file.read_buffer())
    return text


def parquet_sink(path: Path) -> pa.OSFile:
    """A new file, of any name, for Arrow to write to; the caller closes it."""
    return pa.OSFile(os.fsencode(path), "wb")


def check_decoded(file: pq.ParquetFile, source: str | pa.BufferReader, most: int = MAX_DECODED_BYTES) -> None:
    """Refuse a file whose rows would take more than ``most`` bytes of memory, whatever its footer says.

    A text that a dictionary holds once may fill a million rows, of which nothing tells beforehand: where that
    could be, texts are counted as places in their dictionaries.

    Raises:
        pyarrow.ArrowInvalid: it would, or a page's header is none.
    """
    metadata = file.metadata
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    columns = [
        (number, group.column(i), file.schema.column(i))
        for number, group in enumerate(groups)
        for i in range(group.num_columns)
    ]
    claims = [group.total_byte_size for group in groups], [8 * chunk.num_values for _, chunk, _ in columns]
    if any(min(claim, default=0) < 0 or sum(claim) > most for claim in claims):
        raise _too_much(most)
    with pa.OSFile(source) if isinstance(source, str) else nullcontext(source) as pages:
        chunks = [_Chunk.counted(pages, *column) for column in columns]
    total = sum(max(chunk.unpacked, chunk.values * chunk.width) for chunk in chunks)
    rows, values = metadata.num_rows, sum(chunk.values for chunk in chunks)
    width = max((chunk.width for chunk in chunks), default=0)
    total += width * sum(_in_fixed_lists(kind, rows, values) for kind in file.schema_arrow.types)
    texts = [chunk for chunk in chunks if chunk.is_text]
    longest = [chunk.unpacked for chunk in texts]  # no text is longer than its part of the file
    if total <= most < sum(map(_Chunk.text_bytes, texts, longest)):
        paths = {chunk.path for chunk in texts}
        paths -= {chunk.path for chunk in texts if chunk.nested or chunk.deltas}  # Arrow counts none of these
        found = _text_bytes(source, sorted(paths), most) if paths else 0
        found += sum(c.text_bytes(_longest(source, c)) for c in texts if c.path not in paths)
        total = max(total, found)
    if total > most:
        raise _too_much(most)


def _too_much(most: int) -> pa.ArrowInvalid:
    return pa.ArrowInvalid(f"unpacks to more than {most:,} bytes")


def _in_fixed_lists(kind: pa.DataType, entries: int, values: int) -> int:
    """Numbers that lists of a fixed size take, those of lists that are null as well: no page holds these.

    Args:
        entries: of this column.
        values: more than the entries of any list in the file.
    """
    if isinstance(kind, pa.BaseExtensionType):
        return _in_fixed_lists(kind.storage_type, entries, values)
    if pa.types.is_struct(kind):
        return sum(_in_fixed_lists(kind.field(i).type, entries, values) for i in range(kind.num_fields))
    if pa.types.is_fixed_size_list(kind):
        numbers: int = entries * kind.list_size
        return numbers + _in_fixed_lists(kind.value_type, numbers, values)
    if pa.types.is_map(kind):
        return sum(_in_fixed_lists(part, values, values) for part in (kind.key_type, kind.item_type))
    return _in_fixed_lists(kind.value_type, values, values) if pa.types.is_nested(kind) else 0


@dataclass(frozen=True)
class _Chunk:
    """A column of a row group, as its pages say it is."""

    group: int
    path: str  # in the schema
    values: int  # nulls as well
    unpacked: int  # bytes of its pages
    width: int  # bytes of a value in memory; of a text, of its place
    is_text: bool
    nested: bool  # in structs or lists
    places: int  # values that are places in a dictionary
    deltas: int  # values that are texts which begin as others

    @classmethod
    def counted(cls, pages: pa.NativeFile, group: int, chunk: Any, column: Any) -> _Chunk:
        """Count what a reader would unpack: from its first page until there are as many as the footer says.

        Args:
            chunk: pyarrow's ColumnChunkMetaData.
            column: pyarrow's ColumnSchema.
        """
        unpacked = number_of_pages = 0
        of_encoding: Counter[int] = Counter()
        start, first = chunk.data_page_offset, chunk.dictionary_page_offset
        at = first if first and 0 < first < start else start
        end = min(start + chunk.total_compressed_size + _PADDING, pages.size())
        while of_encoding.total() < chunk.num_values and 0 <= at < end:
            number_of_pages += 1
            header, at = _page_header(pages, at)
            if number_of_pages > _MOST_PAGES:
                raise pa.ArrowInvalid(f"a column in more than {_MOST_PAGES:,} pages")
            unpacked += _natural(header, 2)
            at += _natural(header, 3)
            if (described := _PAGES_OF_VALUES.get(_natural(header, 1))) is not None:
                number, encoding = described
                if not isinstance(header.get(number), dict):
                    raise _no_header()
                of_encoding[_natural(header[number], encoding)] += _natural(header[number], 1)
        return cls(
            group,
            chunk.path_in_schema,
            of_encoding.total(),
            unpacked,
            max(_NESTED_BYTES if column.max_repetition_level else 8, column.length),
            column.physical_type == "BYTE_ARRAY",
            column.path != column.name,
            sum(of_encoding[encoding] for encoding in _DICTIONARIES),
            of_encoding[_DELTA_TEXTS],
        )

    def text_bytes(self, longest: int) -> int:
        """The most bytes that its texts take, where its dictionary's longest has this number."""
        return self.unpacked + self.places * longest + self.deltas * self.unpacked


def _no_header() -> pa.ArrowInvalid:
    return pa.ArrowInvalid("damaged: a page without a header")


def _natural(fields: dict[int, Any], number: int) -> int:
    value = fields.get(number)
    if not isinstance(value, int) or value < 0:
        raise _no_header()
    return value


def _page_header(pages: pa.NativeFile, at: int) -> tuple[dict[int, Any], int]:
    """The fields of the page header at this place of the file, by their numbers, and the place behind it."""
    size = 256
    while True:
        data = pages.read_at(size, at)
        try:
            fields, length = _struct(data, 0)
            return fields, at + length
        except IndexError:  # more of it is to come
            if len(data) < size or size >= _MAX_PAGE_HEADER:
                raise _no_header() from None
            size *= 4
        except RecursionError:
            raise _no_header() from None


def _struct(data: bytes, at: int) -> tuple[dict[int, Any], int]:
    """A struct of Thrift's compact protocol: its whole numbers of 32 bits and its structs; where it ends."""
    fields: dict[int, Any] = {}
    last = 0
    while head := data[at]:
        step, kind, at = head >> 4, head & 15, at + 1
        if not step:
            last, at = _zigzag(data, at)
        last += step
        if last in fields or not 0 < last < 2**15:  # a reader might take another one for it
            raise _no_header()
        fields[last], at = _value(data, at, kind)
    return fields, at + 1


def _value(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind in (1, 2):  # true and false are told by their kind
        return None, at
    if kind == 5:
        return _zigzag(data, at)
    if kind in (4, 6):  # whole numbers of other sizes
        return None, _varint(data, at)[1]
    if kind == 8:  # bytes
        size, at = _varint(data, at)
        data[at + size]  # is there, since the struct goes on
        return None, at + size
    if kind == 12:
        return _struct(data, at)
    raise _no_header()  # nothing else stands in a page's header


def _zigzag(data: bytes, at: int) -> tuple[int, int]:
    number, at = _varint(data, at)
    if number >= 2**32:
        raise _no_header()
    return (number >> 1) ^ -(number & 1), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        number |= (data[at] & 127) << shift
        shift += 7
        at += 1
        if data[at - 1] < 128:
            return number, at
        if shift > 63:
            raise _no_header()


def _text_bytes(source: str | pa.BufferReader, paths: list[str], most: int) -> int:
    """Bytes of all texts of these columns; counted no further than ``most``."""
    total = 0
    for batch in _as_dictionaries(source, paths, _BATCH):
        for column in batch.columns:
            lengths = pc.binary_length(column.dictionary.cast(pa.binary()))
            total += pc.sum(pc.take(lengths, column.indices).cast(pa.int64())).as_py() or 0
        if total > most:
            break
    return total


def _longest(source: str | pa.BufferReader, chunk: _Chunk) -> int:
    """Bytes of the longest text in the dictionary of a column; it comes whole with the first value."""
    for batch in _as_dictionaries(source, [chunk.path], _FEW, [chunk.group]) if chunk.places else ():
        found = batch.column(0)
        while not isinstance(found, pa.DictionaryArray):
            found = found.flatten()[0] if isinstance(found, pa.StructArray) else found.flatten()
        if len(found.dictionary):
            longest: int = pc.max(pc.binary_length(found.dictionary.cast(pa.binary()))).as_py()
            return longest
    return 0


def _as_dictionaries(
    source: str | pa.BufferReader, paths: list[str], rows: int, groups: list[int] | None = None
) -> Iterator[pa.RecordBatch]:
    """The rows of columns of texts, which stay places in dictionaries."""
    try:
        with pq.ParquetFile(source, read_dictionary=paths) as file:
            yield from file.iter_batches(rows, row_groups=groups, columns=paths, use_threads=False)
    finally:
        if isinstance(source, pa.BufferReader):
            source.seek(0)
