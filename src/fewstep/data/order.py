"""Which picture stands at each position of a run: keyed permutations, pure in the position, no table of pictures."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fewstep.data import draws
from fewstep.errors import UserError

Indices = NDArray[np.int64]

_ROUNDS = 8
_BLOCK = 1000


class Permutation:
    """Of range(size), another for every key: a Feistel cipher on a power of four, walked until it lands inside."""

    def __init__(self, key: int, size: int) -> None:
        self._size = size
        self._bits = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
        self._keys = [np.uint64(draws.key(key, "round", i)) for i in range(_ROUNDS)]

    def __call__(self, positions: Sequence[int] | Indices) -> Indices:
        """Where each of `positions` goes."""
        values = self._encipher(np.asarray(positions, dtype=np.uint64))
        while (outside := values >= self._size).any():
            values[outside] = self._encipher(values[outside])
        return values.astype(np.int64)

    def _encipher(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        mask = (np.uint64(1) << self._bits) - np.uint64(1)
        left, right = values >> self._bits, values & mask
        for key in self._keys:
            left, right = right, left ^ (_mixed(right ^ key) & mask)
        return (left << self._bits) | right


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser, whose every output bit depends on every input bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True)
class SampleOrder:
    """A fresh order every epoch, in which each picture stands once: windows of shuffled shards, shuffled within.

    Reading it goes through the shards of one window before the next, so that remote shards are fetched once an epoch.
    """

    seed: int
    shard_sizes: tuple[int, ...]
    """Pictures in each shard."""
    window: int = 16
    """Shards whose pictures stand mixed."""

    def __post_init__(self) -> None:
        if not sum(self.shard_sizes):
            raise UserError("there are no pictures to put in order; give some with --data")

    def __call__(self, counters: Sequence[int] | Indices) -> Indices:
        """The picture at each of these positions, counted from 0 through all epochs; as its index in the source."""
        positions = np.asarray(counters, dtype=np.int64)
        indices = np.empty_like(positions)
        epochs = positions // self._size
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = self._within(int(epoch), positions[here] % self._size)
        return indices

    @functools.cached_property
    def _size(self) -> int:
        return sum(self.shard_sizes)

    @functools.cached_property
    def _starts(self) -> Indices:
        return np.cumsum([0, *self.shard_sizes])

    def _within(self, epoch: int, places: Indices) -> Indices:
        shards, starts, windows = self._epoch(epoch)
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

    def _epoch(self, epoch: int) -> tuple[Indices, Indices, Indices]:
        """Of one epoch: its shards in order, where each of them begins, where each window begins and the last ends."""
        return _plan(self.seed, self.shard_sizes, self.window, epoch)


@functools.lru_cache(maxsize=8)
def _plan(seed: int, shard_sizes: tuple[int, ...], window: int, epoch: int) -> tuple[Indices, Indices, Indices]:
    shuffle = Permutation(draws.key(seed, "shards", epoch), len(shard_sizes))
    shards = shuffle(np.arange(len(shard_sizes)))
    starts = np.cumsum([0, *np.asarray(shard_sizes)[shards]])
    windows = np.append(starts[:-1:window], starts[-1])
    return shards, starts, windows


@dataclass(frozen=True)
class MixedSampleOrder:
    """Several sources in one order, each in its own, so that each picture of a source comes once in an epoch of it.

    In every thousand positions each source has its share, at places drawn anew.
    """

    seed: int
    orders: tuple[SampleOrder, ...]
    weights: tuple[float, ...]
    """Their shares, up to a common factor; kept to the thousandth."""

    def __post_init__(self) -> None:
        for weight, quota in zip(self.weights, self._quotas, strict=True):
            if not quota:
                raise UserError(
                    f"a source weighs {weight:g} of {sum(self.weights):g} in all; give each a thousandth or more"
                )

    def __call__(self, counters: Sequence[int] | Indices) -> Indices:
        """The picture at each of these positions, as its index among the pictures of all sources, one after another."""
        positions = np.asarray(counters, dtype=np.int64)
        indices = np.empty_like(positions)
        offsets = np.cumsum([0, *(sum(order.shard_sizes) for order in self.orders)])
        blocks, places = positions // _BLOCK, positions % _BLOCK
        for block in np.unique(blocks):
            here = blocks == block
            source, rank = _block(self.seed, tuple(self._quotas), int(block))
            for i, order in enumerate(self.orders):
                mine = np.flatnonzero(here)[source[places[here]] == i]
                indices[mine] = offsets[i] + order(block * self._quotas[i] + rank[places[mine]])
        return indices

    @functools.cached_property
    def _quotas(self) -> Indices:
        """How many of a block's positions each source has: largest remainders."""
        wanted = np.asarray(self.weights) * (_BLOCK / sum(self.weights))
        quotas = np.floor(wanted).astype(np.int64)
        most_left = np.argsort(quotas - wanted, kind="stable")
        quotas[most_left[: _BLOCK - quotas.sum()]] += 1
        return quotas


@functools.lru_cache(maxsize=8)
def _block(seed: int, quotas: tuple[int, ...], block: int) -> tuple[Indices, Indices]:
    """For each position of a block: which source, and how many of that source stand before it in the block."""
    source = np.repeat(np.arange(len(quotas)), quotas)
    source = source[Permutation(draws.key(seed, "mixture", block), _BLOCK)(np.arange(_BLOCK))]
    rank = np.empty_like(source)
    for i in range(len(quotas)):
        mine = source == i
        rank[mine] = np.arange(mine.sum())
    return source, rank
