"""Shards of latents that `fewstep prepare --buckets on` writes, with a tensor for each shape."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fewstep.data.buckets import Sides, name_sides
from fewstep.data.order import Indices
from fewstep.data.shards.prepared import PreparedRow, PreparedShards
from fewstep.data.shards.store import ADVICE
from fewstep.data.sources.remote import CacheSettings
from fewstep.errors import UserError

_MOST_SIDE = 2**16


class BucketedShards(PreparedShards):
    """Pictures of a shard are numbered bucket by bucket, in the order of `buckets`."""

    def __init__(
        self, folder: str | Path, *, follow_links: bool = False, cache: CacheSettings | None = None
    ) -> None:  # fmt: skip
        super().__init__(folder, follow_links=follow_links, cache=cache)
        if "buckets" not in self.made_of:
            raise UserError(
                f"{self.place} was prepared without buckets; give --buckets off, or prepare it again with them"
            )
        try:
            self.buckets = tuple(_read_sides(each) for each in self.made_of["buckets"])
            held = self.manifest["buckets"]
            counts = [[held[name].get(name_sides(sides), 0) for sides in self.buckets] for name in self.names]
            if not all(type(count) is int for row in counts for count in row):
                raise TypeError("they are no numbers")
            self._counts = np.array(counts, np.int64).reshape(len(self.names), len(self.buckets))
            if (self._counts < 0).any() or self._counts.sum(axis=1).tolist() != list(self.shard_sizes):
                raise ValueError("its counts do not add up")
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise UserError(f"{self.place} does not say what its buckets hold ({error}); {ADVICE}") from error

    @property
    def bucket_of(self) -> Indices:
        """Returns the number of every picture's bucket."""
        numbers = np.tile(np.arange(len(self.buckets)), len(self.names))
        return np.repeat(numbers, self._counts.ravel())

    def count_sides(self) -> dict[Sides, int]:
        """Returns how many pictures lie in each bucket that has any."""
        totals = zip(self.buckets, self._counts.sum(axis=0).tolist(), strict=True)
        return {sides: count for sides, count in totals if count}

    def read_latent(self, shard: int, row: int, part: str) -> Tensor:
        latents, rows = self._shard(shard)
        sides = _find_sides(rows[row])
        before = int(self._counts[shard, : self.buckets.index(sides)].sum())
        value: Tensor = latents.get_slice(f"{part}.{name_sides(sides)}")[row - before]
        return value

    def _open(self, shard: int) -> tuple[Any, list[PreparedRow]]:
        latents, rows = super()._open(shard)
        numbers = {sides: number for number, sides in enumerate(self.buckets)}
        found = [numbers.get(_find_sides(row), len(numbers)) for row in rows]
        held = np.bincount(found, minlength=len(numbers)).tolist()
        for part in ("mean", "std") if self.made_of.get("std") else ("mean",):
            for sides, count in zip(self.buckets, self._counts[shard], strict=True):
                if count and latents.get_slice(f"{part}.{name_sides(sides)}").get_shape()[0] != count:
                    held = []
        if held != self._counts[shard].tolist():
            raise UserError(f"{self.place}/{self.names[shard]}.parquet has other buckets than its folder; {ADVICE}")
        return latents, [rows[i] for i in np.argsort(found, kind="stable")]

    def _fit(self, shapes: Mapping[str, tuple[int, ...]], rows: int) -> bool:
        means = {name.removeprefix("mean"): shape for name, shape in shapes.items() if name.startswith("mean.")}
        stds = {name.removeprefix("std"): shape for name, shape in shapes.items() if name.startswith("std.")}
        whole = all(_is_of(name, shape) for name, shape in means.items())
        return whole and sum(shape[0] for shape in means.values()) == rows and stds in ({}, means)


def _find_sides(row: PreparedRow) -> Sides:
    """Returns height and width of what was cropped of a picture."""
    return row.sizes[4], row.sizes[5]


def _is_of(name: str, shape: tuple[int, ...]) -> bool:
    """Tells whether latents of this shape can be those of a bucket, by its name: of the same aspect."""
    width, _, height = name.removeprefix(".").partition("x")
    return (
        len(shape) == 4 and width.isdecimal() and height.isdecimal() and int(width) * shape[2] == int(height) * shape[3]
    )


def _read_sides(given: Any) -> Sides:
    height, width = given
    if not all(type(side) is int and 0 < side <= _MOST_SIDE for side in (height, width)):
        raise ValueError(f"{given!r:.60} is no shape")
    return height, width
