"""Buckets of aspect ratios: the shapes that pictures are cropped to, and the order in which batches of one come."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fewstep.data import draws
from fewstep.data.order import Indices, Permutation, SampleOrder

Sides = tuple[int, int]
"""Holds height and width in pixels."""
LEAST_AREA = 0.9
"""Is the least share of the square's area; with it the rule gives the table of Stable Diffusion XL (arXiv 2307.01952,
appendix I) at 1024 pixels, and the upright 704 × 1344 besides, which is missing there."""
_STEP = 64


def list_buckets(resolution: int, unit: int) -> tuple[Sides, ...]:
    """Returns the square of `resolution` pixels, and what shapes there are of nearly its area, in the order of height.

    Their sides are multiples of 64 pixels, of a 16th of a resolution above 1024, of a quarter of one below 256, each
    brought up to a multiple of `unit`; from half the resolution to twice.
    """
    least = max(1, resolution // 16, min(_STEP, resolution // 4))
    step = -(-least // unit) * unit
    sides = range(-(-resolution // (2 * step)) * step, 2 * resolution + 1, step)
    area = resolution**2
    found = {(height, width) for height in sides for width in sides if LEAST_AREA * area < height * width <= area}
    return tuple(sorted(found | {(resolution, resolution)}))


def find_buckets(sizes: NDArray[np.int64], buckets: Sequence[Sides]) -> Indices:
    """Returns the number of the bucket of the nearest aspect ratio for every width and height `[n, 2]`.

    The nearest is that whose ratio is the fewest times larger or smaller; the square's where a size is not known, which
    is 0 × 0.
    """
    width, height = np.where(sizes.min(axis=1, keepdims=True) > 0, sizes, 1).T
    aspects = np.log([wide / high for high, wide in buckets])
    order = np.argsort(aspects, kind="stable")
    between = (aspects[order][1:] + aspects[order][:-1]) / 2
    found: Indices = order[np.searchsorted(between, np.log(width / height))]
    return found


def name_sides(sides: Sides) -> str:
    """Returns `1216x832`, the width first, as people say it."""
    return f"{sides[1]}x{sides[0]}"


def describe_counts(counts: Mapping[Sides, int], batch_size: int = 0) -> list[str]:
    """Says how many pictures lie in each bucket, and of which an update takes some several times; nothing without
    buckets."""
    if not counts:
        return []
    said = ", ".join(f"{name_sides(sides)}: {counts[sides]}" for sides in sorted(counts))
    small = [name_sides(sides) for sides in sorted(counts) if counts[sides] < batch_size]
    lines = [f"buckets, width × height: {said}"]
    if small:
        lines.append(
            f"warning: {', '.join(small)} have fewer pictures than an update takes ({batch_size}), so it sees some "
            "several times; give more pictures, or a smaller --batch-size"
        )
    return lines


@dataclass(frozen=True, eq=False)
class BucketedOrder:
    """Gives whole batches of pictures of one bucket; every bucket has an order and epochs of its own.

    Of each bucket an epoch holds the batches that begin in the bucket's own epoch. The last of them may reach over into
    the bucket's next epoch, which is then begun: so no picture is left out and none comes twice. The buckets of an
    epoch's batches are shuffled.
    """

    seed: int
    batch_size: int
    shard_sizes: tuple[int, ...]
    """Holds the number of pictures in each shard."""
    buckets: Indices
    """Holds the number of every picture's bucket."""
    repeats: tuple[int, ...] = ()
    """Says how often an epoch goes through each shard; once through each if empty."""

    @property
    def count(self) -> int:
        """Returns the number of pictures."""
        return len(self.buckets)

    def __call__(self, counters: Sequence[int] | Indices) -> Indices:
        """Returns the index of the picture at each position; positions count from 0 through all epochs."""
        positions = np.asarray(counters, dtype=np.int64)
        indices = np.empty_like(positions)
        updates = positions // self.batch_size
        for update in np.unique(updates):
            here = updates == update
            bucket, batch = self._find_batch(int(update))
            inside = positions[here] % self.batch_size
            indices[here] = self._members[bucket][self._orders[bucket](batch * self.batch_size + inside)]
        return indices

    @functools.cached_property
    def _members(self) -> list[Indices]:
        """Returns the indices of the pictures of every bucket that has any."""
        return [np.flatnonzero(self.buckets == bucket) for bucket in np.unique(self.buckets)]

    @functools.cached_property
    def _orders(self) -> list[SampleOrder]:
        # Of one seed, so that all go through the shards in the same order, and each shard is fetched once.
        ends = np.cumsum(self.shard_sizes)
        shards = [np.searchsorted(ends, members, side="right") for members in self._members]
        sizes = [tuple(np.bincount(each, minlength=len(ends)).tolist()) for each in shards]
        return [SampleOrder(self.seed, each, repeats=self.repeats) for each in sizes]

    @functools.cached_property
    def _lengths(self) -> tuple[int, ...]:
        return tuple(order.length for order in self._orders)

    def _find_batch(self, update: int) -> tuple[int, int]:
        """Returns the bucket of an update, and how many batches of that bucket there are before."""
        latest = update * self.batch_size // sum(self._lengths)
        epoch = bisect.bisect_right(range(latest + 1), update, key=self._count_updates) - 1
        labels, numbers = _plan_epoch(self.seed, self.batch_size, self._lengths, epoch)
        place = update - self._count_updates(epoch)
        return int(labels[place]), int(numbers[place])

    def _count_updates(self, epoch: int) -> int:
        """Returns how many updates there are before an epoch."""
        return sum(_count_batches(self.batch_size, self._lengths, epoch))


def _count_batches(batch_size: int, lengths: Sequence[int], epoch: int) -> list[int]:
    """Returns how many batches of each bucket begin before an epoch."""
    return [-(-epoch * length // batch_size) for length in lengths]


@functools.lru_cache(maxsize=8)
def _plan_epoch(seed: int, batch_size: int, lengths: tuple[int, ...], epoch: int) -> tuple[Indices, Indices]:
    """Returns, for each update of an epoch, its bucket and which of that bucket's batches it takes."""
    before, after = (np.array(_count_batches(batch_size, lengths, each)) for each in (epoch, epoch + 1))
    counts = after - before
    labels = np.repeat(np.arange(len(lengths)), counts)
    labels = labels[Permutation(draws.key(seed, "buckets", epoch), len(labels))(np.arange(len(labels)))]
    numbers = np.empty_like(labels)
    numbers[np.argsort(labels, kind="stable")] = np.concatenate(
        [np.arange(first, end) for first, end in zip(before, after, strict=True)]
    )
    return labels, numbers
