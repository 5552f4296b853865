"""Opens parquet and Arrow files as tables whose pictures are read group by group."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

MOST_BYTES = 1 << 30
"""Most bytes in a row group, since its pictures can only be read together, and in the columns that describe them."""
_BATCH = 64
"""Rows decoded at once, since a few bytes of a file can stand for many large values."""
_ARROW_FILE = b"ARROW1"


class Table(Protocol):
    """Columns of rows in groups."""

    schema: pa.Schema
    starts: list[int]
    """Lists the first row of every group and, last, the number of rows."""
    group_bytes: list[int]
    """What each group takes in memory when it is read; 0 where it stays in the file."""

    def read_columns(self, names: Sequence[str]) -> pa.Table:
        """Reads columns of all rows, or single fields of structs: `image.path`."""
        ...

    def read_group(self, number: int, column: str) -> pa.Array:
        """Reads a column of one group."""
        ...


def read_parquet(file: pq.ParquetFile, columns: Sequence[str], groups: Sequence[int] | None = None) -> pa.Table:
    """Reads columns, or single fields of structs, of all row groups or of some.

    Raises pa.ArrowInvalid where they take more than `MOST_BYTES` of memory.
    """
    batches = []
    left = MOST_BYTES
    for batch in file.iter_batches(_BATCH, row_groups=groups, columns=list(columns)):
        left -= batch.nbytes
        if left < 0:
            raise pa.ArrowInvalid(f"its columns take more than {MOST_BYTES:,} bytes")
        batches.append(batch)
    schema = batches[0].schema if batches else file.schema_arrow
    return pa.Table.from_batches(batches, schema).combine_chunks()


def open_parquet(file: BinaryIO) -> pq.ParquetFile:
    """Opens a parquet file. Raises pa.ArrowInvalid where it has more rows than its bytes can mean."""
    parquet = pq.ParquetFile(file)
    _check_rows(parquet.metadata.num_rows, file.seek(0, os.SEEK_END))
    return parquet


def _check_rows(rows: int, size: int) -> None:
    """Raises pa.ArrowInvalid where a file of `size` bytes has more rows than bytes, which nothing worth reading has."""
    if rows > size:
        raise pa.ArrowInvalid(f"{rows:,} rows in {size:,} bytes")


class ParquetTable:
    """A parquet file, of which only what is asked for is read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = open_parquet(file)
        self.schema = self._file.schema_arrow
        groups = [self._file.metadata.row_group(number) for number in range(self._file.num_row_groups)]
        self.starts = list(itertools.accumulate((group.num_rows for group in groups), initial=0))
        # Not the size of the column alone: pyarrow aborts the process where that part of the metadata is damaged.
        self.group_bytes = [group.total_byte_size for group in groups]

    def read_columns(self, names: Sequence[str]) -> pa.Table:
        return read_parquet(self._file, names)

    def read_group(self, number: int, column: str) -> pa.Array:
        return read_parquet(self._file, [column], [number])[column].combine_chunks()


@dataclass
class ArrowTable:
    """An Arrow file or stream, as `datasets` saves it; nothing is copied out of the file before it is used."""

    file: BinaryIO
    _table: pa.Table = field(init=False)

    def __post_init__(self) -> None:
        mapped = pa.memory_map(self.file.name)
        is_file = mapped.read(len(_ARROW_FILE)) == _ARROW_FILE
        mapped.seek(0)
        with (pa.ipc.open_file if is_file else pa.ipc.open_stream)(mapped) as reader:
            self._table = reader.read_all()
        self._table.validate()
        _check_rows(len(self._table), os.fstat(self.file.fileno()).st_size)
        self.schema = self._table.schema
        batches = [len(batch) for batch in self._table.to_batches()]
        self.starts = list(itertools.accumulate(batches, initial=0))
        self.group_bytes = [0] * len(batches)

    def read_columns(self, names: Sequence[str]) -> pa.Table:
        return self._table.select([*dict.fromkeys(name.partition(".")[0] for name in names)])

    def read_group(self, number: int, column: str) -> pa.Array:
        first, end = self.starts[number : number + 2]
        return self._table[column].slice(first, end - first).combine_chunks()
