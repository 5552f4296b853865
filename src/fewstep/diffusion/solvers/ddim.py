"""DDIM, which first-order DPM-Solver and DPM-Solver++ are too, and Euler's method on a flow."""

from __future__ import annotations

from torch import Tensor

from fewstep.diffusion.schedule import Schedule
from fewstep.diffusion.solvers.base import Field, Solver, to_time


def step(schedule: Schedule, field: Field, z_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Returns z_s = α_s·ẑ_0 + σ_s·ε̂ (arXiv 2010.02502, eq. 12 with η = 0)."""
    return to_time(schedule, field(z_t, t), z_t, s)


SOLVER = Solver("ddim", order=1, evaluations=1, step=step)
