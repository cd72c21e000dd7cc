"""Parquet tables, read in this thread."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def read_table(source: str | Path | bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a Parquet file or of its bytes; some columns of them, or all.

    ``pq.read_table`` reads in threads of Arrow's; one that is still winding up when Python ends aborts the
    process (pyarrow 26, about one short command in 40 on a busy machine).

    Raises:
        OSError, pyarrow.ArrowException: no Parquet file, or a damaged one; a missing column.
    """
    opened = pa.BufferReader(source) if isinstance(source, bytes) else str(source)
    with pq.ParquetFile(opened) as file:
        return file.read(columns=None if columns is None else list(columns), use_threads=False)
