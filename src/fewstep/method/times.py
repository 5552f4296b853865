"""Which time pairs t and s are trained, by a `Gap` that says how far s lies below t."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, assert_never

import torch
from torch import Tensor

from fewstep.diffusion.schedule import Schedule

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
