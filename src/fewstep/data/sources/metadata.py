"""Reads the columns of a table that describe pictures: names, captions, scores and download status."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fewstep.data.sources import captions
from fewstep.data.sources.filters import NO_SCORES, SCORES, parse_number
from fewstep.errors import UserError

DOWNLOADED = "success"
"""The status that img2dataset writes for a picture that it could download."""
PATHS = (
    "file_name", "filename", "file_path", "filepath", "image_path", "image_file_name", "image_file", "file", "path",
    "image", "img", "key",
)  # fmt: skip
"""Columns that hold paths of pictures, of which the first that is there counts."""
_STATUS = ("status",)


class PictureMetadata(NamedTuple):
    """What the metadata say about one picture."""

    caption: object
    """A text, several in a list, or anything else where there is none."""
    scores: tuple[float, ...]
    status: str = ""
    """Whether the picture was downloaded; empty where the metadata do not say."""


def read_rows(table: pa.Table, wanted: Sequence[str]) -> list[PictureMetadata]:
    """Reads every row; `wanted` are the columns that hold captions, by default the usual ones."""
    if len(set(table.column_names)) < len(table.column_names):
        raise UserError("a table has two columns of one name; write it again with one of each")
    texts: list[object] = [None] * len(table)
    for column in reversed(captions.choose_columns(_list_texts(table.schema), wanted)):
        own = _read_captions(table[column])
        texts = [each if each is not None else other for each, other in zip(own, texts, strict=True)]
    found = captions.find_columns(table.column_names, _STATUS)
    statuses = read_texts(table[found[0]]) if found else [None] * len(table)
    return [
        PictureMetadata(text, tuple(scores), (status or b"").decode("utf-8", "replace"))
        for text, scores, status in zip(texts, _read_scores(table).tolist(), statuses, strict=True)
    ]


def select_columns(schema: pa.Schema, wanted: Sequence[str]) -> list[str]:
    """Selects the columns that `read_rows` needs."""
    scores = [name for score in SCORES.values() for name in score]
    others = captions.find_columns(schema.names, (*_STATUS, *scores))
    return [*dict.fromkeys((*captions.choose_columns(_list_texts(schema), wanted), *others))]


def _list_texts(schema: pa.Schema) -> list[str]:
    """Lists the columns whose type can hold captions."""
    return [field.name for field in schema if _holds_text(field.type)]


def _holds_text(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_dictionary(kind):
        kind = kind.value_type
        return is_text(kind) or is_bytes(kind) or bool(pa.types.is_struct(kind))
    return is_text(kind) or is_bytes(kind) or bool(pa.types.is_integer(kind))


def _read_captions(column: pa.ChunkedArray) -> Sequence[object]:
    """Reads texts or lists of texts as bytes, which need not be UTF-8, and lists of structs as they are."""
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        return read_texts(column)
    whole = not pa.types.is_struct(column.type.value_type)
    values: list[object] = (column.cast(pa.large_list(pa.large_binary())) if whole else column).to_pylist()
    return values


def read_texts(column: pa.ChunkedArray) -> list[bytes | None]:
    """Reads a column as bytes, since parquet strings need not be UTF-8; None where there is no text."""
    if pa.types.is_dictionary(column.type):  # each value once, however many rows have it
        return [text for chunk in column.chunks for text in _look_up(chunk)]
    kind = column.type
    if pa.types.is_integer(kind):
        column = column.cast(pa.string())
    elif not (is_text(kind) or is_bytes(kind)):
        return [None] * len(column)
    texts: list[bytes | None] = column.cast(pa.large_binary()).to_pylist()
    return texts


def _look_up(chunk: pa.DictionaryArray) -> list[bytes | None]:
    texts = read_texts(pa.chunked_array([chunk.dictionary]))
    return [None if place is None else texts[place] for place in chunk.indices.to_pylist()]


def is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _read_scores(table: pa.Table) -> NDArray[np.float64]:
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
