"""Indexes the tables of parquet and Arrow shards, and reads the pictures of a row group."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from fewstep.data.shards.index import ABOUT_SHARD, Entry, IndexBuilder, ShardIndex
from fewstep.data.shards.tables import MOST_BYTES, Table
from fewstep.data.sources import captions
from fewstep.data.sources.base import DroppedError
from fewstep.data.sources.decoding import SUFFIXES
from fewstep.data.sources.filters import Reason
from fewstep.data.sources.metadata import DOWNLOADED, PATHS, is_bytes, is_text, read_rows, read_texts, select_columns
from fewstep.data.sources.places import Place
from fewstep.data.sources.selection import Selection
from fewstep.errors import UserError

_PICTURES = ("image", "jpg", "jpeg", "png", "webp", "img", "picture", "image_bytes", "bytes", "content", "data")
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
    paths = captions.find_columns(texts, PATHS)
    return Layout("", paths[0], paths[0]) if paths else None


def _holds_bytes(kind: pa.DataType) -> bool:
    return is_bytes(kind) or _has_field(kind, "bytes")


def _has_field(kind: pa.DataType, name: str) -> bool:
    return bool(pa.types.is_struct(kind) and kind.get_field_index(name) >= 0)


def index_table(open_table: Callable[[], Table], folder: Place, name: str, selection: Selection) -> ShardIndex:
    """Indexes a file in `folder` without reading its pictures. Raises UserError, with its columns, where it has no
    pictures."""
    builder = IndexBuilder()
    try:
        table = open_table()
        builder.seen = list(table.schema.names)
        layout = find_layout(table.schema)
        if layout is None:
            raise UserError(
                f"{name} has no column of pictures (bytes, or a struct of bytes and path) nor of paths (file_name); "
                f"its columns are {', '.join(builder.seen)[:500]}"
            )
        if layout.pictures and max(table.group_bytes, default=0) > MOST_BYTES:
            raise UserError(
                f"{name} has {max(table.group_bytes):,} bytes in one row group and {MOST_BYTES:,} is the most that is "
                "read at once; write it again with a smaller row_group_size"
            )
        _add_rows(table, layout, builder, _make_finder(folder) if not layout.pictures else None, selection)
    except (pa.ArrowException, OSError, ValueError):  # ValueError: names of columns that are not UTF-8
        builder.tally.drop(Reason.DAMAGED_SHARD, ABOUT_SHARD)
    return builder.build()


def _add_rows(
    source: Table, layout: Layout, builder: IndexBuilder, find: Callable[[str], str] | None, selection: Selection
) -> None:
    described = [name for name in select_columns(source.schema, selection.captions) if name != layout.pictures]
    leaves = [name for name in dict.fromkeys((layout.names, layout.paths)) if name]
    count = source.starts[-1]
    table = source.read_columns([*dict.fromkeys((*leaves, *described))])
    names, paths = (_read_leaf(table, leaf, count) for leaf in (layout.names, layout.paths))
    rows = read_rows(table if described else pa.table({"": pa.nulls(count)}), selection.captions)
    for row, (name, path, metadata) in enumerate(zip(names, paths, rows, strict=True)):
        key = name or str(row)
        try:
            if metadata.status not in ("", DOWNLOADED):
                raise DroppedError(Reason.NOT_DOWNLOADED)
            found = find(path) if find else path
            caption, others = builder.read_captions(metadata.caption, selection.lines)
            builder.add(Entry(key, row, -1, caption, found, others), metadata.scores)
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


def _make_finder(folder: Place) -> Callable[[str], str]:
    """Makes a function that checks paths of pictures beside the file, and completes those without a suffix."""

    def find(path: str) -> str:
        where = folder.resolve(path)
        if folder.remote and path:
            return path
        for suffix in ("", *SUFFIXES):
            if os.path.isfile(folder.resolve(path + suffix) if suffix else where):
                return path + suffix
        raise DroppedError(Reason.MISSING)

    return find


def read_pictures(table: Table, number: int) -> pa.Array:
    """Reads the pictures of a row group as bytes; all are null where the file has paths alone."""
    layout = find_layout(table.schema)
    if layout is None or not layout.pictures:
        return pa.nulls(table.starts[number + 1] - table.starts[number])
    column = table.read_group(number, layout.pictures)
    return column.field("bytes") if pa.types.is_struct(column.type) else column
