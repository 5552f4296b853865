"""The counts of shards, kept so that a source is opened without their indexes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fewstep.data.shards.formats import ShardFormat
from fewstep.data.shards.index import VERSION, write_table
from fewstep.data.sources.remote import CacheSettings, hash_name
from fewstep.data.sources.selection import Selection

_SUMMARY = pa.schema([("stamp", pa.string()), ("used", pa.int64()), ("counts", pa.string())])


@dataclass(frozen=True)
class ShardSummary:
    """Holds the counts of one shard under some settings: all that opening a source needs."""

    used: int
    dropped: Mapping[str, int]
    names: Mapping[str, Sequence[str]]
    told: Mapping[str, int] = field(default_factory=dict)
    transient: bool = False
    """Tells whether another try may give another result, so that this must not be saved."""


def summary_path(urls: Sequence[str], kind: ShardFormat, selection: Selection, settings: CacheSettings) -> Path:
    settled = json.dumps(dataclasses.asdict(selection), sort_keys=True)
    return settings.folder / "summaries" / f"{hash_name(VERSION, kind.suffix, settled, *urls)}.parquet"


def load_summaries(path: Path) -> dict[str, ShardSummary]:
    """Loads summaries by the stamps of their shards; empty where no file can be read."""
    try:
        rows = pq.read_table(path, schema=_SUMMARY).to_pylist()
        return {row["stamp"]: ShardSummary(row["used"], *json.loads(row["counts"])) for row in rows}
    except (OSError, pa.ArrowException, ValueError, TypeError):
        return {}


def save_summaries(path: Path, summaries: Mapping[str, ShardSummary]) -> None:
    rows = [
        {"stamp": stamp, "used": summary.used, "counts": json.dumps([summary.dropped, summary.names, summary.told])}
        for stamp, summary in summaries.items()
        if not summary.transient
    ]
    write_table(pa.Table.from_pylist(rows, schema=_SUMMARY), path)
