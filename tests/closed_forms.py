"""Data whose diffusion is known in closed form: what the solvers and the method are measured against."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.diffusion.prediction import Cond, Prediction
from fewstep.diffusion.schedule import Schedule

SD_CONFIG = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
"""Stable Diffusion's noise schedule."""


@dataclass(frozen=True)
class Gaussian:
    """Data N(mean, diag(std²)), `mean` and `std` shaped like the last dimension of z."""

    schedule: Schedule
    mean: Tensor
    std: Tensor

    def __call__(self, z_t: Tensor, t: Tensor) -> Prediction:
        """E[z_0 | z_t] and E[ε | z_t]: the perfect network, as a Field."""
        alpha, sigma = self.schedule.coefficients(t, z_t)
        centred = (z_t - alpha * self.mean) / (alpha**2 * self.std**2 + sigma**2)
        return Prediction(self.mean + alpha * self.std**2 * centred, sigma * centred)

    def flow(self, z_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """z_s on the PF-ODE's trajectory through z_t."""
        alpha_t, sigma_t = self.schedule.coefficients(t, z_t)
        alpha_s, sigma_s = self.schedule.coefficients(s, z_t)
        scale = ((alpha_s**2 * self.std**2 + sigma_s**2) / (alpha_t**2 * self.std**2 + sigma_t**2)).sqrt()
        return alpha_s * self.mean + scale * (z_t - alpha_t * self.mean)


@dataclass(frozen=True)
class Mixture:
    """Isotropic Gaussians at `means` `[modes, d]` of one `std`; as a Network, conditioned on the modes' weights
    `cond["weights"]` `[b, modes]`."""

    schedule: Schedule
    means: Tensor
    std: float

    def __call__(self, z_t: Tensor, t: Tensor, cond: Cond, omega: Tensor | None) -> Prediction:
        """E[z_0 | z_t, weights] and E[ε | z_t, weights]; has no ω input."""
        assert omega is None
        alpha, sigma = self.schedule.coefficients(t, z_t)
        means, variance = self.means.to(z_t.dtype), alpha**2 * self.std**2 + sigma**2
        distances = (z_t[:, None, :] - alpha[..., None] * means).square().sum(-1)
        posterior = torch.softmax(cond["weights"].to(z_t.dtype).log() - distances / (2 * variance), dim=1)
        mean = posterior @ means
        centred = (z_t - alpha * mean) / variance
        return Prediction(mean + alpha * self.std**2 * centred, sigma * centred)

    def draw(self, weights: Tensor, generator: torch.Generator) -> Tensor:
        """One point for every row of `weights`."""
        modes = torch.multinomial(weights, 1, generator=generator)[:, 0]
        return self.means[modes] + self.std * torch.randn(len(weights), self.means.shape[1], generator=generator)


def follow_finely(
    schedule: Schedule, field: Callable[[Tensor, Tensor], Prediction], z: Tensor, times: Tensor
) -> Tensor:
    """z at the last of `times` by the classical Runge-Kutta method of order 4, for data without a closed flow.

    In y = z/(α + σ) = (1 − x)·z_0 + x·ε and x = σ/(α + σ), where the PF-ODE is dy/dx = ε̂ − ẑ_0; a step between
    neighbouring times.
    """

    def scale(t: Tensor) -> Tensor:
        alpha, sigma = schedule.coefficients(t.expand(len(z)), z)
        return alpha + sigma

    def slope(y: Tensor, t: Tensor) -> Tensor:
        prediction = field(y * scale(t), t.expand(len(z)))
        return prediction.epsilon - prediction.z_0

    y = z / scale(times[:1])
    for t, s in itertools.pairwise(times.split(1)):
        x_t, x_s = (torch.sigmoid(-schedule.lam(time)) for time in (t, s))
        middle, h = schedule.time_of_lam(-torch.logit((x_t + x_s) / 2)), x_s - x_t
        first = slope(y, t)
        second = slope(y + h / 2 * first, middle)
        third = slope(y + h / 2 * second, middle)
        y = y + h / 6 * (first + 2 * second + 2 * third + slope(y + h * third, s))
    return y * scale(times[-1:])
