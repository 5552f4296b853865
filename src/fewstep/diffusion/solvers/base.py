"""What a solver is: one memoryless step of the PF-ODE from t to an earlier s, which the paper calls Ψ; and the first of
them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.diffusion.prediction import Prediction
from fewstep.diffusion.schedule import Schedule

Field = Callable[[Tensor, Tensor], Prediction]
"""Maps (z_t, t [b]) to a Prediction, with condition and guidance already inside."""


@dataclass(frozen=True)
class Solver:
    """A solver states its own order and cost; tests measure both."""

    name: str
    order: int
    """Is the power of the step's length with which the global error falls."""
    evaluations: int
    """How often a step asks the field."""
    step: Callable[[Schedule, Field, Tensor, Tensor, Tensor], Tensor]
    """Maps (schedule, field, z_t, t [b], s [b]) to z_s, with s ≤ t sample by sample."""


def to_time(schedule: Schedule, prediction: Prediction, z_t: Tensor, s: Tensor) -> Tensor:
    """Returns α_s·ẑ_0 + σ_s·ε̂, the first-order step."""
    alpha_s, sigma_s = schedule.coefficients(s, z_t)
    return alpha_s * prediction.z_0 + sigma_s * prediction.epsilon


def step_ddim(schedule: Schedule, field: Field, z_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Returns z_s = α_s·ẑ_0 + σ_s·ε̂ (arXiv 2010.02502, eq. 12 with η = 0)."""
    return to_time(schedule, field(z_t, t), z_t, s)


DDIM = Solver("ddim", order=1, evaluations=1, step=step_ddim)
"""Is first-order DPM-Solver and DPM-Solver++ too, and Euler's method on a flow."""


def halfway_in_lambda(schedule: Schedule, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the time halfway in λ, h = λ_s − λ_t, and where the two exist: not from λ(t) = −∞, nor to λ(s) = +∞.

    Elsewhere the time is one that may be asked and h is 0, so that nothing there is divided by or multiplied with ∞.
    """
    lam_t, lam_s = schedule.lam(t), schedule.lam(s)
    starts, ends = torch.isfinite(lam_t), torch.isfinite(lam_s)
    has_middle = starts & ends
    lam_t, lam_s = torch.where(starts, lam_t, lam_s), torch.where(ends, lam_s, lam_t)
    lam_t, lam_s = (torch.where(starts | ends, lam, 0) for lam in (lam_t, lam_s))
    return schedule.time_of_lam((lam_t + lam_s) / 2), lam_s - lam_t, has_middle


def expand_like(values: Tensor, z: Tensor) -> Tensor:
    """Shapes `[b]` to multiply `[b, …]`."""
    if values.is_floating_point():
        values = values.to(torch.promote_types(z.dtype, torch.float32))
    return values.view((-1,) + (1,) * (z.ndim - 1))
