"""The order of pictures in a run, as a pure function of the position: keyed permutations instead of shuffled lists."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fewstep.data import draws
from fewstep.errors import UserError

Indices = NDArray[np.int64]

_ROUNDS = 8
_BLOCK = 1000


class Permutation:
    """A permutation of range(size), a different one for every key.

    It is a Feistel cipher on a power of four, applied again wherever it leads outside the range (cycle walking).
    """

    def __init__(self, key: int, size: int) -> None:
        self._size = size
        self._bits = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
        self._keys = [np.uint64(draws.key(key, "round", i)) for i in range(_ROUNDS)]

    def __call__(self, positions: Sequence[int] | Indices) -> Indices:
        """Returns the images of `positions`."""
        values = self._encipher(np.asarray(positions, dtype=np.uint64))
        while (outside := values >= self._size).any():
            values[outside] = self._encipher(values[outside])
        return values.astype(np.int64)

    def _encipher(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        mask = (np.uint64(1) << self._bits) - np.uint64(1)
        left, right = values >> self._bits, values & mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        return (left << self._bits) | right


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Applies SplitMix64's finaliser: every output bit depends on every input bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Order(Protocol):
    """Pictures as a pure function of the position."""

    @property
    def count(self) -> int:
        """Returns the number of pictures."""
        ...

    def __call__(self, counters: Sequence[int] | Indices) -> Indices:
        """Returns the index of the picture at each position; positions count from 0 through all epochs."""
        ...


@dataclass(frozen=True)
class SampleOrder:
    """A new order for every epoch: the shards are shuffled, then the pictures within each window of shards.

    The shards of one window are finished before the next window begins, so a remote shard is fetched once an epoch.
    """

    seed: int
    shard_sizes: tuple[int, ...]
    """Counts the pictures of each shard."""
    window: int = 16
    """Number of consecutive shards whose pictures are shuffled together."""
    repeats: tuple[int, ...] = ()
    """How often an epoch goes through each shard; once through each if empty."""

    def __post_init__(self) -> None:
        if not sum(self.shard_sizes):
            raise UserError("there are no pictures to put in order; give some with --data")

    def __call__(self, counters: Sequence[int] | Indices) -> Indices:
        """Returns the index of the picture at each position; positions count from 0 through all epochs."""
        positions = np.asarray(counters, dtype=np.int64)
        indices = np.empty_like(positions)
        epochs = positions // self.length
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = self._find_in_epoch(int(epoch), positions[here] % self.length)
        return indices

    @property
    def count(self) -> int:
        """Returns the number of pictures."""
        return sum(self.shard_sizes)

    @functools.cached_property
    def length(self) -> int:
        """Returns how many positions an epoch has."""
        return sum(size * times for size, times in zip(self.shard_sizes, self._times, strict=True))

    @functools.cached_property
    def _times(self) -> tuple[int, ...]:
        return self.repeats or (1,) * len(self.shard_sizes)

    @functools.cached_property
    def _starts(self) -> Indices:
        return np.cumsum([0, *self.shard_sizes])

    def _find_in_epoch(self, epoch: int, places: Indices) -> Indices:
        shards, starts, windows = _plan_epoch(self.seed, self.shard_sizes, self._times, self.window, epoch)
        number = np.searchsorted(windows, places, side="right") - 1
        indices = np.empty_like(places)
        for window in np.unique(number):
            here = number == window
            first, end = windows[window], windows[window + 1]
            shuffle = Permutation(draws.key(self.seed, f"window {window}", epoch), int(end - first))
            at = first + shuffle(places[here] - first)
            shard = np.searchsorted(starts, at, side="right") - 1
            indices[here] = self._starts[shards[shard]] + at - starts[shard]
        return indices


@functools.lru_cache(maxsize=128)  # of as many orders as there are buckets
def _plan_epoch(
    seed: int, shard_sizes: tuple[int, ...], times: tuple[int, ...], window: int, epoch: int
) -> tuple[Indices, Indices, Indices]:
    """Returns the shards in order, the position at which each begins, and the bounds of the windows."""
    visits = np.repeat(np.arange(len(shard_sizes)), times)
    shards = visits[Permutation(draws.key(seed, "shards", epoch), len(visits))(np.arange(len(visits)))]
    starts = np.cumsum([0, *np.asarray(shard_sizes)[shards]])
    windows = np.append(starts[:-1:window], starts[-1])
    return shards, starts, windows


@dataclass(frozen=True)
class MixedSampleOrder:
    """Several sources interleaved; each keeps its own order and its own epochs.

    Every thousand positions hold each source's share of pictures, at random positions among the thousand.
    """

    seed: int
    orders: tuple[Order, ...]
    weights: tuple[float, ...]
    """Shares of the sources, up to a common factor; rounded to a thousandth."""
    together: int = 1
    """How many positions, one after another, have one source; with more, shares are those of a thousand times as many
    positions."""

    def __post_init__(self) -> None:
        for weight, quota in zip(self.weights, self._quotas, strict=True):
            if not quota:
                raise UserError(
                    f"a source weighs {weight:g} of {sum(self.weights):g} in all; give each a thousandth or more"
                )

    def __call__(self, counters: Sequence[int] | Indices) -> Indices:
        """Returns the index of the picture at each position, counted through all sources one after another."""
        positions = np.asarray(counters, dtype=np.int64)
        indices = np.empty_like(positions)
        offsets = np.cumsum([0, *(order.count for order in self.orders)])
        turns, inside = positions // self.together, positions % self.together
        blocks, places = turns // _BLOCK, turns % _BLOCK
        for block in np.unique(blocks):
            here = blocks == block
            source, rank = _plan_block(self.seed, tuple(self._quotas), int(block))
            for i, order in enumerate(self.orders):
                mine = np.flatnonzero(here)[source[places[here]] == i]
                turn = block * self._quotas[i] + rank[places[mine]]
                indices[mine] = offsets[i] + order(turn * self.together + inside[mine])
        return indices

    @functools.cached_property
    def _quotas(self) -> Indices:
        """Returns each source's number of positions in a block, by the method of largest remainders."""
        wanted = np.asarray(self.weights) * (_BLOCK / sum(self.weights))
        quotas = np.floor(wanted).astype(np.int64)
        most_left = np.argsort(quotas - wanted, kind="stable")
        quotas[most_left[: _BLOCK - quotas.sum()]] += 1
        return quotas


@functools.lru_cache(maxsize=8)
def _plan_block(seed: int, quotas: tuple[int, ...], block: int) -> tuple[Indices, Indices]:
    """Returns, for each position of a block, its source and how many of that source come before it in the block."""
    source = np.repeat(np.arange(len(quotas)), quotas)
    source = source[Permutation(draws.key(seed, "mixture", block), _BLOCK)(np.arange(_BLOCK))]
    rank = np.empty_like(source)
    for i in range(len(quotas)):
        mine = source == i
        rank[mine] = np.arange(mine.sum())
    return source, rank
