"""The noise schedule α(t), σ(t), λ(t) = log(α/σ) at whole and at fractional times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor


class ScheduleError(ValueError):
    """A scheduler configuration that names no schedule known here."""


@dataclass(frozen=True)
class Schedule:
    """z_t = α(t)·z_0 + σ(t)·ε with α² + σ² = 1, tabulated in float64 at t = 0 … T − 1.

    Between whole times λ is interpolated linearly. With zero-terminal SNR λ(T − 1) = −∞.
    """

    alphas: Tensor
    sigmas: Tensor

    @classmethod
    def from_alpha_bars(cls, alpha_bars: Tensor) -> Self:
        """From diffusers' `alphas_cumprod`, which is α²."""
        alpha_bars = alpha_bars.double()
        return cls(alpha_bars.sqrt(), (1 - alpha_bars).sqrt())

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """From the configuration of a diffusers scheduler; raises ScheduleError for an unknown one."""
        betas = _betas(config)
        alpha_bars = torch.cumprod(1 - betas, 0)
        if config.get("rescale_betas_zero_snr"):
            alpha_bars = _to_zero_terminal_snr(alpha_bars)
        return cls.from_alpha_bars(alpha_bars)

    @property
    def num_steps(self) -> int:
        """T, the number of whole times."""
        return len(self.alphas)

    @property
    def has_zero_terminal_snr(self) -> bool:
        """Whether the last time holds noise alone."""
        return float(self.alphas[-1]) == 0.0

    def to(self, device: torch.device | str) -> Schedule:
        """The same schedule with its tables on `device` (fp32 on MPS, which has no float64)."""
        dtype = torch.float32 if torch.device(device).type == "mps" else torch.float64
        return Schedule(self.alphas.to(device, dtype), self.sigmas.to(device, dtype))

    def alpha(self, t: Tensor) -> Tensor:
        """α(t), shaped like `t`, in the tables' precision."""
        if not t.is_floating_point():
            return self.alphas[t]
        # α² = sigmoid(2λ); at whole times straight from the table, where λ = −∞ does no harm.
        return torch.where(t == t.floor(), self.alphas[t.long()], torch.sigmoid(2 * self.lam(t)).sqrt())

    def sigma(self, t: Tensor) -> Tensor:
        """σ(t), shaped like `t`, in the tables' precision."""
        if not t.is_floating_point():
            return self.sigmas[t]
        return torch.where(t == t.floor(), self.sigmas[t.long()], torch.sigmoid(-2 * self.lam(t)).sqrt())

    def lam(self, t: Tensor) -> Tensor:
        """λ(t) = log(α/σ), half the log signal-to-noise ratio; falls as t grows."""
        table = self._lams()
        if not t.is_floating_point():
            return table[t]
        low = t.floor().long()
        high = (low + 1).clamp(max=self.num_steps - 1)
        part = (t - low).to(table.dtype)
        return torch.where(part == 0, table[low], table[low] + part * (table[high] - table[low]))

    def time_of_lam(self, lam: Tensor) -> Tensor:
        """The (fractional) t at which λ(t) = lam; clamped to [0, T − 1]."""
        rising = self._lams().flip(0)
        right = torch.searchsorted(rising, lam.to(rising.dtype).contiguous()).clamp(1, self.num_steps - 1)
        low, high = rising[right - 1], rising[right]
        part = torch.where(torch.isinf(low), 1.0, (lam - low) / (high - low)).clamp(0, 1)
        return (self.num_steps - 1) - (right - 1 + part)

    def coefficients(self, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """α(t) and σ(t) for `t` [b], shaped to multiply `z` [b, …]; fp32 at least, float64 if `z` is."""
        dtype = torch.promote_types(z.dtype, torch.float32)
        shape = (-1,) + (1,) * (z.ndim - 1)
        return self.alpha(t).to(dtype).view(shape), self.sigma(t).to(dtype).view(shape)

    def diffuse(self, z_0: Tensor, epsilon: Tensor, t: Tensor) -> Tensor:
        """z_t = α(t)·z_0 + σ(t)·ε for `t` [b]."""
        alpha, sigma = self.coefficients(t, z_0)
        return alpha * z_0 + sigma * epsilon

    def _lams(self) -> Tensor:
        return torch.log(self.alphas) - torch.log(self.sigmas)


def _betas(config: Mapping[str, Any]) -> Tensor:
    if config.get("trained_betas") is not None:
        return torch.tensor(config["trained_betas"], dtype=torch.float64)
    kind, count = config.get("beta_schedule", "linear"), int(config.get("num_train_timesteps", 1000))
    start, end = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
    if kind == "linear":
        return torch.linspace(start, end, count, dtype=torch.float64)
    if kind == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, count, dtype=torch.float64) ** 2
    if kind == "squaredcos_cap_v2":
        # Nichol & Dhariwal, arXiv 2102.09672, eq. 17.
        times = torch.linspace(0, 1, count + 1, dtype=torch.float64)
        alpha_bars = torch.cos((times + 0.008) / 1.008 * torch.pi / 2) ** 2
        return (1 - alpha_bars[1:] / alpha_bars[:-1]).clamp(max=0.999)
    raise ScheduleError(f"beta_schedule is {kind!r}; known are linear, scaled_linear, squaredcos_cap_v2")


def _to_zero_terminal_snr(alpha_bars: Tensor) -> Tensor:
    """Shifts and scales √ᾱ so that it starts where it did and ends at 0 (arXiv 2305.08891, algorithm 1)."""
    alphas = alpha_bars.sqrt()
    first, last = alphas[0], alphas[-1]
    return ((alphas - last) * first / (first - last)) ** 2
