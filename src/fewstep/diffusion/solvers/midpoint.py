"""The midpoint rule in the share of noise σ̃ = σ/(α + σ), which on a flow is σ."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.diffusion.schedule import Schedule
from fewstep.diffusion.solvers.base import Field, Solver, to_time


def step(schedule: Schedule, field: Field, z_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Returns z_s by the midpoint rule for z̃ = z/(α + σ) = (1 − σ̃)·z_0 + σ̃·ε.

    Any schedule is a flow in that scale, and its PF-ODE is dz̃/dσ̃ = ε̂ − ẑ_0, which has no singular end: neither where
    λ = +∞, σ̃ = 0, nor where λ = −∞, σ̃ = 1. With m halfway in σ̃ and z_m the first-order step there,

    z_s = r·z_t + (σ_s − r·σ_t)·(ε̂ − ẑ_0)(z_m, m),  r = (α_s + σ_s)/(α_t + σ_t)

    On a flow r = 1 and ε̂ − ẑ_0 = v.
    """
    middle = halfway_in_noise(schedule, t, s)
    second = field(to_time(schedule, field(z_t, t), z_t, middle), middle)
    alpha_t, sigma_t = schedule.coefficients(t, z_t)
    alpha_s, sigma_s = schedule.coefficients(s, z_t)
    ratio = (alpha_s + sigma_s) / (alpha_t + sigma_t)
    return ratio * z_t + (sigma_s - ratio * sigma_t) * (second.epsilon - second.z_0)


def halfway_in_noise(schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
    """Returns the time halfway in σ̃ = 1/(1 + e^λ)."""
    share = (torch.sigmoid(-schedule.lam(t)) + torch.sigmoid(-schedule.lam(s))) / 2
    return schedule.time_of_lam(-torch.logit(share))


SOLVER = Solver("midpoint", order=2, evaluations=2, step=step)
