"""Which trajectory of the teacher a sample stands on, and where on it: a pure function of its position in the run."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.diffusion.schedule import Schedule
from fewstep.method.times import edges


@dataclass(frozen=True)
class Walk:
    """The way from noise to a picture, and how many walk it at a time, evenly spread over it."""

    stops: Tensor
    """Whole times, latest first; the last is 0."""
    walkers: int

    @property
    def hops(self) -> int:
        """Counts the steps of a trajectory."""
        return len(self.stops) - 1

    def locate(self, counters: Sequence[int]) -> tuple[list[int], list[int]]:
        """Returns the number of the trajectory that each counter is on, and how many of its hops lie behind.

        Of any consecutive counters those at hop 0 are consecutive, and so are the numbers of their trajectories. Before
        the first trajectory began, numbers are below 0.
        """
        numbers, hops = [], []
        for counter in counters:
            visit, walker = divmod(counter, self.walkers)
            round_, hop = divmod(visit + self.hops - 1 - walker * self.hops // self.walkers, self.hops)
            numbers.append(round_ * self.walkers + walker)
            hops.append(hop)
        return numbers, hops


def make_walk(schedule: Schedule, skip: int, phases: Sequence[int], walkers: int) -> Walk:
    """Makes the walk whose stops `find_stops` gives."""
    return Walk(find_stops(schedule, skip, phases), walkers)


def find_stops(schedule: Schedule, skip: int, phases: Sequence[int]) -> Tensor:
    """Returns the beginnings of all phases and, between them, equal hops of at most `skip`, latest first."""
    begins = torch.cat([torch.tensor([0, schedule.last]), *(edges(schedule, count) for count in phases)]).unique()
    stops = [0]
    for begin, end in itertools.pairwise(begins.tolist()):
        hops = math.ceil((end - begin) / skip)
        stops += [begin + round((end - begin) * (hop + 1) / hops) for hop in range(hops)]
    return torch.tensor(stops[::-1])


def find_stop(stops: Tensor, times: Tensor) -> Tensor:
    """Returns the numbers of the latest stops, which are listed latest first, at or below each of the `times` `[b]`."""
    return len(stops) - torch.searchsorted(stops.flip(0), times, right=True)
