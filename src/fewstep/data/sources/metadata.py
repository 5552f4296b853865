"""Reads the columns of a parquet file that describe pictures: names, captions, scores and download status."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fewstep.data.sources import captions
from fewstep.data.sources.filters import NO_SCORES, SCORES, parse_number

DOWNLOADED = "success"
"""The status that img2dataset writes for a picture that it could download."""
_KEY, _STATUS = ("key",), ("status",)


@dataclass(frozen=True)
class PictureMetadata:
    """What the metadata say about one picture."""

    caption: str | bytes | None
    scores: tuple[float, ...]
    status: str = ""
    """Whether the picture was downloaded; empty where the metadata do not say."""


def read_rows(table: pa.Table, wanted: Sequence[str]) -> list[PictureMetadata]:
    """Reads every row; `wanted` are the columns that hold captions, by default `captions.NAMES`."""
    texts: list[bytes | None] = [None] * len(table)
    for column in reversed(captions.find_columns(table.column_names, wanted or captions.NAMES)):
        texts = [own if own is not None else other for own, other in zip(read_texts(table[column]), texts, strict=True)]
    found = captions.find_columns(table.column_names, _STATUS)
    statuses = read_texts(table[found[0]]) if found else [None] * len(table)
    return [
        PictureMetadata(text, tuple(scores), (status or b"").decode("utf-8", "replace"))
        for text, scores, status in zip(texts, _scores(table).tolist(), statuses, strict=True)
    ]


def select_columns(names: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """Selects the columns that `read_rows` needs."""
    scores = [name for score in SCORES.values() for name in score]
    return captions.find_columns(names, [*dict.fromkeys((*(wanted or captions.NAMES), *_STATUS, *scores))])


def read_sidecar(file: BinaryIO, wanted: Sequence[str]) -> dict[str, PictureMetadata]:
    """Reads the parquet that img2dataset writes beside a tar, by key. Raises ValueError where it cannot be read."""
    try:
        parquet = pq.ParquetFile(file)
        names = parquet.schema_arrow.names
        keys = captions.find_columns(names, _KEY)
        if not keys:
            raise ValueError("no column of keys")
        table = parquet.read(columns=[*keys, *select_columns(names, wanted)])
    except (pa.ArrowException, OSError) as error:
        raise ValueError(str(error)) from error
    rows = zip(read_texts(table[keys[0]]), read_rows(table, wanted), strict=True)
    return {key.decode("utf-8", "backslashreplace"): row for key, row in rows if key is not None}


def read_texts(column: pa.ChunkedArray) -> list[bytes | None]:
    """Reads a column as bytes, since parquet strings need not be UTF-8; None where there is no text."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if pa.types.is_integer(kind):
        column = column.cast(pa.string())
    elif not (is_text(kind) or is_bytes(kind)):
        return [None] * len(column)
    texts: list[bytes | None] = column.cast(pa.large_binary()).to_pylist()
    return texts


def is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _scores(table: pa.Table) -> NDArray[np.float64]:
    scores = np.full((len(table), len(NO_SCORES)), math.nan)
    for column, names in enumerate(SCORES.values()):
        for name in captions.find_columns(table.column_names, names):
            values = scores[:, column]
            scores[:, column] = np.where(np.isnan(values), _numbers(table[name]), values)
    return scores


def _numbers(column: pa.ChunkedArray) -> NDArray[np.float64]:
    try:
        found = pc.cast(column, pa.float64(), safe=False).to_numpy().astype(np.float64)
    except pa.ArrowException:
        texts = read_texts(column)
        found = np.array(
            [parse_number(text.decode("utf-8", "replace") if text else None) for text in texts], np.float64
        )
    return np.where(np.isfinite(found), found, math.nan)
