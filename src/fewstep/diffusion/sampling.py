"""Sampling a teacher from noise over many steps: where they stand, and samplers that take each for itself."""

from __future__ import annotations

import itertools
from typing import Literal, assert_never

import torch
from torch import Tensor

from fewstep.diffusion.schedule import Schedule
from fewstep.diffusion.solvers.base import Field, Solver
from fewstep.diffusion.solvers.ddim import SOLVER as DDIM

Spacing = Literal["trailing", "leading", "linspace", "leading+1", "linspace+1"]
"""Where n steps stand: from the last time in equal strides; from 1 in equal strides (never reaching the last time);
from the last time to 0 with both ends. The last two make n + 1 such steps and leave out the earliest, as diffusers'
DPM-Solver schedulers do."""


def sampling_times(schedule: Schedule, count: int, spacing: Spacing) -> list[int]:
    """Returns `count` whole times of a schedule, latest first, as diffusers' schedulers place them."""
    total, last = schedule.num_steps, schedule.last
    match spacing:
        case "leading+1":
            return sampling_times(schedule, count + 1, "leading")[:-1]
        case "linspace+1":
            return sampling_times(schedule, count + 1, "linspace")[:-1]
        case "trailing":
            times = torch.arange(total, 0, -total / count, dtype=torch.float64).round()[:count] + (last - total)
        case "leading":
            times = (torch.arange(count) * (total // count)).flip(0) + 1
        case "linspace":
            times = torch.linspace(0, last, count, dtype=torch.float64).round().flip(0)
        case _:
            assert_never(spacing)
    return [int(time) for time in times]


def stretch_times(schedule: Schedule, times: list[int], last_sigma: float) -> list[int]:
    """Returns whole times of a flow whose last has σ = `last_sigma`, and whose first is as it was.

    α is scaled alike at all of them (diffusers' `shift_terminal`); a step that is the only one stays.
    """
    alphas = schedule.alpha(torch.tensor(times))
    if not alphas[-1]:
        return times
    alphas = alphas * (1 - last_sigma) / alphas[-1]
    return [int(time) for time in schedule.time_of_lam(torch.logit(alphas)).round()]


def sample_ode(schedule: Schedule, field: Field, z_T: Tensor, times: list[int], solver: Solver = DDIM) -> Tensor:
    """Returns z at t = 0, from z_T at `times[0]`, one `solver` step between neighbouring times and one to 0."""
    z = z_T
    for t, s in zip(times, [*times[1:], 0], strict=True):
        z = solver.step(schedule, field, z, batch_of(t, z), batch_of(s, z))
    return z


def sample_euler(schedule: Schedule, field: Field, z_T: Tensor, times: list[int]) -> Tensor:
    """Steps by Euler's method on z/α over σ/α (arXiv 2206.00364, algorithm 1 without its correction), to σ = 0.

    Step by step that is DDIM, which ends at t = 0, where Stable Diffusion still has noise; this ends in the last ẑ_0.
    """
    z = z_T
    for t, s in itertools.pairwise(times):
        z = DDIM.step(schedule, field, z, batch_of(t, z), batch_of(s, z))
    return field(z, batch_of(times[-1], z)).z_0


def batch_of(t: int, z: Tensor) -> Tensor:
    """Returns t for every row of z, where z is."""
    return torch.full((len(z),), t, dtype=torch.long, device=z.device)
