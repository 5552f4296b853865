"""Where the answers of an update land, the end e ≤ t: a function and an `End` in ENDS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from fewstep.diffusion.sampling import sampling_times
from fewstep.diffusion.schedule import Schedule


@dataclass(frozen=True)
class End:
    """An end states whether one t can have several."""

    name: str
    several: bool
    """Whether one t can have several, which one answer of a network cannot serve unless it is told e."""
    choose: Callable[[Schedule, Tensor, Tensor, Sequence[int]], Tensor]
    """Maps (schedule, t [b] whole, u [b] uniform in [0, 1), numbers of phases) to whole e [b], below t where t > 0."""


def edges(schedule: Schedule, count: int) -> Tensor:
    """Returns the whole times at which `count` phases begin, earliest first: 0, and where trailing DDIM lands.

    On Stable Diffusion's schedule edge j is round(1000·j/count) − 1, but for the first (PCM, arXiv 2405.18407, in
    N = 1000 steps).
    """
    return torch.tensor([0, *reversed(sampling_times(schedule, count, "trailing")[1:])])


def draw_counts(schedule: Schedule, t: Tensor, u: Tensor, phases: Sequence[int]) -> Tensor:
    """Draws for each t `[b]` one of the numbers of `phases`, by `u` `[b]`: of those at whose steps a sampler asks at t,
    and where there is none, of all.

    They are equally likely but at the last time, where every sampler begins: there the fewest phases have half, since
    nowhere else is a single step learnt that starts from noise.
    """
    counts = torch.tensor(phases, device=t.device)
    ends = [torch.cat([edges(schedule, count)[1:], torch.tensor([schedule.last])]) for count in phases]
    shares = torch.stack([torch.isin(t, end.to(t.device)) for end in ends], dim=-1).double()  # [b, phases]
    shares[(shares.sum(-1) == 0)] = 1.0
    fewest, others = counts == counts.min(), counts != counts.min()
    if bool(others.any()):
        half = torch.where(fewest, int(others.sum()) / int(fewest.sum()), 1.0).clamp(min=1.0)
        shares = torch.where((t == schedule.last)[:, None], half, shares)
    reached = shares.cumsum(-1) / shares.sum(-1, keepdim=True)
    return counts[(reached <= u.to(t.device)[:, None]).sum(-1).clamp(max=len(phases) - 1)]


def phase_lengths(schedule: Schedule, t: Tensor, u: Tensor, phases: Sequence[int]) -> Tensor:
    """Returns how many times a phase has of the number that `draw_counts` draws; without phases all that there are."""
    if not phases:
        return torch.full_like(u, schedule.num_steps)
    return schedule.num_steps / draw_counts(schedule, t, u, phases)


def choose_zero(_schedule: Schedule, t: Tensor, _u: Tensor, _phases: Sequence[int]) -> Tensor:
    """Chooses 0 (LCM)."""
    return torch.zeros_like(t)


def choose_edge(schedule: Schedule, t: Tensor, u: Tensor, phases: Sequence[int]) -> Tensor:
    """Chooses the beginning of the phase that t lies in, for the number of phases that `draw_counts` draws.

    A time at an edge ends the phase before it.
    """
    drawn, e = draw_counts(schedule, t, u, phases), torch.zeros_like(t)
    for count in set(phases):
        begin = edges(schedule, count).to(t.device)
        own = begin[(torch.searchsorted(begin, t) - 1).clamp(min=0)]
        e = torch.where(drawn == count, own, e)
    return e


def choose_anywhere(_schedule: Schedule, t: Tensor, u: Tensor, _phases: Sequence[int]) -> Tensor:
    """Chooses any whole time below t, equally likely (TCD, arXiv 2402.19159)."""
    return (u * t).long()


ZERO = End("zero", several=False, choose=choose_zero)
PHASE = End("phase", several=False, choose=choose_edge)
DRAWN_PHASE = End("drawn-phase", several=True, choose=choose_edge)
ANYWHERE = End("anywhere", several=True, choose=choose_anywhere)
ENDS: dict[str, End] = {end.name: end for end in (ZERO, PHASE, DRAWN_PHASE, ANYWHERE)}
"""Holds every end by its name."""

if TYPE_CHECKING:
    EndName = str
else:
    EndName = Literal[tuple(ENDS)]  # what the command line allows
