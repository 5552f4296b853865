"""Pictures in many shards, of which only counts are held in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import track

from fewstep.data.shards.formats import NamedShard, ShardFormat
from fewstep.data.shards.index import ABOUT_SHARD, NAMES_OF_SHARD, VERSION, Entry, ShardIndex, write_table
from fewstep.data.sources.base import DroppedError, Example, Reason, SourceReport, Tally
from fewstep.data.sources.decoding import decode
from fewstep.data.sources.lru_cache import LruCache
from fewstep.data.sources.remote import CacheSettings, Shard, ShardCache, hash_name
from fewstep.data.sources.selection import Selection
from fewstep.data.sources.urls import FileVersion, find_versions, redact, strip_query
from fewstep.errors import UserError

_INDEXES_KEPT = 16
_AT_ONCE = 8
_SUMMARY = pa.schema([("stamp", pa.string()), ("used", pa.int64()), ("counts", pa.string())])


@dataclass(frozen=True)
class ShardSummary:
    """What one shard comes to under the settings: all that opening needs of it."""

    used: int
    dropped: Mapping[str, int]
    names: Mapping[str, Sequence[str]]
    transient: bool = False
    """Whether another try may find otherwise, so that this is not to be kept."""


@dataclass(frozen=True)
class ShardIndexer:
    """Opens shards and keeps what is known of them; where it was lost, it is found out again."""

    format: ShardFormat
    selection: Selection
    settings: CacheSettings
    cache: ShardCache

    def index(self, place: NamedShard) -> ShardIndex:
        """Raises DroppedError when there is no index and the shard is gone."""
        path = self.index_path(place)
        index = ShardIndex.load(path)
        if index is None:
            index = self.format.build_index(self.cache, place, self.selection.captions)
            index.save(path)
        return index

    def index_path(self, place: NamedShard) -> Path:
        return self.settings.folder / "indexes" / f"{self.stamp(place)}.parquet"

    def stamp(self, place: NamedShard) -> str:
        """Names the shard and its metadata as they are now, and what is asked of them."""
        beside = place.sidecar.version.tag if place.sidecar else ""
        now = (place.shard.url, place.shard.version.tag, beside)
        return hash_name(VERSION, self.format.suffix, *now, *self.selection.captions)

    def select(self, place: NamedShard, index: ShardIndex, tally: Tally) -> ShardIndex:
        """What of the index is used; the rest is counted."""

        def key(row: int) -> str:
            return f"{place.name}/{index.key(row)}"

        wanted = self.selection.select(index.scores(), key, tally)
        large = wanted & (index.table["size"].to_numpy() > self.selection.limits.max_bytes)
        for row in np.flatnonzero(large):
            tally.drop(Reason.TOO_LARGE, key(int(row)))
        return index.filter(wanted & ~large)

    def summarise(self, place: NamedShard) -> ShardSummary:
        tally = Tally(NAMES_OF_SHARD)
        try:
            index = self.index(place)
        except DroppedError as dropped:  # it went, or was written anew, since it was looked at
            return ShardSummary(0, {dropped.reason: 1}, {dropped.reason: [place.name]}, transient=True)
        named = {reason: [_prefix_name(place.name, name) for name in names] for reason, names in index.names.items()}
        tally.add(index.dropped, named)
        used = len(self.select(place, index, tally).table)
        return ShardSummary(used, tally.dropped, {reason: tally.names[reason] for reason in tally.dropped})


def _prefix_name(shard: str, name: str) -> str:
    return f"{shard}{name}".rstrip() if name.startswith(ABOUT_SHARD) else f"{shard}/{name}"


class ShardedPictures:
    """A source of shards; made by `open_shards`.

    The indexes of a few shards are in memory at a time, so pictures are best asked for shard by shard.
    """

    def __init__(
        self, places: Sequence[NamedShard], sizes: Sequence[int], indexer: ShardIndexer, report: SourceReport
    ) -> None:
        self.report = report
        self.shard_sizes = tuple(sizes)
        self._places, self._indexer = tuple(places), indexer
        self._ends = np.cumsum(self.shard_sizes)
        self._indexes: LruCache[int, ShardIndex] = LruCache(_INDEXES_KEPT)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def shard_name(self, shard: int) -> str:
        return self._places[shard].name

    def key(self, index: int) -> str:
        place, entry = self._find(index)
        return f"{place.name}/{entry.key}"

    def caption(self, index: int) -> str:
        return self._find(index)[1].caption

    def read(self, index: int) -> Example:
        place, entry = self._find(index)
        limits, filters = self._indexer.selection.limits, self._indexer.selection.filters
        key = f"{place.name}/{entry.key}"
        try:
            content = self._indexer.format.read_picture(self._indexer.cache, place.shard, entry, limits.max_bytes + 1)
            image = decode(content, limits)
        except DroppedError as dropped:
            raise DroppedError(dropped.reason, key) from dropped
        if reason := filters.refuse_size(image.size):
            raise DroppedError(reason, key)
        return Example(image, entry.caption)

    def _find(self, index: int) -> tuple[NamedShard, Entry]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = int(np.searchsorted(self._ends, index, side="right"))
        row = index - (int(self._ends[shard - 1]) if shard else 0)
        place = self._places[shard]
        try:
            rows = self._indexes.get(shard, lambda: self._indexer.select(place, self._indexer.index(place), Tally()))
        except DroppedError as dropped:
            raise DroppedError(dropped.reason, f"{place.name}/{row}") from dropped
        if row >= len(rows.table):
            raise DroppedError(Reason.CHANGED_SHARD, f"{place.name}/{row}")
        return place, rows.entry(row)


def open_shards(
    urls: Sequence[str], kind: ShardFormat, selection: Selection, settings: CacheSettings
) -> ShardedPictures:
    """Indexes the shards that are new or changed, which reads each through once; of the others counts are enough."""
    urls = list(dict.fromkeys(urls))
    indexer = ShardIndexer(kind, selection, settings, ShardCache(settings))
    names = _shorten_names(urls)
    seen = find_versions([*urls, *filter(None, map(kind.sidecar_url, urls))])
    path = summary_path(urls, kind, selection, settings)
    places = [_find_shard(url, name, seen, kind) for url, name in zip(urls, names, strict=True)]
    stamps = [indexer.stamp(place) for place in places]
    known = load_summaries(path)
    new = [(stamp, place) for stamp, place in zip(stamps, places, strict=True) if place.exists and stamp not in known]
    known |= dict(zip((stamp for stamp, _ in new), _summarise_all([place for _, place in new], indexer), strict=True))
    if new:
        save_summaries(path, {stamp: known[stamp] for stamp in stamps if stamp in known})
    tally, sizes = Tally(), []
    for stamp, place in zip(stamps, places, strict=True):
        summary = known[stamp] if place.exists else _describe_missing(place)
        tally.add(summary.dropped, summary.names)
        tally.used += summary.used
        sizes.append(summary.used)
    report = tally.report()
    if not report.used:
        outcome = report.format_summary().removeprefix("data: ")
        others = f" and {len(urls) - 1} more {kind.suffix} files" if len(urls) > 1 else ""
        raise UserError(f"there is nothing to train on in {redact(urls[0])}{others}: {outcome}")
    return ShardedPictures(places, sizes, indexer, report)


def _find_shard(url: str, name: str, seen: Mapping[str, FileVersion], kind: ShardFormat) -> NamedShard:
    beside = kind.sidecar_url(url)
    known = seen.get(beside) if beside else None
    return NamedShard(Shard(url, seen.get(url, FileVersion(0, ""))), name, Shard(beside, known) if known else None)


def _describe_missing(place: NamedShard) -> ShardSummary:
    return ShardSummary(0, {Reason.MISSING_SHARD: 1}, {Reason.MISSING_SHARD: [place.name]})


def _shorten_names(urls: Sequence[str]) -> list[str]:
    """The URLs without the folders that all have in common."""
    parts = [strip_query(url).replace("\\", "/").split("/") for url in urls]
    common = 0
    while all(len(part) > common + 1 and part[common] == parts[0][common] for part in parts):
        common += 1
    return ["/".join(part[common:]) for part in parts]


def _summarise_all(places: Sequence[NamedShard], indexer: ShardIndexer) -> list[ShardSummary]:
    if not places:
        return []
    console = Console(stderr=True)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        work = pool.map(indexer.summarise, places)
        return list(
            track(work, f"indexing {len(places)} shards", len(places), console=console,
                  disable=not console.is_terminal)
        )  # fmt: skip


def summary_path(urls: Sequence[str], kind: ShardFormat, selection: Selection, settings: CacheSettings) -> Path:
    return settings.folder / "summaries" / f"{hash_name(VERSION, kind.suffix, repr(selection), *urls)}.parquet"


def load_summaries(path: Path) -> dict[str, ShardSummary]:
    """By the stamp of what was summarised; empty where there is no file that can be read."""
    try:
        rows = pq.read_table(path, schema=_SUMMARY).to_pylist()
        return {row["stamp"]: ShardSummary(row["used"], *json.loads(row["counts"])) for row in rows}
    except (OSError, pa.ArrowException, ValueError, TypeError):
        return {}


def save_summaries(path: Path, summaries: Mapping[str, ShardSummary]) -> None:
    rows = [
        {"stamp": stamp, "used": summary.used, "counts": json.dumps([summary.dropped, summary.names])}
        for stamp, summary in summaries.items()
        if not summary.transient
    ]
    write_table(pa.Table.from_pylist(rows, schema=_SUMMARY), path)
