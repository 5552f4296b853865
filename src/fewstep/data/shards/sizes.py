"""Width and height of the pictures of a shard, read once from their headers and kept beside its index."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fewstep.data.shards.index import Entry, ShardIndex, write_table
from fewstep.data.sources.base import DroppedError
from fewstep.data.sources.decoding import read_upright_size

NO_SIZES = np.zeros((0, 2), np.int64)
_HEADER = 1 << 16
"""Bytes of a picture in which nearly every header says the size."""
_SCHEMA = pa.schema([("width", pa.int64()), ("height", pa.int64())])


def measure_pictures(
    index: ShardIndex, path: Path, read: Callable[[Entry, int], bytes], most: int
) -> NDArray[np.int64]:  # fmt: skip
    """Returns width and height of every picture of an index `[n, 2]`, zeros where its header says none.

    They are loaded from `path`, or read and kept there; `read` returns the beginning of a picture, of at most so many
    bytes, which are `most` where the size does not stand near the begin.
    """
    sizes = load_sizes(path)
    if len(sizes) != len(index.table):
        found = [_measure(index.entry(row), read, most) for row in range(len(index.table))]
        sizes = np.array(found, np.int64).reshape(-1, 2)
        write_table(pa.table(list(sizes.T), schema=_SCHEMA), path)
    return sizes


def load_sizes(path: Path) -> NDArray[np.int64]:
    """Loads what was kept there; nothing where no file can be read."""
    try:
        table = pq.read_table(path, schema=_SCHEMA)
        return np.stack([table[name].to_numpy() for name in _SCHEMA.names], axis=1)
    except (OSError, pa.ArrowException, ValueError):
        return NO_SIZES


def _measure(entry: Entry, read: Callable[[Entry, int], bytes], most: int) -> tuple[int, int]:
    for each in (_HEADER, most):
        try:
            return read_upright_size(read(entry, each))
        except DroppedError:
            continue
    return 0, 0
