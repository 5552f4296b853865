"""The index of a shard: where each picture is, its caption and its scores."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fewstep.data.sources import captions
from fewstep.data.sources.base import Tally
from fewstep.data.sources.filters import SCORES, CaptionLines
from fewstep.errors import UserError
from fewstep.files import write_whole

VERSION = "3"
"""Part of the name of every index file; increase it when the contents of indexes change."""
NAMES_OF_SHARD = 3
"""Most names kept for each reason in one shard."""
ABOUT_SHARD = " "
"""Prefix of a dropped name that is a remark about the shard, not the name of something in it."""
_COUNTS = b"fewstep"
_SCHEMA = pa.schema(
    [("key", pa.string()), ("offset", pa.int64()), ("size", pa.int64()), ("caption", pa.string()),
     ("path", pa.string()), ("others", pa.list_(pa.string())), *((score, pa.float64()) for score in SCORES)]
)  # fmt: skip


class Entry(NamedTuple):
    """Where one picture is: at some bytes of the shard, in a row of it, or in a file beside it."""

    key: str
    """Is its name in the shard."""
    offset: int
    """Is its first byte, or its row."""
    size: int
    """Bytes; −1 where it is not known before reading."""
    caption: str
    path: str
    """The file beside the shard that holds the picture, if any."""
    others: Sequence[str] = ()
    """Holds further captions of the same picture."""


@dataclass(frozen=True)
class ShardIndex:
    """All pictures of a shard with a caption, in its order, and counts of what was dropped."""

    table: pa.Table
    dropped: dict[str, int]
    names: dict[str, list[str]]
    """Names of what was dropped, inside the shard: without the shard's own name, which depends on its neighbours."""
    told: dict[str, int]
    """What is worth saying of the others, as in `SourceReport`."""
    seen: list[str]
    """Lists the columns of the shard, or the endings and fields in it."""

    def entry(self, row: int) -> Entry:
        return Entry(*(self.table[name][row].as_py() for name in Entry._fields))

    def key(self, row: int) -> str:
        key: str = self.table["key"][row].as_py()
        return key

    def scores(self) -> NDArray[np.float64]:
        """Returns scores `[pictures, len(SCORES)]`, NaN where missing."""
        return np.stack([self.table[score].to_numpy() for score in SCORES], axis=1)

    def filter(self, wanted: NDArray[np.bool_]) -> ShardIndex:
        """Returns an index of the wanted pictures only."""
        return dataclasses.replace(self, table=self.table.filter(pa.array(wanted)).combine_chunks())

    def save(self, path: Path) -> None:
        counts = json.dumps({name: value for name, value in vars(self).items() if name != "table"}).encode()
        write_table(self.table.replace_schema_metadata({_COUNTS: counts}), path)

    @classmethod
    def load(cls, path: Path) -> ShardIndex | None:
        """Reads an index that was saved; None where there is none or it is damaged."""
        try:
            table = pq.read_table(path, schema=_SCHEMA)
            counts = json.loads(pq.read_schema(path).metadata[_COUNTS])
            return cls(table.combine_chunks(), **counts)
        except (OSError, pa.ArrowException, ValueError, KeyError, TypeError):
            return None


class IndexBuilder:
    """Builds an index picture by picture; `tally` counts what is dropped."""

    def __init__(self) -> None:
        self.tally = Tally(NAMES_OF_SHARD)
        self.seen: list[str] = []
        self._entries: list[Entry] = []
        self._scores: list[Sequence[float]] = []

    def add(self, entry: Entry, scores: Sequence[float]) -> None:
        self._entries.append(entry)
        self._scores.append(scores)

    def build(self) -> ShardIndex:
        columns = list(zip(*self._entries, strict=True)) or [()] * len(Entry._fields)
        scores = np.array(self._scores, dtype=np.float64).reshape(-1, len(SCORES))
        arrays = [pa.array(column, field.type) for column, field in zip([*columns, *scores.T], _SCHEMA, strict=True)]
        names = self.tally.names
        dropped = self.tally.dropped
        kept = {reason: names[reason] for reason in dropped}
        return ShardIndex(pa.table(arrays, schema=_SCHEMA), dropped, kept, dict(self.tally.told), self.seen)

    def read_captions(self, value: object, lines: CaptionLines) -> tuple[str, list[str]]:
        """Returns the first caption and the others. Raises DroppedError where there is none."""
        first, *others = captions.read_all(value, lines)
        if lines == "join" and captions.has_lines(value):
            self.tally.told[captions.JOINED] += 1
        return first, others


def write_table(table: pa.Table, path: Path) -> None:
    """Writes a complete file, even if another process writes it too. Raises UserError where the disk is full."""
    try:
        with write_whole(path) as draft:
            pq.write_table(table, draft, compression="zstd")
    except OSError as error:
        raise UserError(
            f"indexes of the shards cannot be kept in {path.parent} ({error.strerror or error}); "
            "make room there, or name another cache folder"
        ) from error
