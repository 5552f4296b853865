"""Which time pairs t and s are trained, by a `Gap` that says how far s lies below t."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, assert_never

import torch
from torch import Tensor

from fewstep.diffusion.schedule import Schedule

Times = Literal["grid", "any"]
Gap = Callable[[Tensor, Tensor], Tensor]
"""(t [b], pictures trained on before [b]) → t − s [b], whole."""


def draw_times(u: Tensor, schedule: Schedule, skip: int, times: Times) -> Tensor:
    """Returns t `[b]`, whole, from `u` `[b]` uniform in [0, 1).

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
    choices = choices[choices > 0]  # k = 1 would hold t = 0, where f is the identity and nothing is learnt
    return choices.to(u.device)[(u * len(choices)).long()]


def step_back(t: Tensor, gap: Tensor, e: Tensor) -> Tensor:
    """Returns s = max(t − gap, e), so that e ≤ s ≤ t wherever e ≤ t."""
    return torch.maximum(t - gap, e)


def fixed_gap(skip: int) -> Gap:
    """Makes the paper's gap: k throughout."""
    return lambda t, _position: torch.full_like(t, skip)


def shrinking_gap(num_steps: int, skip: int, pictures: int) -> Gap:
    """Makes k·(T/k)^(1 − p), p = position / pictures: from T at first down to the skip k after so many pictures.

    The idea is Easy Consistency Tuning's (arXiv 2406.14548): with s = 0 the target is the picture itself, so what
    pictures say is known at every t before consistency refines it.
    """

    def gap(_t: Tensor, position: Tensor) -> Tensor:
        left = 1 - (position.double() / pictures).clamp(0, 1)
        return (skip * (num_steps / skip) ** left).round().long()

    return gap
