"""How a network's answer at t becomes z_e at the end point e: a function and a `Landing` in LANDINGS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.diffusion.prediction import Cond, Network, Prediction
from fewstep.diffusion.schedule import Schedule

SIGMA_DATA = 0.5
TIME_SCALE = 10.0


@dataclass(frozen=True)
class Landing:
    """A landing states where it can land."""

    name: str
    anywhere: bool
    """Whether every end e ≤ t will do; if not, 0 alone."""
    land: Callable[[Schedule, Prediction, Tensor, Tensor, Tensor], Tensor]
    """(schedule, the network's answer, z_t, t [b], e [b]) → z_e, which is z_t itself at e = t."""


def boundary(t: Tensor) -> tuple[Tensor, Tensor]:
    """Returns c_skip(t) and c_out(t), shaped like `t`: 1 and 0 at t = 0 (LCM, section 4.1 and its released code).

    c_skip = σ_d²/((10t)² + σ_d²),  c_out = 10t/√((10t)² + σ_d²),  σ_d = 0.5
    """
    scaled = TIME_SCALE * t.to(torch.promote_types(t.dtype, torch.float32))
    square = scaled**2 + SIGMA_DATA**2
    return SIGMA_DATA**2 / square, scaled / square.sqrt()


def land_by_boundary(_schedule: Schedule, answer: Prediction, z_t: Tensor, t: Tensor, e: Tensor) -> Tensor:
    """Returns c_skip(t)·z_t + c_out(t)·ẑ_0 (LCM, eq. 9), and NaN wherever e is not 0.

    To raise there, the host would have to wait for the device at every step.
    """
    c_skip, c_out = boundary(t)
    c_skip = torch.where(e == 0, c_skip, torch.nan)
    return _expand(c_skip.to(answer.z_0.dtype), z_t) * z_t + _expand(c_out.to(answer.z_0.dtype), z_t) * answer.z_0


def land_by_ddim(schedule: Schedule, answer: Prediction, z_t: Tensor, t: Tensor, e: Tensor) -> Tensor:
    """Returns α_e·ẑ_0 + σ_e·ε̂, one step of DDIM (arXiv 2010.02502, eq. 12 with η = 0).

    At e = t that is z_t but for rounding, for every network, and is given as z_t.
    """
    alpha, sigma = schedule.coefficients(e, z_t)
    return torch.where(_expand(e == t, z_t), z_t, alpha * answer.z_0 + sigma * answer.epsilon)


def land_clean(_schedule: Schedule, answer: Prediction, _z_t: Tensor, _t: Tensor, _e: Tensor) -> Tensor:
    """Returns ẑ_0 wherever it shall land: answers are compared clean (arXiv 2202.00512, algorithm 2)."""
    return answer.z_0


def solve_clean(schedule: Schedule, z_t: Tensor, z_e: Tensor, t: Tensor, e: Tensor) -> Tensor:
    """Returns the ẑ_0 for which `land_by_ddim` leads from z_t to z_e, where e < t (arXiv 2202.00512, eq. 9): with
    neither α_t nor σ_e in a denominator alone, so that both may be 0."""
    (alpha_t, sigma_t), (alpha_e, sigma_e) = (schedule.coefficients(time, z_t) for time in (t, e))
    return (z_t * sigma_e - z_e * sigma_t) / (alpha_t * sigma_e - sigma_t * alpha_e)


def _expand(values: Tensor, z: Tensor) -> Tensor:
    """Shapes `[b]` to multiply `[b, …]`."""
    return values.view((-1,) + (1,) * (z.ndim - 1))


BOUNDARY = Landing("boundary", anywhere=False, land=land_by_boundary)
BY_DDIM = Landing("ddim", anywhere=True, land=land_by_ddim)
CLEAN = Landing("clean", anywhere=True, land=land_clean)
"""Serves answers that are compared clean. It lands nowhere: it is no consistency function, and no sampler takes it."""
LANDINGS: dict[str, Landing] = {landing.name: landing for landing in (BOUNDARY, BY_DDIM)}
"""Holds every landing by its name."""


@dataclass(frozen=True)
class ConsistencyFunction:
    """f(z_t, ω, c, t) with its end point e: where the network's answer lands (LCM, eq. 9, with e = 0)."""

    network: Network
    cond: Cond
    omega: Tensor | None
    schedule: Schedule
    landing: Landing = BOUNDARY
    told_end: bool = False
    """Whether the network is told e, as `cond["end"]` `[b]`."""

    def __call__(self, z_t: Tensor, t: Tensor, e: Tensor) -> Tensor:
        """Returns z_e `[b, …]` from z_t `[b, …]`; t and e `[b]` with e ≤ t."""
        cond = self.cond | {"end": e} if self.told_end else self.cond
        return self.landing.land(self.schedule, self.network(z_t, t, cond, self.omega), z_t, t, e)
