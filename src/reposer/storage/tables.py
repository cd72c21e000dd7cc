"""Parquet tables, read in this thread."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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
    could be, texts are counted as places in their dictionaries.

    Raises:
        pyarrow.ArrowInvalid: it would.
    """
    metadata = file.metadata
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    chunks = [(group.num_rows, group.column(i)) for group in groups for i in range(group.num_columns)]
    total = sum(group.total_byte_size for group in groups)
    total = max(total, 8 * sum(chunk.num_values for _, chunk in chunks))
    texts = [field.name for field in file.schema_arrow if _is_text(field.type)]
    possible = sum(n * c.total_uncompressed_size for n, c in chunks if c.path_in_schema in texts)
    if total <= most < possible:  # a text is no longer than its part of the file
        total = _text_bytes(source, texts, most)
    if not 0 <= total <= most:
        raise pa.ArrowInvalid(f"unpacks to more than {most:,} bytes")


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(test(kind) for test in tests)


def _text_bytes(source: str | pa.BufferReader, texts: list[str], most: int) -> int:
    """Bytes of all texts of these columns; counted no further than ``most``."""
    total = 0
    if isinstance(source, pa.BufferReader):
        source.seek(0)
    with pq.ParquetFile(source, read_dictionary=texts) as file:
        for batch in file.iter_batches(_BATCH, columns=texts, use_threads=False):
            for column in batch.columns:
                lengths = pc.binary_length(column.dictionary.cast(pa.binary()))
                total += pc.sum(pc.take(lengths, column.indices).cast(pa.int64())).as_py() or 0
            if total > most:
                break
    if isinstance(source, pa.BufferReader):
        source.seek(0)
    return total
