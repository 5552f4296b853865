"""DPM-Solver-2, which steps in ε̂."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.diffusion.schedule import Schedule
from fewstep.diffusion.solvers.base import Field, Solver, expand_like, halfway_in_lambda, to_time


def step(schedule: Schedule, field: Field, z_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Returns z_s by DPM-Solver-2 (arXiv 2206.00927, algorithm 1, r₁ = 1/2).

    u   = α_m/α_t·z_t − σ_m·(e^{h/2} − 1)·ε̂(z_t, t)      at m, halfway in λ
    z_s = α_s/α_t·z_t − σ_s·(e^h − 1)·ε̂(u, m)
    """
    first = field(z_t, t)
    middle, h, has_middle = halfway_in_lambda(schedule, t, s)
    alpha_t, _ = schedule.coefficients(t, z_t)
    alpha_m, sigma_m = schedule.coefficients(middle, z_t)
    alpha_s, sigma_s = schedule.coefficients(s, z_t)
    h, has_middle = expand_like(h, z_t), expand_like(has_middle, z_t)
    u = alpha_m / alpha_t * z_t - sigma_m * torch.expm1(h / 2) * first.epsilon
    second = field(torch.where(has_middle, u, z_t), middle)
    z_s = alpha_s / alpha_t * z_t - sigma_s * torch.expm1(h) * second.epsilon
    return torch.where(has_middle, z_s, to_time(schedule, first, z_t, s))


SOLVER = Solver("dpm-solver-2", order=2, evaluations=2, step=step)
