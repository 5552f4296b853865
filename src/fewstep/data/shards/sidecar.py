"""Reads the parquet of metadata that img2dataset writes beside a tar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

import pyarrow as pa

from fewstep.data.shards.tables import open_parquet, read_parquet
from fewstep.data.sources import captions
from fewstep.data.sources.metadata import PictureMetadata, read_rows, read_texts, select_columns

_KEY = ("key",)


def read_sidecar(file: BinaryIO, wanted: Sequence[str]) -> dict[str, PictureMetadata]:
    """Reads what is said of the pictures, by key. Raises ValueError where the file cannot be read."""
    try:
        parquet = open_parquet(file)
        names = parquet.schema_arrow.names
        keys = captions.find_columns(names, _KEY)
        if not keys:
            raise ValueError("no column of keys")
        table = read_parquet(parquet, [*keys, *select_columns(parquet.schema_arrow, wanted)])
    except (pa.ArrowException, OSError) as error:
        raise ValueError(str(error)) from error
    rows = zip(read_texts(table[keys[0]]), read_rows(table, wanted), strict=True)
    return {key.decode("utf-8", "backslashreplace"): row for key, row in rows if key is not None}
