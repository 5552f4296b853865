"""Shards of latents that `fewstep prepare` writes, each with a table of keys, captions and sizes."""

from __future__ import annotations

import functools
import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
from torch import Tensor

from fewstep.data.reading import Sizes
from fewstep.data.shards.manifest import MANIFEST
from fewstep.data.shards.place import open_place
from fewstep.data.shards.store import ADVICE, Store
from fewstep.data.shards.tables import MOST_BYTES, open_parquet, read_parquet
from fewstep.data.sources.base import DroppedError
from fewstep.data.sources.remote import CacheSettings
from fewstep.documents import load_json, parse_json
from fewstep.errors import UserError
from fewstep.files import open_safetensors, read_safetensors_header
from fewstep.roots import open_regular

_HEADER, _TABLE = "fewstep", "table_sha256"
_OPEN_SHARDS = 64
_AT_ONCE = 16
"""Headers of shards that are read at once, which behind a URL take a request or two each."""
_MOST_NAME = 200
"""Bytes of a shard's name without its ending."""
_OTHERS = "other_captions"
"""Column that a table has where any of its pictures has several captions."""
_DTYPES = ("F16", "F32", "BF16")
_COLUMNS = pa.schema(
    [("key", pa.string()), ("caption", pa.string()), ("sizes", pa.list_(pa.int32(), 6)), ("status", pa.string()),
     ("row", pa.int32())]
)  # fmt: skip


@dataclass(frozen=True)
class PreparedRow:
    """A picture of a shard; `status` says why it has no latent, and is empty where it has one."""

    key: str
    caption: str
    sizes: Sizes
    status: str = ""
    others: tuple[str, ...] = ()
    """Holds further captions of the same picture."""


def write_shard(
    store: Store, name: str, rows: Sequence[PreparedRow], latents: Mapping[str, Tensor], made_of: Mapping[str, Any]
) -> None:
    """Writes the table first and the latents last, each completely, so that a shard with latents is complete.

    `latents` hold `[n, c, h, w]` for the rows without a status, in their order; or those of each shape, whose name
    stands behind a dot: `mean.832x1216`.
    """
    numbers, counts = [], Counter[tuple[int, ...]]()
    for each in rows:
        shape = each.sizes[4:]
        numbers.append(-1 if each.status else counts[shape])
        counts[shape] += not each.status
    table = pa.table(
        {
            "key": [each.key for each in rows], "caption": [each.caption for each in rows],
            "sizes": [list(each.sizes) for each in rows], "status": [each.status for each in rows], "row": numbers,
        },
        schema=_COLUMNS,
    )  # fmt: skip
    if any(each.others for each in rows):
        table = table.append_column(_OTHERS, pa.array([list(each.others) for each in rows], pa.list_(pa.string())))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    content = sink.getvalue().to_pybytes()
    store.write(f"{name}.parquet", content)
    # A single entry, because safetensors writes several in random order.
    header = {_HEADER: json.dumps({_TABLE: hashlib.sha256(content).hexdigest(), "made_of": made_of}, sort_keys=True)}
    store.write(f"{name}.safetensors", safetensors.torch.save(dict(latents), header))


def is_written(store: Store, name: str) -> bool:
    """Tells whether the shard of that name is complete."""
    return f"{name}.safetensors" in store


def check_written(store: Store, name: str, made_of: Mapping[str, Any]) -> None:
    """Raises UserError where the shard of that name, which is there, was made from something else."""
    file = f"{name}.safetensors"
    _check_made_of(f"{store}/{file}", store.read_header(file).metadata, made_of)


def _check_made_of(file: str, metadata: Mapping[str, str], made_of: Mapping[str, Any]) -> None:
    """Raises UserError where a file, by the metadata in its header, was made from something else."""
    try:
        held = parse_json(metadata[_HEADER])["made_of"]
        if not isinstance(held, dict):
            raise ValueError("it does not say what it was made of")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged ({error}); {ADVICE}") from error
    # What a person chose comes first, and then what followed from it.
    for field in sorted({*held, *made_of}, key=lambda name: (isinstance(made_of.get(name), list | dict), name)):
        if held.get(field) != made_of.get(field):
            raise UserError(
                f"{file} was prepared with {field} {held.get(field)}, not {made_of.get(field)}; choose another --out"
            )


def read_statuses(store: Store, name: str) -> list[str]:
    """Reads the status of every picture, unreadable ones included."""
    content = io.BytesIO(store.read(f"{name}.parquet"))
    statuses: list[str] = pq.read_table(content, columns=["status"])["status"].to_pylist()
    return statuses


def _check_manifest(held: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, int]]:
    """Returns what a manifest holds. Raises TypeError or ValueError where that is of another kind."""
    made_of, report, shards = held["made_of"], held["report"], held["shards"]
    repeats: Any = made_of.get("repeats", {}) if isinstance(made_of, dict) else None
    if not all(isinstance(each, dict) for each in (made_of, report, shards, repeats)):
        raise TypeError("its entries are not what fewstep writes")
    if any(len(name.encode("utf-8", "replace")) > _MOST_NAME for name in shards):
        raise ValueError("it names files that no disk holds")
    for number in (*shards.values(), *repeats.values()):
        if type(number) is not int or not 0 <= number < 2**31:
            raise ValueError(f"{number!r:.60} is not a number of pictures")
    return made_of, report, shards


class PreparedShards:
    """The latents in a folder that `fewstep prepare` filled; a shard is opened when it is first read."""

    kind = "latents"

    def __init__(
        self, folder: str | Path, *, follow_links: bool = False, cache: CacheSettings | None = None
    ) -> None:  # fmt: skip
        """Reads the list of shards, of a folder or a URL, whose files are then kept in `cache`; `follow_links` lets
        files be links out of the folder. Raises UserError."""
        self.place = open_place(folder, follow_links=follow_links, cache=cache)
        try:
            with self.place.open(MANIFEST) as path:
                held = load_json(path)
            self.made_of, self.report, shards = _check_manifest(held)
            self.manifest: dict[str, Any] = held
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.place} is not completely prepared ({error}); run the same `fewstep prepare` again"
            ) from error
        self.names: list[str] = list(shards)
        self.shard_sizes: tuple[int, ...] = tuple(shards.values())
        self.shard_repeats: tuple[int, ...] = tuple(self.made_of.get("repeats", {}).get(name, 1) for name in shards)
        self._starts = np.cumsum([0, *self.shard_sizes])
        self._shard = functools.lru_cache(maxsize=_OPEN_SHARDS)(self._open)

    def __len__(self) -> int:
        return sum(self.shard_sizes)

    def locate(self, index: int) -> tuple[int, int]:
        """Returns the shard and the row of the picture with this index."""
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return shard, index - int(self._starts[shard])

    def hash_contents(self) -> str:
        """Hashes what the latents were made from, and the names and sizes of the shards."""
        content = json.dumps([self.made_of, self.names, self.shard_sizes], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def read_latent(self, shard: int, row: int, part: str) -> Tensor:
        """Reads the `mean` or `std` of one picture, `[c, h, w]` fp16."""
        latents, _ = self._shard(shard)
        value: Tensor = latents.get_slice(part)[row]
        return value

    def read_row(self, shard: int, row: int) -> PreparedRow:
        """Reads the key, caption and sizes of one picture."""
        return self._shard(shard)[1][row]

    def _open(self, shard: int) -> tuple[Any, list[PreparedRow]]:
        name = f"{self.place}/{self.names[shard]}"
        latents, content = self._read_files(self.names[shard])
        if hashlib.sha256(content).hexdigest() != parse_json(latents.metadata()[_HEADER]).get(_TABLE):
            raise UserError(
                f"{name}.parquet is not the table of the latents beside it; delete both and prepare them again"
            )
        rows = _read_rows(content, f"{name}.parquet")
        slices = {part: latents.get_slice(part) for part in latents.keys()}  # noqa: SIM118  # no mapping
        held = {part: tuple(each.get_shape()) for part, each in slices.items() if each.get_dtype() in _DTYPES}
        if not self._fit(held, len(rows)) or len(rows) != self.shard_sizes[shard]:
            raise UserError(f"{name}.safetensors does not hold the {self.kind} of its table; {ADVICE}")
        return latents, rows

    def _read_files(self, name: str) -> tuple[Any, bytes]:
        """Returns the open tensors of a shard, and its table as it stands there."""
        file = f"{name}.safetensors"
        try:
            with self.place.open(file) as path:
                try:
                    held = read_safetensors_header(path, advice=ADVICE).metadata
                    latents = open_safetensors(path, advice=ADVICE)
                except UserError as error:  # names the copy of what is behind a URL
                    raise UserError(str(error).replace(str(path), f"{self.place}/{file}")) from error
                _check_made_of(f"{self.place}/{file}", held, self.made_of)
            file = f"{name}.parquet"
            with self.place.open(file) as path, open_regular(path) as table:
                return latents, table.read(MOST_BYTES)
        except OSError as error:
            why = error.strerror or "it is not there"
            raise UserError(f"{self.place}/{file} cannot be read ({why}); {ADVICE}") from error
        except DroppedError as error:
            raise UserError(f"{self.place}/{file} changed while it was read; give the same command again") from error

    def _fit(self, shapes: Mapping[str, tuple[int, ...]], rows: int) -> bool:
        """Tells whether tensors of these shapes are what so many rows have."""
        mean = shapes.get("mean", ())
        std = shapes.get("std", () if self.made_of.get("std") else mean)
        return mean[:1] == (rows,) and std == mean


def _read_sizes(numbers: Sequence[int]) -> Sizes:
    """Returns the six numbers of a row. Raises TypeError or ValueError where they are none."""
    one, two, three, four, five, six = map(int, numbers)
    return one, two, three, four, five, six


def _read_rows(content: bytes, source: str) -> list[PreparedRow]:
    """Reads the rows of a table that have a latent. Raises UserError where it is none that fewstep writes."""
    try:
        parquet = open_parquet(io.BytesIO(content))
        table = read_parquet(parquet, parquet.schema_arrow.names)
        kinds = {field.name: field.type for field in _COLUMNS}
        if any(table.schema.field(name).type != kind for name, kind in kinds.items()):
            raise ValueError("its columns are of other types")
        entries = [each for each in table.to_pylist() if each["row"] >= 0]
        if not all(isinstance(each[name], str) for each in entries for name in ("key", "caption")):
            raise ValueError("it has rows without a key or a caption")
        return [
            PreparedRow(each["key"], each["caption"], _read_sizes(each["sizes"]), others=tuple(each.get(_OTHERS) or ()))
            for each in entries
        ]
    except (pa.ArrowException, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{source} is damaged ({' '.join(str(error).split())[:120]}); {ADVICE}") from error


def _count_pictures(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Counts the pictures, or the trajectories, in a shard of such tensors."""
    if "states" in shapes:
        return shapes["states"][0]
    return sum(shape[0] for name, shape in shapes.items() if name.partition(".")[0] == "mean")


def _count_sides(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Counts the pictures of each shape in a shard that has several, by its name."""
    return {name.removeprefix("mean."): shape[0] for name, shape in shapes.items() if name.startswith("mean.")}


def write_manifest(store: Store, names: Sequence[str], made_of: Mapping[str, Any], report: Mapping[str, Any]) -> None:
    """Writes the list of all shards and the counts of pictures, which marks the folder as complete."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        headers = pool.map(store.read_header, [f"{name}.safetensors" for name in names])
        shapes = {name: header.shapes for name, header in zip(names, headers, strict=True)}
    shards = {name: _count_pictures(held) for name, held in shapes.items()}
    content = {"made_of": dict(made_of), "report": dict(report), "shards": shards}
    if "buckets" in made_of:
        content["buckets"] = {name: _count_sides(held) for name, held in shapes.items()}
    store.write(MANIFEST, (json.dumps(content, indent=2) + "\n").encode())
