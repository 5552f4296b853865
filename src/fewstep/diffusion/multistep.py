"""Samplers of a teacher whose steps lean on the one before: DPM-Solver++ (2M), UniPC."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from fewstep.diffusion.sampling import batch_of
from fewstep.diffusion.schedule import Schedule
from fewstep.diffusion.solvers.base import Field


def sample_dpm_solver_pp_2m(schedule: Schedule, field: Field, z_T: Tensor, times: list[int]) -> Tensor:
    """Paints with DPM-Solver++ (2M) (arXiv 2211.01095, algorithm 2), its last step of first order and to σ = 0.

    D = (1 + 1/2r)·ẑ_0(z_t) − 1/2r·ẑ_0(before),  r = h_before/h, in `_Span.step`
    """
    z, past = z_T, None
    for t, s in itertools.pairwise(times):
        now, span = field(z, batch_of(t, z)).z_0, _Span(schedule, t, s, z)
        z = span.step(z, now + _slope(past, now, span) / 2)
        past = span.history(now)
    return field(z, batch_of(times[-1], z)).z_0


def sample_unipc(schedule: Schedule, field: Field, z_T: Tensor, times: list[int]) -> Tensor:
    """Steps by UniPC of order 2 with B₂(h) (arXiv 2302.04867, algorithms 1 and 2, on ẑ_0), at last of first
    order and to σ = 0.

    The predictor is DPM-Solver++ (2M). Once ẑ_0 at its end s is known, a corrector takes the step again:
    D = ẑ_0(z_t) + ρ₁/r·(ẑ_0(z_t) − ẑ_0(before)) + ρ₂·(ẑ_0(z_s) − ẑ_0(z_t)); in the first step ρ₁ = 0, ρ₂ = 1/2.
    """
    z, past = z_T, None
    now = field(z, batch_of(times[0], z)).z_0
    for t, s in itertools.pairwise(times):
        span = _Span(schedule, t, s, z)
        slope = _slope(past, now, span)
        after = field(span.step(z, now + slope / 2), batch_of(s, z)).z_0
        rho_1, rho_2 = (0.0, 0.5) if past is None else _corrector(past[1].h / span.h, span.h)
        z = span.step(z, now + rho_1 * slope + rho_2 * (after - now))
        past, now = span.history(now), after
    return now


class _Span:
    """From t to s: z_s = σ_s/σ_t·z_t − α_s·(e^{−h} − 1)·D, h = λ_s − λ_t, for D that stands for ẑ_0 on the way."""

    def __init__(self, schedule: Schedule, t: int, s: int, z: Tensor) -> None:
        t_batch, s_batch = batch_of(t, z), batch_of(s, z)
        self.h = float(schedule.lam(s_batch[:1])) - float(schedule.lam(t_batch[:1]))
        _, sigma_t = schedule.coefficients(t_batch, z)
        self._alpha_s, sigma_s = schedule.coefficients(s_batch, z)
        self._ratio = sigma_s / sigma_t

    def step(self, z_t: Tensor, d: Tensor) -> Tensor:
        return self._ratio * z_t - self._alpha_s * torch.expm1(torch.tensor(-self.h, dtype=d.dtype)).item() * d

    def history(self, z_0: Tensor) -> tuple[Tensor, _Span] | None:
        """Returns what the next step leans on; nothing from noise alone, where λ = −∞."""
        return (z_0, self) if math.isfinite(self.h) else None


def _slope(past: tuple[Tensor, _Span] | None, now: Tensor, span: _Span) -> Tensor:
    """Computes (ẑ_0(z_t) − ẑ_0(before))/r, r = h_before/h; zero without history, and where λ_s = +∞."""
    if past is None or not math.isfinite(span.h):
        return torch.zeros_like(now)
    before, last = past
    return (now - before) * (span.h / last.h)


def _corrector(r: float, h: float) -> tuple[float, float]:
    """Solves for ρ₁ and ρ₂ of order 2 (eq. 5): the step is then exact for ẑ_0 quadratic in λ.

    ρ₁ + ρ₂ = φ₂/B₂ and −r·ρ₁ + ρ₂ = 2·φ₃/B₂, with B₂ = e^{−h} − 1, φ₂ = B₂/(−h) − 1 and φ₃ = φ₂/(−h) − 1/2.
    """
    b = math.expm1(-h)
    phi_2 = b / -h - 1
    phi_3 = phi_2 / -h - 0.5
    first, second = phi_2 / b, 2 * phi_3 / b
    rho_1 = (first - second) / (1 + r)
    return rho_1, first - rho_1
