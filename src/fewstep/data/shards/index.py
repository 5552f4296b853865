"""What is known of one shard once it was read through: where each picture lies, its caption and its scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fewstep.data.sources.base import Tally
from fewstep.data.sources.filters import SCORES
from fewstep.errors import UserError
from fewstep.files import write_whole

VERSION = "1"
"""Part of every index's name: raise it when the same shard would be indexed otherwise."""
NAMES_OF_SHARD = 3
"""So many names a reason are kept of one shard."""
ABOUT_SHARD = " "
"""With this begins, among the names of what was dropped, what is not the name of something in the shard."""
_COUNTS = b"fewstep"
_SCHEMA = pa.schema(
    [("key", pa.string()), ("offset", pa.int64()), ("size", pa.int64()), ("caption", pa.string()),
     ("path", pa.string()), *((score, pa.float64()) for score in SCORES)]
)  # fmt: skip


class Entry(NamedTuple):
    """Where one picture lies: bytes of the shard, or a row of it, or a file beside it."""

    key: str
    """Its name in the shard."""
    offset: int
    """Of its first byte; or its row."""
    size: int
    """In bytes; −1 where only reading tells."""
    caption: str
    path: str
    """Of the file beside the shard that holds the picture, else empty."""


@dataclass(frozen=True)
class ShardIndex:
    """Every picture that has a caption, in the order of the shard, and what else was found."""

    table: pa.Table
    dropped: dict[str, int]
    names: dict[str, list[str]]
    """Of what was dropped, inside the shard; a name of the shard itself may change with its neighbours."""

    def entry(self, row: int) -> Entry:
        return Entry(*(self.table[name][row].as_py() for name in Entry._fields))

    def key(self, row: int) -> str:
        key: str = self.table["key"][row].as_py()
        return key

    def scores(self) -> NDArray[np.float64]:
        """`[pictures, len(SCORES)]`, NaN where there is none."""
        return np.stack([self.table[score].to_numpy() for score in SCORES], axis=1)

    def filter(self, wanted: NDArray[np.bool_]) -> ShardIndex:
        return ShardIndex(self.table.filter(pa.array(wanted)).combine_chunks(), self.dropped, self.names)

    def save(self, path: Path) -> None:
        counts = json.dumps({"dropped": self.dropped, "names": self.names}).encode()
        write_table(self.table.replace_schema_metadata({_COUNTS: counts}), path)

    @classmethod
    def load(cls, path: Path) -> ShardIndex | None:
        """None where there is none that can be read."""
        try:
            table = pq.read_table(path, schema=_SCHEMA)
            counts = json.loads(pq.read_schema(path).metadata[_COUNTS])
            return cls(table.combine_chunks(), counts["dropped"], counts["names"])
        except (OSError, pa.ArrowException, ValueError, KeyError, TypeError):
            return None


class IndexBuilder:
    """Takes pictures one after the other, and in `tally` what is dropped."""

    def __init__(self) -> None:
        self.tally = Tally(NAMES_OF_SHARD)
        self._entries: list[Entry] = []
        self._scores: list[Sequence[float]] = []

    def add(self, entry: Entry, scores: Sequence[float]) -> None:
        self._entries.append(entry)
        self._scores.append(scores)

    def build(self) -> ShardIndex:
        columns = list(zip(*self._entries, strict=True)) or [()] * len(Entry._fields)
        scores = np.array(self._scores, dtype=np.float64).reshape(-1, len(SCORES))
        arrays = [pa.array(column, field.type) for column, field in zip([*columns, *scores.T], _SCHEMA, strict=True)]
        dropped = self.tally.dropped
        return ShardIndex(
            pa.table(arrays, schema=_SCHEMA), dropped, {reason: self.tally.names[reason] for reason in dropped}
        )


def write_table(table: pa.Table, path: Path) -> None:
    """Leaves a whole file, whoever else writes it at the same time. Raises UserError where there is no room for it."""
    try:
        with write_whole(path) as draft:
            pq.write_table(table, draft, compression="zstd")
    except OSError as error:
        raise UserError(
            f"what is known of the shards cannot be kept in {path.parent} ({error.strerror or error}); "
            "make room there, or name another cache folder"
        ) from error
