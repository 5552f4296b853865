"""The columns of a parquet file that describe pictures: names, captions, scores, and whether a download came."""

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
"""What img2dataset writes as the status of a picture that came."""
_KEY, _STATUS = ("key",), ("status",)


@dataclass(frozen=True)
class PictureMetadata:
    """What one row says of its picture."""

    caption: str | bytes | None
    scores: tuple[float, ...]
    status: str
    """Empty where the table has none."""


def read_rows(table: pa.Table, wanted: Sequence[str]) -> list[PictureMetadata]:
    """Row by row; `wanted` are the columns of captions, those of `captions.NAMES` where it is empty."""
    texts: list[bytes | None] = [None] * len(table)
    for column in reversed(captions.find_columns(table.column_names, wanted or captions.NAMES)):
        texts = [own if own is not None else other for own, other in zip(read_texts(table[column]), texts, strict=True)]
    statuses = _first_text(table, _STATUS)
    return [
        PictureMetadata(text, tuple(scores), (status or b"").decode("utf-8", "replace"))
        for text, scores, status in zip(texts, _scores(table).tolist(), statuses, strict=True)
    ]


def select_columns(names: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """Of all columns those that `describe` reads."""
    scores = [name for score in SCORES.values() for name in score]
    return captions.find_columns(names, [*dict.fromkeys((*(wanted or captions.NAMES), *_STATUS, *scores))])


def read_sidecar(file: BinaryIO, wanted: Sequence[str]) -> dict[str, PictureMetadata]:
    """What img2dataset's parquet beside a tar says, by its keys. Raises ValueError for a file that is none."""
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


def _first_text(table: pa.Table, names: Sequence[str]) -> list[bytes | None]:
    found = captions.find_columns(table.column_names, names)
    return read_texts(table[found[0]]) if found else [None] * len(table)


def read_texts(column: pa.ChunkedArray) -> list[bytes | None]:
    """As bytes, because parquet does not promise that its strings are UTF-8; None where there is no text."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if pa.types.is_integer(kind):
        column = column.cast(pa.string())
    elif not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or _is_bytes(kind)):
        return [None] * len(column)
    texts: list[bytes | None] = column.cast(pa.large_binary()).to_pylist()
    return texts


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _scores(table: pa.Table) -> NDArray[np.float64]:
    scores = np.full((len(table), len(NO_SCORES)), math.nan)
    for place, names in enumerate(SCORES.values()):
        for name in captions.find_columns(table.column_names, names):
            values = scores[:, place]
            scores[:, place] = np.where(np.isnan(values), _numbers(table[name]), values)
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
