"""The formats of shards, tar, parquet and Arrow: how each is indexed, and how one picture is read."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

import pyarrow as pa

from fewstep.data.shards.index import ABOUT_SHARD, Entry, ShardIndex
from fewstep.data.shards.parquet_index import index_table, read_pictures
from fewstep.data.shards.sidecar import read_sidecar
from fewstep.data.shards.tables import ArrowTable, ParquetTable, Table
from fewstep.data.shards.tar_index import index_tar
from fewstep.data.sources.base import DroppedError
from fewstep.data.sources.filters import Reason
from fewstep.data.sources.folder_files import read_local
from fewstep.data.sources.lru_cache import LruCache
from fewstep.data.sources.metadata import PictureMetadata
from fewstep.data.sources.places import Place
from fewstep.data.sources.remote import Shard, ShardCache
from fewstep.data.sources.selection import Selection
from fewstep.data.sources.urls import find_folder, is_not_found, read_bytes, strip_query

_GROUPS_KEPT = 1 << 29
"""Bytes of row groups of parquet files kept in memory."""


@dataclass(frozen=True)
class NamedShard:
    """A shard, the name that its keys begin with, and the file of metadata beside it."""

    shard: Shard
    name: str
    sidecar: Shard | None = None

    @property
    def exists(self) -> bool:
        """Tells whether the shard was found."""
        return bool(self.shard.version.tag)


class TarShards:
    """Tars in which `.txt` or `.json` accompany a picture, as img2dataset and webdataset write them."""

    suffix = ".tar"

    def sidecar_url(self, url: str) -> str:
        """Returns where metadata of the shard may be; empty for a format without any."""
        end = len(strip_query(url))
        return f"{url[: end - len(self.suffix)]}.parquet{url[end:]}"

    def build_index(self, cache: ShardCache, named: NamedShard, selection: Selection) -> ShardIndex:
        """Reads the whole shard, all of whose pictures come into the index. Raises DroppedError where it is missing."""
        described: dict[str, PictureMetadata] = {}
        sidecar_ok = True
        if named.sidecar is not None:
            try:
                with cache.open(named.sidecar) as file:
                    described = read_sidecar(file, selection.captions)
            except (ValueError, DroppedError):
                sidecar_ok = False
        with cache.open(named.shard) as file:
            index = index_tar(file, described, selection)
        if not sidecar_ok:
            index.dropped[Reason.BAD_METADATA] = index.dropped.get(Reason.BAD_METADATA, 0) + 1
            index.names.setdefault(Reason.BAD_METADATA, []).append(f"{ABOUT_SHARD}its .parquet")
        return index

    def read_picture(self, cache: ShardCache, shard: Shard, entry: Entry, most: int) -> bytes:
        """Reads the first `most` bytes of a picture. Raises DroppedError where the shard or the picture is missing."""
        with cache.open(shard) as file:
            file.seek(entry.offset)
            content = file.read(min(entry.size, most))
        if len(content) < min(entry.size, most):
            raise DroppedError(Reason.CHANGED_SHARD)
        return content


@dataclass(frozen=True)
class TableShards:
    """Files whose rows hold the bytes of a picture, or the path of one beside the file."""

    suffix: str
    open_table: Callable[[BinaryIO], Table]
    follow_links: bool = False
    """Whether links may lead out of the folder of a file whose rows have paths."""
    _rows: LruCache[Shard, Sequence[int]] = field(default_factory=lambda: LruCache(256))
    _groups: LruCache[tuple[Shard, int], pa.Array] = field(default_factory=lambda: LruCache(_GROUPS_KEPT))

    def sidecar_url(self, url: str) -> str:  # noqa: ARG002 - the rows hold the metadata
        return ""

    def build_index(self, cache: ShardCache, named: NamedShard, selection: Selection) -> ShardIndex:
        with cache.open(named.shard) as file:
            return index_table(lambda: self.open_table(file), self._place(named.shard), named.name, selection)

    def read_picture(self, cache: ShardCache, shard: Shard, entry: Entry, most: int) -> bytes:
        try:
            with cache.open(shard) as file:
                rows = self._rows.get(shard, lambda: self.open_table(file).starts)
                number = bisect.bisect_right(rows, entry.offset) - 1
                pictures = self._groups.get(
                    (shard, number),
                    lambda: read_pictures(self.open_table(file), number),
                    lambda group: int(group.nbytes),
                )
                value = pictures[entry.offset - rows[number]]
        except (pa.ArrowException, OSError, ValueError, IndexError) as error:
            raise DroppedError(Reason.DAMAGED_SHARD) from error
        if value.is_valid:
            return memoryview(value.as_buffer())[:most].tobytes()
        if not entry.path:
            raise DroppedError(Reason.MISSING)
        return _read_neighbour(self._place(shard), entry.path, most)

    def _place(self, shard: Shard) -> Place:
        return Place(find_folder(shard.url), self.follow_links)


def parquet_shards(*, follow_links: bool = False) -> TableShards:
    """Returns the format of parquet files."""
    return TableShards(".parquet", ParquetTable, follow_links)


def arrow_shards(*, follow_links: bool = False) -> TableShards:
    """Returns the format of Arrow files, as `datasets` saves them."""
    return TableShards(".arrow", ArrowTable, follow_links)


ShardFormat = TarShards | TableShards


def _read_neighbour(folder: Place, name: str, most: int) -> bytes:
    """Reads a picture by its path in the folder of the parquet file."""
    where = folder.resolve(name)
    if not folder.remote:
        return read_local(where, most)
    try:
        return read_bytes(where, most)
    except OSError as error:
        if not is_not_found(error):
            raise
        raise DroppedError(Reason.MISSING) from error
