"""Distribution matching where a student's answers land, as pure functions (TDM, arXiv 2503.06674; its gradient is that
of DMD, arXiv 2311.18828).

An answer z_e is noised on to a time τ. There the teacher's score is that of the pictures it stands for, and a fake
score, learnt beside, that of the student's own answers: their difference says where the answers should have gone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.diffusion.prediction import Prediction
from fewstep.diffusion.schedule import Schedule
from fewstep.method.sampling import renoise

FIRST, LAST = 0.02, 0.98
"""Shares of the schedule's times between which answers are compared: below the first there is too little noise to tell
them apart, and above the last nothing of them is left (DMD)."""


@dataclass(frozen=True)
class Renoised:
    """Answers that fresh noise has brought from e to τ."""

    z_tau: Tensor
    tau: Tensor
    """Is `[b]`, whole, above e."""
    e: Tensor
    noise: Tensor


def draw_tau(schedule: Schedule, e: Tensor, u: Tensor) -> Tensor:
    """Returns whole times above e `[b]`, equally likely for `u` `[b]` uniform in [0, 1)."""
    first = torch.maximum(e + 1, torch.full_like(e, round(FIRST * schedule.last)))
    last = torch.maximum(first, torch.full_like(e, round(LAST * schedule.last)))
    return first + (u.to(e.device) * (last - first + 1)).long()


def noise_on(schedule: Schedule, z_e: Tensor, e: Tensor, tau: Tensor, noise: Tensor) -> Renoised:
    """Brings z_e `[b, …]` from e to τ `[b]`."""
    return Renoised(renoise(schedule, z_e, noise, e, tau), tau, e, noise)


def matching_losses(z_0: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """Returns `[b]`, whose gradient at ẑ_0 is that of the distance between both distributions: fake − real of the clean
    latents that the scores stand for, over the mean of |ẑ_0 − real|, so that every answer counts alike (DMD, eq. 8)."""
    way = (real - fake) / (z_0.detach() - real).abs().flatten(1).mean(1).clamp(min=1e-3).view(-1, *[1] * (z_0.ndim - 1))
    return (z_0 - (z_0 + way).detach()).square().flatten(1).mean(1)


def fake_losses(schedule: Schedule, fake: Prediction, answer: Renoised) -> Tensor:
    """Returns the squared error `[b]` of the fresh noise that the fake score tells in z_τ: denoising score matching of
    the answers at e, where they need not be pictures with noise.

    With ρ for the share of fresh noise, the score is −n/ρ; a network says the same as (α_τ·ẑ_0 − z_τ)/σ_τ².
    """
    (alpha_t, sigma_t), (alpha_e, sigma_e) = (
        schedule.coefficients(time, answer.z_tau) for time in (answer.tau, answer.e)
    )
    rho = (sigma_t.square() - (alpha_t / alpha_e * sigma_e).square()).clamp(min=0).sqrt()
    told = rho * (answer.z_tau - alpha_t * fake.z_0) / sigma_t.square()
    return (told - answer.noise).square().flatten(1).mean(1)
