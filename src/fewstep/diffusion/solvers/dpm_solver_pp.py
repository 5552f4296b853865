"""DPM-Solver++ (2S), which steps in ẑ_0."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.diffusion.schedule import Schedule
from fewstep.diffusion.solvers.base import Field, Solver, expand_like, halfway_in_lambda, to_time


def step(schedule: Schedule, field: Field, z_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Returns z_s by DPM-Solver++ (2S) (arXiv 2211.01095, algorithm 1, r = 1/2).

    u   = σ_m/σ_t·z_t − α_m·(e^{−h/2} − 1)·ẑ_0(z_t, t)   at m, halfway in λ
    z_s = σ_s/σ_t·z_t − α_s·(e^{−h} − 1)·ẑ_0(u, m)
    """
    first = field(z_t, t)
    middle, h, has_middle = halfway_in_lambda(schedule, t, s)
    _, sigma_t = schedule.coefficients(t, z_t)
    alpha_m, sigma_m = schedule.coefficients(middle, z_t)
    alpha_s, sigma_s = schedule.coefficients(s, z_t)
    h, has_middle = expand_like(h, z_t), expand_like(has_middle, z_t)
    u = sigma_m / sigma_t * z_t - alpha_m * torch.expm1(-h / 2) * first.z_0
    second = field(torch.where(has_middle, u, z_t), middle)
    z_s = sigma_s / sigma_t * z_t - alpha_s * torch.expm1(-h) * second.z_0
    return torch.where(has_middle, z_s, to_time(schedule, first, z_t, s))


SOLVER = Solver("dpm-solver++2s", order=2, evaluations=2, step=step)
