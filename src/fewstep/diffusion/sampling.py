"""Sampling a teacher from noise over many steps: samplers that take each for itself."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from fewstep.diffusion.schedule import Schedule
from fewstep.diffusion.solvers.base import DDIM, Field, Solver


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
