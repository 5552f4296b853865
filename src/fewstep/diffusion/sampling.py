"""Sampling a teacher from noise over many steps: DDIM, and DPM-Solver++ (2M)."""

from __future__ import annotations

import itertools
from typing import Literal

import torch
from torch import Tensor

from fewstep.diffusion.schedule import Schedule
from fewstep.diffusion.solvers import Field, Solver, ddim

Spacing = Literal["trailing", "leading", "linspace", "leading+1", "linspace+1"]
"""Where n steps stand: from T − 1 in equal strides; from 1 in equal strides (never reaching T − 1); from T − 1 to 0
with both ends. The last two make n + 1 such steps and leave out the earliest, as diffusers' DPM-Solver schedulers
do."""


def sampling_times(num_steps: int, count: int, spacing: Spacing) -> list[int]:
    """`count` whole times of a schedule of `num_steps`, latest first, as diffusers' schedulers place them."""
    if spacing in ("leading+1", "linspace+1"):
        return sampling_times(num_steps, count + 1, "leading" if spacing == "leading+1" else "linspace")[:-1]
    if spacing == "trailing":
        times = torch.arange(num_steps, 0, -num_steps / count, dtype=torch.float64).round()[:count] - 1
    elif spacing == "leading":
        times = (torch.arange(count) * (num_steps // count)).flip(0) + 1
    else:
        times = torch.linspace(0, num_steps - 1, count, dtype=torch.float64).round().flip(0)
    return [int(time) for time in times]


def sample_ode(schedule: Schedule, field: Field, z_T: Tensor, times: list[int], solver: Solver = ddim) -> Tensor:
    """z at t = 0, from z_T at `times[0]`, one `solver` step between neighbouring times and one to 0."""
    z = z_T
    for t, s in zip(times, [*times[1:], 0], strict=True):
        z = solver(schedule, field, z, _batch_of(t, z), _batch_of(s, z))
    return z


def sample_dpm_solver_pp_2m(schedule: Schedule, field: Field, z_T: Tensor, times: list[int]) -> Tensor:
    """DPM-Solver++ (2M) (arXiv 2211.01095, algorithm 2), the last step of first order and to σ = 0.

    z_s = σ_s/σ_t·z_t − α_s·(e^{−h} − 1)·D,  D = (1 + 1/2r)·ẑ_0(z_t) − 1/2r·ẑ_0(before),  r = h_before/h
    """
    z, before, lam_before = z_T, None, 0.0
    for t, s in itertools.pairwise(times):
        t_batch, s_batch = _batch_of(t, z), _batch_of(s, z)
        z_0 = field(z, t_batch).z_0
        lam_t, lam_s = float(schedule.lam(t_batch[:1])), float(schedule.lam(s_batch[:1]))
        _, sigma_t = schedule.coefficients(t_batch, z)
        alpha_s, sigma_s = schedule.coefficients(s_batch, z)
        h = lam_s - lam_t
        # From λ = −∞ (zero-terminal SNR) neither this step nor the next has a history to lean on.
        if before is None or lam_before == -torch.inf:
            d = z_0
        else:
            r = (lam_t - lam_before) / h
            d = (1 + 1 / (2 * r)) * z_0 - 1 / (2 * r) * before
        z = sigma_s / sigma_t * z - alpha_s * torch.expm1(torch.tensor(-h, dtype=z_0.dtype)).item() * d
        before, lam_before = z_0, lam_t
    return field(z, _batch_of(times[-1], z)).z_0


def _batch_of(t: int, z: Tensor) -> Tensor:
    return torch.full((len(z),), t, dtype=torch.long, device=z.device)
