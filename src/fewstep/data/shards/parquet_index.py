"""Indexes parquet shards, and reads the pictures of a row group."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from fewstep.data.shards.index import ABOUT_SHARD, Entry, IndexBuilder, ShardIndex
from fewstep.data.sources import captions
from fewstep.data.sources.base import DroppedError, Reason
from fewstep.data.sources.decoding import SUFFIXES
from fewstep.data.sources.metadata import DOWNLOADED, is_bytes, is_text, read_rows, read_texts, select_columns
from fewstep.data.sources.urls import is_remote, leaves_folder, local_path
from fewstep.errors import UserError

MAX_GROUP = 1 << 30
"""Most bytes in a row group, since its pictures can only be read together."""
_PICTURES = ("image", "jpg", "jpeg", "png", "webp", "img", "picture", "image_bytes", "bytes", "content", "data")
_PATHS = ("file_name", "filename", "file_path", "filepath", "image_path", "path", "image", "key")
_NAMES = ("key", "file_name", "filename", "image_path", "file_path", "filepath", "path", "id", "image_id")


@dataclass(frozen=True)
class Layout:
    """The columns of a parquet file that hold its pictures: bytes, `{bytes, path}` structs, or paths alone."""

    pictures: str
    """Column of bytes, or of structs with bytes; empty where there is none."""
    paths: str
    """Column or struct field with paths of pictures beside the file; empty where there is none."""
    names: str
    """Column or struct field that names the rows; empty where they are numbered."""


def find_layout(schema: pa.Schema) -> Layout | None:
    """Recognises the columns by type and name; None where there are neither pictures nor paths."""
    holding = [field.name for field in schema if _holds_bytes(field.type)]
    named = captions.find_columns(holding, _PICTURES) or (holding if len(holding) == 1 else [])
    texts = [field.name for field in schema if is_text(field.type)]
    keys = [field.name for field in schema if pa.types.is_integer(field.type)]
    names = captions.find_columns([*texts, *keys], _NAMES)
    if named:
        inner = _has_field(schema.field(named[0]).type, "path")
        path = f"{named[0]}.path" if inner else ""
        return Layout(named[0], path, names[0] if names else path)
    paths = captions.find_columns(texts, _PATHS)
    return Layout("", paths[0], paths[0]) if paths else None


def _holds_bytes(kind: pa.DataType) -> bool:
    return is_bytes(kind) or _has_field(kind, "bytes")


def _has_field(kind: pa.DataType, name: str) -> bool:
    return bool(pa.types.is_struct(kind) and kind.get_field_index(name) >= 0)


def index_parquet(file: BinaryIO, url: str, name: str, wanted: tuple[str, ...] = ()) -> ShardIndex:
    """Indexes a file without reading its pictures. Raises UserError, with its columns, where it has no pictures."""
    builder = IndexBuilder()
    try:
        parquet = pq.ParquetFile(file)
        layout = find_layout(parquet.schema_arrow)
        if layout is None:
            raise UserError(
                f"{name} has no column of pictures (bytes, or a struct of bytes and path) nor of paths (file_name); "
                f"its columns are {', '.join(parquet.schema_arrow.names)[:500]}"
            )
        _check_groups(parquet.metadata, layout, name)
        _add_rows(parquet, layout, builder, _make_finder(url) if not layout.pictures else None, wanted)
    except (pa.ArrowException, OSError, ValueError):  # ValueError: names of columns that are not UTF-8
        builder.tally.drop(Reason.DAMAGED_SHARD, ABOUT_SHARD)
    return builder.build()


def _check_groups(metadata: pq.FileMetaData, layout: Layout, name: str) -> None:
    for number in range(metadata.num_row_groups if layout.pictures else 0):
        # Not the size of the column alone: pyarrow aborts the process where that part of the metadata is damaged.
        size = metadata.row_group(number).total_byte_size
        if size > MAX_GROUP:
            raise UserError(
                f"{name} has {size:,} bytes in one row group and {MAX_GROUP:,} is the most that is read at "
                "once; write it again with a smaller row_group_size"
            )


def _add_rows(
    parquet: pq.ParquetFile, layout: Layout, builder: IndexBuilder, find: Callable[[str], str] | None,
    wanted: tuple[str, ...],
) -> None:  # fmt: skip
    described = select_columns([name for name in parquet.schema_arrow.names if name != layout.pictures], wanted)
    leaves = [name for name in dict.fromkeys((layout.names, layout.paths)) if name]
    table = parquet.read(columns=[*dict.fromkeys((*leaves, *described))])
    names, paths = (_read_leaf(table, leaf, parquet.metadata.num_rows) for leaf in (layout.names, layout.paths))
    rows = read_rows(table if described else pa.table({"": pa.nulls(parquet.metadata.num_rows)}), wanted)
    for row, (name, path, metadata) in enumerate(zip(names, paths, rows, strict=True)):
        key = name or str(row)
        try:
            if metadata.status not in ("", DOWNLOADED):
                raise DroppedError(Reason.NOT_DOWNLOADED)
            found = find(path) if find else path
            builder.add(Entry(key, row, -1, captions.clean(metadata.caption), found), metadata.scores)
        except DroppedError as dropped:
            builder.tally.drop(dropped.reason, key)


def _read_leaf(table: pa.Table, leaf: str, rows: int) -> list[str]:
    if not leaf:
        return [""] * rows
    column, _, inner = leaf.partition(".")
    values = (
        table[leaf]
        if leaf in table.column_names
        else pa.chunked_array(
            [chunk.field(inner) for chunk in table[column].chunks], table.schema.field(column).type.field(inner).type
        )
    )
    return [(text or b"").decode("utf-8", "backslashreplace") for text in read_texts(values)]


def _make_finder(url: str) -> Callable[[str], str]:
    """Makes a function that checks paths of pictures beside the file, and completes those without a suffix."""
    folder = os.path.dirname(local_path(url))

    def find(path: str) -> str:
        if leaves_folder(path):
            raise DroppedError(Reason.OUTSIDE)
        if is_remote(url) and path:
            return path
        for candidate in (path, *(path + suffix for suffix in SUFFIXES)):
            if os.path.isfile(os.path.join(folder, candidate)):
                return candidate
        raise DroppedError(Reason.MISSING)

    return find


def read_first_rows(file: BinaryIO) -> list[int]:
    """Returns the first row of every row group and, last, the number of rows."""
    metadata = pq.read_metadata(file)
    sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    return list(itertools.accumulate(sizes, initial=0))


def read_group(file: BinaryIO, number: int) -> pa.Array:
    """Reads the pictures of a row group as bytes; all are null where the file has paths alone."""
    parquet = pq.ParquetFile(file)
    layout = find_layout(parquet.schema_arrow)
    if layout is None or not layout.pictures:
        return pa.nulls(parquet.metadata.row_group(number).num_rows)
    column = parquet.read_row_group(number, columns=[layout.pictures])[layout.pictures].combine_chunks()
    return column.field("bytes") if pa.types.is_struct(column.type) else column
