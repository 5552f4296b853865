"""Shards of trajectories that `fewstep prepare` writes: where the teacher stood after each of its steps."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fewstep.data.shards.manifest import TRAJECTORIES
from fewstep.data.shards.prepared import PreparedShards
from fewstep.data.sources.remote import CacheSettings
from fewstep.errors import UserError

_MOST_STOPS = 10_000


class TrajectoryShards(PreparedShards):
    """Each row has its states `[stops, c, h, w]`, from noise to the picture, and the ω that it was guided by."""

    kind = TRAJECTORIES

    def __init__(
        self, folder: str | Path, *, follow_links: bool = False, cache: CacheSettings | None = None
    ) -> None:  # fmt: skip
        super().__init__(folder, follow_links=follow_links, cache=cache)
        stops, shape = self.made_of.get("stops"), self.made_of.get("latent_shape")
        if not _are_whole(stops) or not _are_whole(shape):
            raise UserError(f"{self.place} does not say at which times its trajectories stop; prepare them again")
        assert isinstance(stops, list)
        assert isinstance(shape, list)
        self.stops: tuple[int, ...] = tuple(stops)
        self.latent_shape: tuple[int, ...] = tuple(shape)
        falling = all(later > earlier for later, earlier in itertools.pairwise(stops))
        if len(stops) < 2 or stops[-1] != 0 or not falling:
            raise UserError(f"{self.place} has trajectories that do not lead from noise to t = 0; prepare them again")

    @property
    def hops(self) -> int:
        """Counts the steps of a trajectory."""
        return len(self.stops) - 1

    def read_state(self, shard: int, row: int, stop: int) -> Tensor:
        """Reads where a trajectory stood after so many steps, `[c, h, w]`."""
        states = self._shard(shard)[0].get_slice("states")
        state: Tensor = states[row, stop]
        return state

    def read_omega(self, shard: int, row: int) -> float:
        """Reads what a trajectory was guided by."""
        return float(self._shard(shard)[0].get_slice("omega")[row])

    def _fit(self, shapes: Mapping[str, tuple[int, ...]], rows: int) -> bool:
        states = (rows, len(self.stops), *self.latent_shape)
        return shapes.get("states") == states and shapes.get("omega") == (rows,)


def _are_whole(numbers: object) -> bool:
    return (
        isinstance(numbers, list)
        and 0 < len(numbers) <= _MOST_STOPS
        and all(type(number) is int and number >= 0 for number in numbers)
    )
