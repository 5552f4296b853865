"""One memoryless step of the PF-ODE from t to an earlier s: what the paper calls Ψ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from fewstep.diffusion.prediction import Prediction
from fewstep.diffusion.schedule import Schedule

Field = Callable[[Tensor, Tensor], Prediction]
"""(z_t, t [b]) → Prediction, with condition and guidance already inside."""

Solver = Callable[[Schedule, Field, Tensor, Tensor, Tensor], Tensor]
"""(schedule, field, z_t, t [b], s [b]) → z_s, with s ≤ t sample by sample."""

SolverName = Literal["ddim", "dpm-solver-2", "dpm-solver++2s"]


def ddim(schedule: Schedule, field: Field, z_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """z_s = α_s·ẑ_0 + σ_s·ε̂ (arXiv 2010.02502, eq. 12 with η = 0); first order, one evaluation."""
    return _to(schedule, field(z_t, t), z_t, s)


def dpm_solver_2(schedule: Schedule, field: Field, z_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """DPM-Solver-2 (arXiv 2206.00927, algorithm 1, r₁ = 1/2); second order, two evaluations.

    u   = α_m/α_t·z_t − σ_m·(e^{h/2} − 1)·ε̂(z_t, t)      at m, halfway in λ
    z_s = α_s/α_t·z_t − σ_s·(e^h − 1)·ε̂(u, m)
    """
    first = field(z_t, t)
    middle, h, has_middle = _halfway(schedule, t, s)
    alpha_t, _ = schedule.coefficients(t, z_t)
    alpha_m, sigma_m = schedule.coefficients(middle, z_t)
    alpha_s, sigma_s = schedule.coefficients(s, z_t)
    h, has_middle = _like(h, z_t), _like(has_middle, z_t)
    u = alpha_m / alpha_t * z_t - sigma_m * torch.expm1(h / 2) * first.epsilon
    second = field(torch.where(has_middle, u, z_t), middle)
    z_s = alpha_s / alpha_t * z_t - sigma_s * torch.expm1(h) * second.epsilon
    return torch.where(has_middle, z_s, _to(schedule, first, z_t, s))


def dpm_solver_pp_2s(schedule: Schedule, field: Field, z_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """DPM-Solver++(2S) (arXiv 2211.01095, algorithm 1, r = 1/2); second order, two evaluations.

    u   = σ_m/σ_t·z_t − α_m·(e^{−h/2} − 1)·ẑ_0(z_t, t)   at m, halfway in λ
    z_s = σ_s/σ_t·z_t − α_s·(e^{−h} − 1)·ẑ_0(u, m)
    """
    first = field(z_t, t)
    middle, h, has_middle = _halfway(schedule, t, s)
    _, sigma_t = schedule.coefficients(t, z_t)
    alpha_m, sigma_m = schedule.coefficients(middle, z_t)
    alpha_s, sigma_s = schedule.coefficients(s, z_t)
    h, has_middle = _like(h, z_t), _like(has_middle, z_t)
    u = sigma_m / sigma_t * z_t - alpha_m * torch.expm1(-h / 2) * first.z_0
    second = field(torch.where(has_middle, u, z_t), middle)
    z_s = sigma_s / sigma_t * z_t - alpha_s * torch.expm1(-h) * second.z_0
    return torch.where(has_middle, z_s, _to(schedule, first, z_t, s))


SOLVERS: dict[SolverName, Solver] = {
    "ddim": ddim,
    "dpm-solver-2": dpm_solver_2,
    "dpm-solver++2s": dpm_solver_pp_2s,
}


def _to(schedule: Schedule, prediction: Prediction, z_t: Tensor, s: Tensor) -> Tensor:
    alpha_s, sigma_s = schedule.coefficients(s, z_t)
    return alpha_s * prediction.z_0 + sigma_s * prediction.epsilon


def _halfway(schedule: Schedule, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The time halfway in λ, h = λ_s − λ_t, and where the two exist: not from λ(t) = −∞."""
    lam_t, lam_s = schedule.lam(t), schedule.lam(s)
    has_middle = torch.isfinite(lam_t)
    lam_t = torch.where(has_middle, lam_t, lam_s)
    return schedule.time_of_lam((lam_t + lam_s) / 2), lam_s - lam_t, has_middle


def _like(values: Tensor, z: Tensor) -> Tensor:
    """`[b]` shaped to multiply `[b, …]`."""
    if values.is_floating_point():
        values = values.to(torch.promote_types(z.dtype, torch.float32))
    return values.view((-1,) + (1,) * (z.ndim - 1))
