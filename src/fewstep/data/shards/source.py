"""A source of pictures in many shards, which keeps only counts in memory."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from fewstep.data.shards.formats import NamedShard, ShardFormat
from fewstep.data.shards.index import ABOUT_SHARD, NAMES_OF_SHARD, VERSION, Entry, ShardIndex
from fewstep.data.shards.sizes import NO_SIZES, measure_pictures
from fewstep.data.shards.summaries import ShardSummary, load_summaries, save_summaries, summary_path
from fewstep.data.sources.base import DroppedError, Example, SourceReport, Tally, escape_line
from fewstep.data.sources.decoding import decode_to_fit
from fewstep.data.sources.filters import Reason
from fewstep.data.sources.folder_layouts import name_splits
from fewstep.data.sources.lru_cache import LruCache
from fewstep.data.sources.places import Place
from fewstep.data.sources.remote import CacheSettings, Shard, ShardCache, hash_name
from fewstep.data.sources.selection import Selection
from fewstep.data.sources.urls import FileVersion, find_folder, find_versions, redact, strip_query
from fewstep.errors import UserError

_INDEXES_KEPT = 16
_AT_ONCE = 8
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class ShardIndexer:
    """Indexes shards under some settings; indexes are saved, and made again where they were lost."""

    format: ShardFormat
    selection: Selection
    settings: CacheSettings
    cache: ShardCache

    def load_index(self, named: NamedShard) -> ShardIndex:
        """Loads the index of a shard, or builds it. Raises DroppedError where there is neither index nor shard."""
        path = self.index_path(named)
        index = ShardIndex.load(path)
        if index is None:
            index = self.format.build_index(self.cache, named, self.selection)
            index.save(path)
        return index

    def index_path(self, named: NamedShard) -> Path:
        return self.settings.folder / "indexes" / f"{self.stamp(named)}.parquet"

    def stamp(self, named: NamedShard) -> str:
        """Returns a name for this version of the shard and its metadata, and for the fields of captions."""
        sidecar_tag = named.sidecar.version.tag if named.sidecar else ""
        versions = (named.shard.url, named.shard.version.tag, sidecar_tag)
        settled = (self.selection.lines, str(self.selection.follow_links), *self.selection.captions)
        return hash_name(VERSION, self.format.suffix, *versions, *settled)

    def select(self, named: NamedShard, index: ShardIndex, tally: Tally) -> ShardIndex:
        """Returns an index of the pictures that are used, and counts the others in `tally`."""
        return index.filter(self._choose(named, index, tally))

    def measure(self, named: NamedShard) -> NDArray[np.int64]:
        """Returns width and height of the pictures that are used, by their headers, which are read once and kept."""
        index, path = self.load_index(named), self.settings.folder / "sizes" / f"{self.stamp(named)}.parquet"
        most = self.selection.limits.max_bytes
        sizes = measure_pictures(
            index, path, functools.partial(self.format.read_picture, self.cache, named.shard), most
        )
        used: NDArray[np.int64] = sizes[self._choose(named, index, Tally())]
        return used

    def _choose(self, named: NamedShard, index: ShardIndex, tally: Tally) -> NDArray[np.bool_]:
        """Returns a mask of the pictures that are used, and counts the others in `tally`."""

        def key(row: int) -> str:
            return f"{named.name}/{index.key(row)}"

        wanted = self.selection.select(index.scores(), key, tally)
        large = wanted & (index.table["size"].to_numpy() > self.selection.limits.max_bytes)
        for row in np.flatnonzero(large):
            tally.drop(Reason.TOO_LARGE, key(int(row)))
        used: NDArray[np.bool_] = wanted & ~large
        return used

    def summarise(self, named: NamedShard) -> ShardSummary:
        tally = Tally(NAMES_OF_SHARD)
        try:
            index = self.load_index(named)
        except DroppedError as dropped:  # deleted or replaced since it was found
            return _summarise_dropped(named, dropped.reason)
        tally.add(
            index.dropped,
            {reason: [_prefix_name(named.name, name) for name in names] for reason, names in index.names.items()},
        )
        tally.told.update(index.told)
        used = len(self.select(named, index, tally).table)
        names = {reason: tally.names[reason] for reason in tally.dropped}
        return ShardSummary(used, tally.dropped, names, dict(tally.told))


def _summarise_dropped(named: NamedShard, reason: str) -> ShardSummary:
    return ShardSummary(0, {reason: 1}, {reason: [named.name]}, transient=True)


def _prefix_name(shard: str, name: str) -> str:
    return f"{shard}{name}".rstrip() if name.startswith(ABOUT_SHARD) else f"{shard}/{name}"


class ShardedPictures:
    """Pictures in shards; `open_shards` makes one.

    Only the indexes of a few shards are in memory at a time, so pictures are best read shard by shard.
    """

    def __init__(
        self, shards: Sequence[NamedShard], sizes: Sequence[int], indexer: ShardIndexer, report: SourceReport
    ) -> None:
        self.report = report
        self.shard_sizes = tuple(sizes)
        self._shards, self._indexer = tuple(shards), indexer
        self._ends = np.cumsum(self.shard_sizes)
        self._indexes: LruCache[int, ShardIndex] = LruCache(_INDEXES_KEPT)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def shard_name(self, shard: int) -> str:
        return self._shards[shard].name

    def key(self, index: int) -> str:
        named, entry = self._find(index)
        return f"{named.name}/{entry.key}"

    def caption(self, index: int) -> str:
        return self._find(index)[1].caption

    def measure(self) -> NDArray[np.int64]:
        """Returns width and height of every picture `[n, 2]`; zeros where the header of a picture says none."""
        sizes = np.zeros((len(self), 2), np.int64)
        measured = _in_threads(self._measure, range(len(self._shards)), "measuring")
        for end, size, found in zip(self._ends, self.shard_sizes, measured, strict=True):
            sizes[end - size : end][: len(found)] = found[:size]
        return sizes

    def _measure(self, shard: int) -> NDArray[np.int64]:
        try:
            return self._indexer.measure(self._shards[shard]) if self.shard_sizes[shard] else NO_SIZES
        except DroppedError:  # gone since it was opened
            return NO_SIZES

    def read(self, index: int) -> Example:
        named, entry = self._find(index)
        limits, filters = self._indexer.selection.limits, self._indexer.selection.filters
        key = f"{named.name}/{entry.key}"
        try:
            content = self._indexer.format.read_picture(self._indexer.cache, named.shard, entry, limits.max_bytes + 1)
            image, reduced = decode_to_fit(content, limits)
        except DroppedError as dropped:
            raise DroppedError(dropped.reason, key) from dropped
        if reason := filters.refuse_size((image.width * reduced, image.height * reduced)):
            raise DroppedError(reason, key)
        return Example(image, entry.caption, tuple(entry.others), reduced)

    def _find(self, index: int) -> tuple[NamedShard, Entry]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = int(np.searchsorted(self._ends, index, side="right"))
        row = index - (int(self._ends[shard - 1]) if shard else 0)
        named = self._shards[shard]
        try:
            rows = self._indexes.get(
                shard, lambda: self._indexer.select(named, self._indexer.load_index(named), Tally())
            )
        except DroppedError as dropped:
            raise DroppedError(dropped.reason, f"{named.name}/{row}") from dropped
        if row >= len(rows.table):
            raise DroppedError(Reason.CHANGED_SHARD, f"{named.name}/{row}")
        return named, rows.entry(row)


def open_shards(
    urls: Sequence[str], kind: ShardFormat, selection: Selection, settings: CacheSettings,
    left_out: Mapping[str, Sequence[str]] | None = None,
) -> ShardedPictures:  # fmt: skip
    """Opens shards as one source; `left_out` is what was found beside them, by the reasons why it is not read.

    Shards that are new or have changed are read once to index them; of the others only the counts are loaded.
    Raises UserError where no picture can be used.
    """
    urls = list(dict.fromkeys(urls))
    indexer = ShardIndexer(kind, selection, settings, ShardCache(settings))
    names = _shorten_names(urls)
    tally, sizes = Tally(), []
    left_out = {reason: names for reason, names in (left_out or {}).items() if names}
    tally.add({reason: len(names) for reason, names in left_out.items()}, left_out)
    sidecars = [sidecar for url in urls if (sidecar := kind.sidecar_url(url)) and _may_read(sidecar, selection, tally)]
    versions = find_versions([*urls, *sidecars])
    path = summary_path(urls, kind, selection, settings)
    shards = [_make_shard(url, name, versions, kind) for url, name in zip(urls, names, strict=True)]
    stamps = [indexer.stamp(named) for named in shards]
    known = load_summaries(path)
    new = [(stamp, named) for stamp, named in zip(stamps, shards, strict=True) if named.exists and stamp not in known]
    known |= dict(
        zip(
            (stamp for stamp, _ in new),
            _in_threads(indexer.summarise, [named for _, named in new], "indexing"),
            strict=True,
        )
    )
    if new:
        save_summaries(path, {stamp: known[stamp] for stamp in stamps if stamp in known})
    for stamp, named in zip(stamps, shards, strict=True):
        summary = known[stamp] if named.exists else _summarise_dropped(named, Reason.MISSING_SHARD)
        tally.add(summary.dropped, summary.names)
        tally.told.update(summary.told)
        tally.used += summary.used
        sizes.append(summary.used)
    if splits := name_splits(names):
        tally.notes.append(f"the splits {', '.join(splits)} are all read; name the files of one to read it alone")
    report = tally.report()
    if not report.used:
        counts = report.format_summary().removeprefix("data: ")
        others = f" and {len(urls) - 1} more {kind.suffix} files" if len(urls) > 1 else ""
        raise UserError(
            f"there is nothing to train on in {redact(urls[0])}{others}: {counts}{_name_seen(indexer, shards)}"
            f"{report.format_advice()}"
        )
    return ShardedPictures(shards, sizes, indexer, report)


def _may_read(sidecar: str, selection: Selection, tally: Tally) -> bool:
    """Tells whether a shard's metadata lie in its folder; counts those that do not."""
    name = strip_query(sidecar).rpartition("/")[2]
    try:
        Place(find_folder(sidecar), selection.follow_links).resolve(name)
    except DroppedError as dropped:
        tally.drop(dropped.reason, redact(sidecar))
        return False
    return True


def _name_seen(indexer: ShardIndexer, shards: Sequence[NamedShard]) -> str:
    """Returns what the first shard that can be read has, where a caption may be hidden; empty where none can be."""
    for named in shards:
        with contextlib.suppress(DroppedError):
            if seen := indexer.load_index(named).seen:
                columns = ", ".join(map(escape_line, seen))[:300]
                return f"; {escape_line(named.name)} has {columns}; --caption-fields names where captions are"
    return ""


def _make_shard(url: str, name: str, versions: Mapping[str, FileVersion], kind: ShardFormat) -> NamedShard:
    sidecar_url = kind.sidecar_url(url)
    version = versions.get(sidecar_url)
    sidecar = Shard(sidecar_url, version) if version else None
    return NamedShard(Shard(url, versions.get(url, FileVersion(0, ""))), name, sidecar)


def _shorten_names(urls: Sequence[str]) -> list[str]:
    """Returns the URLs without the folders that all have in common."""
    parts = [strip_query(url).replace("\\", "/").split("/") for url in urls]
    common = 0
    while all(len(part) > common + 1 and part[common] == parts[0][common] for part in parts):
        common += 1
    return ["/".join(part[common:]) for part in parts]


def _in_threads(work: Callable[[T], R], shards: Sequence[T], title: str) -> list[R]:
    """Does a work for every shard, with a bar on a terminal, and returns what comes of it in order."""
    if not shards:
        return []
    console = Console(stderr=True)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(
            track(pool.map(work, shards), f"{title} {len(shards)} shards", len(shards), console=console,
                  disable=not console.is_terminal)
        )  # fmt: skip
