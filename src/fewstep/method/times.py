"""Which times an update compares, e ≤ s ≤ t: what t is drawn from, the `Gap` by which s lies below it, and the `End`, a
line in ENDS, where answers land. And which times samplers ask at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, assert_never

import torch
from torch import Tensor

from fewstep.diffusion.schedule import Schedule, sampling_times

Times = Literal["grid", "any"]
Gap = Callable[[Tensor, Tensor], Tensor]
"""Maps (t [b], pictures trained on before [b]) to t − s [b], whole."""


def draw_times(u: Tensor, schedule: Schedule, skip: int, times: Times, more: Tensor | None = None) -> Tensor:
    """Returns t `[b]`, whole, from `u` `[b]` uniform in [0, 1), among the times that are named and `more`.

    `grid`: the schedule's grid of T // k times, where LCM samplers land, k apart wherever k divides T. `any`: from k to
    the last time, algorithm 1 as the paper writes it.
    """
    match times:
        case "grid":
            choices = schedule.grid(schedule.grid_size(skip))
        case "any":
            choices = torch.arange(skip, schedule.last + 1)
        case _:
            assert_never(times)
    if more is not None:
        choices = torch.cat([choices, more]).unique()
    choices = choices[choices > 0]  # k = 1 would hold t = 0, where f is the identity and nothing is learnt
    return choices.to(u.device)[(u * len(choices)).long()]


def step_back(t: Tensor, gap: Tensor, e: Tensor) -> Tensor:
    """Returns s = max(t − gap, e), so that e ≤ s ≤ t wherever e ≤ t."""
    return torch.maximum(t - gap, e)


def fixed_gap(skip: int) -> Gap:
    """Makes the paper's gap: k throughout."""
    return lambda t, _position: torch.full_like(t, skip)


def whole_gap(t: Tensor, _position: Tensor) -> Tensor:
    """Returns t, so that s is the end itself and the teacher's step alone is learnt."""
    return t


def ratio_gap(schedule: Schedule, q: float, doubling: int) -> Gap:
    """Makes the gap of Easy Consistency Tuning (arXiv 2406.14548): x_s/x_t = 1 − q^−(i + 1)·(1 + 8·sigmoid(−x_t)), for
    the noise x = σ/α and the i-th stage of `doubling` pictures each; s = 0 where that is not above 0.
    """

    def gap(t: Tensor, position: Tensor) -> Tensor:
        x = torch.exp(-schedule.lam(t))
        stage = position.to(t.device) // doubling
        x_s = x * (1 - q ** -(stage + 1.0) * (1 + 8 * torch.sigmoid(-x)))
        s = torch.where(x_s > 0, schedule.time_of_lam(-torch.log(x_s.clamp(min=1e-12))), 0.0)
        return (t - s.round().long()).clamp(min=1)

    return gap


def shrinking_gap(num_steps: int, skip: int, pictures: int) -> Gap:
    """Makes k·(T/k)^(1 − p), p = position / pictures: from T at first down to the skip k after so many pictures.

    The idea is Easy Consistency Tuning's (arXiv 2406.14548): with s = 0 the target is the picture itself, so what
    pictures say is known at every t before consistency refines it.
    """

    def gap(_t: Tensor, position: Tensor) -> Tensor:
        left = 1 - (position.double() / pictures).clamp(0, 1)
        return (skip * (num_steps / skip) ** left).round().long()

    return gap


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


def consistency_times(schedule: Schedule, grid_size: int, count: int, strength: float = 1.0) -> list[int]:
    """Returns `count` of the `grid_size` times of the schedule's grid, latest first.

    With `strength` below 1, of the earlier part of them alone. Raises ValueError where there are fewer than `count`.
    """
    allowed = int(grid_size * strength)
    if not 1 <= count <= allowed:
        raise ValueError(f"steps is {count}; this model allows 1 to {allowed}")
    grid: list[int] = schedule.grid(grid_size).tolist()
    return [grid[allowed - i * allowed // count - 1] for i in range(count)]


def jump_times(
    schedule: Schedule, count: int, gamma: float = 0.0, strength: float = 1.0
) -> tuple[list[int], list[int]]:
    """Returns `count` times of equal strides, latest first, and the end of each jump; the first time is the last of the
    schedule, or so much earlier as `strength` says.

    A jump ends at (1 − γ) of the next time, rounded down, and is brought back to that time by fresh noise: at γ = 0 it
    ends at the next time itself (PCM, arXiv 2405.18407), at γ = 1 at 0 (TCD's γ, arXiv 2402.19159). The last ends at 0.
    """
    whole = sampling_times(schedule, count, "trailing")
    begin = schedule.last + 1 - schedule.num_steps
    times = [max(1, begin - 1 + round((time - begin + 1) * strength)) for time in whole]
    return times, [int((1 - gamma) * later) for later in [*times[1:], 0]]
