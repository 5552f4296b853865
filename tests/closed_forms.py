"""Data whose diffusion is known in closed form: what the solvers and the method are measured against."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fewstep.diffusion.prediction import Prediction
from fewstep.diffusion.schedule import Schedule
from fewstep.measure.mixture import Mixture, follow_finely

__all__ = ["SD_CONFIG", "Gaussian", "Mixture", "follow_finely"]

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
