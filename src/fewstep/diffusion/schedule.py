"""What a noise schedule is, α(t), σ(t) and λ(t) = log(α/σ) at whole and at fractional times; the
tabulated one; and where the steps of a sampler stand."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self, assert_never

import torch
from torch import Tensor

MOST_TIMES = 100_000
"""Bounds a tabulated schedule; models have 1,000."""


class ScheduleError(ValueError):
    """A description of a noise schedule that names none, or none that can be used."""


@dataclass(frozen=True)
class Schedule(ABC):
    """z_t = α(t)·z_0 + σ(t)·ε: α and λ fall with t, σ rises, in float64 (fp32 on MPS, which has none).

    A time is whole or fractional, from 0 to `last`. λ is ±∞ where σ or α is exactly 0.
    """

    @property
    @abstractmethod
    def num_steps(self) -> int:
        """Returns T, of which skips and grids are parts."""

    @property
    @abstractmethod
    def last(self) -> int:
        """Returns the latest time, which holds the most noise."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Returns α(t), shaped like `t`."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Returns σ(t), shaped like `t`."""

    @abstractmethod
    def lam(self, t: Tensor) -> Tensor:
        """Returns λ(t) = log(α/σ), half the log signal-to-noise ratio, shaped like `t`."""

    @abstractmethod
    def time_of_lam(self, lam: Tensor) -> Tensor:
        """Returns the (fractional) t in [0, last] at which λ(t) is nearest to `lam`, which may be ±∞."""

    @property
    def has_zero_terminal_snr(self) -> bool:
        """Tells whether the last time holds noise alone, so that an ε-network has no answer there."""
        return float(self.alpha(torch.tensor(self.last))) == 0.0

    def grid(self, count: int) -> Tensor:
        """Returns `count` whole times T // count apart, earliest first, that reach `last` where count divides T."""
        return torch.arange(1, count + 1) * (self.num_steps // count) + (self.last - self.num_steps)

    def grid_size(self, skip: int) -> int:
        """Returns how many times the grid has whose neighbours are at least `skip` apart."""
        return self.num_steps // skip

    def pick(self, u: Tensor) -> Tensor:
        """Returns whole times, equally likely for `u` uniform in [0, 1), among the T up to `last`."""
        return (u * self.num_steps).long() + (self.last + 1 - self.num_steps)

    def coefficients(self, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Returns α(t) and σ(t) for `t` [b], shaped to multiply `z` [b, …]; fp32 at least, float64 if `z` is."""
        dtype = torch.promote_types(z.dtype, torch.float32)
        shape = (-1,) + (1,) * (z.ndim - 1)
        return self.alpha(t).to(dtype).view(shape), self.sigma(t).to(dtype).view(shape)

    def diffuse(self, z_0: Tensor, epsilon: Tensor, t: Tensor) -> Tensor:
        """Returns z_t = α(t)·z_0 + σ(t)·ε for `t` [b]."""
        alpha, sigma = self.coefficients(t, z_0)
        return alpha * z_0 + sigma * epsilon

    def to(self, device: torch.device | str) -> Self:
        """Returns the same schedule with its tables, if any, on `device`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        tables = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        dtype = float_dtype(torch.device(device))
        return replace(self, **{name: table.to(device, dtype) for name, table in tables.items()})


@dataclass(frozen=True)
class Tabulated(Schedule):
    """α² + σ² = 1, tabulated at t = 0 … T − 1; between whole times λ is interpolated linearly.

    With zero-terminal SNR λ(T − 1) = −∞.
    """

    alphas: Tensor
    sigmas: Tensor

    @classmethod
    def from_alpha_bars(cls, alpha_bars: Tensor) -> Self:
        """Reads diffusers' `alphas_cumprod`, which is α²."""
        alpha_bars = alpha_bars.double()
        return cls(alpha_bars.sqrt(), (1 - alpha_bars).sqrt())

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Reads the configuration of a diffusers scheduler; raises ScheduleError for one that cannot be used."""
        betas = _make_betas(config)
        alpha_bars = torch.cumprod(1 - betas, 0)
        if config.get("rescale_betas_zero_snr"):
            alpha_bars = _to_zero_terminal_snr(alpha_bars)
        schedule = cls.from_alpha_bars(alpha_bars)
        alphas = schedule.alphas
        if not len(alphas) or not (alphas.isfinite().all() and (alphas.diff() < 0).all()):
            raise ScheduleError("its betas are out of range")
        return schedule

    @property
    def num_steps(self) -> int:
        """Returns T, the number of whole times."""
        return len(self.alphas)

    @property
    def last(self) -> int:
        """Returns T − 1."""
        return self.num_steps - 1

    def alpha(self, t: Tensor) -> Tensor:
        if not t.is_floating_point():
            return self.alphas[t]
        # α² = sigmoid(2λ); at whole times straight from the table, where λ = −∞ does no harm.
        return torch.where(t == t.floor(), self.alphas[t.long()], torch.sigmoid(2 * self.lam(t)).sqrt())

    def sigma(self, t: Tensor) -> Tensor:
        if not t.is_floating_point():
            return self.sigmas[t]
        return torch.where(t == t.floor(), self.sigmas[t.long()], torch.sigmoid(-2 * self.lam(t)).sqrt())

    def lam(self, t: Tensor) -> Tensor:
        table = self._lams()
        if not t.is_floating_point():
            return table[t]
        low = t.floor().long()
        high = (low + 1).clamp(max=self.last)
        part = (t - low).to(table.dtype)
        return torch.where(part == 0, table[low], table[low] + part * (table[high] - table[low]))

    def time_of_lam(self, lam: Tensor) -> Tensor:
        rising = self._lams().flip(0)
        right = torch.searchsorted(rising, lam.to(rising.dtype).contiguous()).clamp(1, self.last)
        low, high = rising[right - 1], rising[right]
        # Between λ(T − 1) = −∞ and λ(T − 2) there is no way along: the one is itself, and the rest is the other.
        part = torch.where(torch.isinf(low), (lam > low).to(low.dtype), (lam - low) / (high - low)).clamp(0, 1)
        return self.last - (right - 1 + part)

    def _lams(self) -> Tensor:
        return torch.log(self.alphas) - torch.log(self.sigmas)


def float_dtype(device: torch.device) -> torch.dtype:
    """Returns the finest floating type that a device has."""
    return torch.float32 if device.type == "mps" else torch.float64


def _make_betas(config: Mapping[str, Any]) -> Tensor:
    if config.get("trained_betas") is not None:
        betas = torch.tensor(config["trained_betas"], dtype=torch.float64)
        if betas.ndim != 1:
            raise ScheduleError("trained_betas is not a list of numbers")
        return betas
    kind, count = config.get("beta_schedule", "linear"), int(config.get("num_train_timesteps", 1000))
    if count > MOST_TIMES:
        raise ScheduleError(f"num_train_timesteps is {count}; at most {MOST_TIMES} are read")
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
    raise ScheduleError(f"beta_schedule is {kind!r}; known: linear, scaled_linear, squaredcos_cap_v2")


def _to_zero_terminal_snr(alpha_bars: Tensor) -> Tensor:
    """Shifts and scales √ᾱ so that it starts where it did and ends at 0 (arXiv 2305.08891, algorithm 1)."""
    alphas = alpha_bars.sqrt()
    first, last = alphas[0], alphas[-1]
    return ((alphas - last) * first / (first - last)) ** 2


Spacing = Literal["trailing", "leading", "linspace", "leading+1", "linspace+1"]
"""Where n steps stand: from the last time in equal strides; from 1 in equal strides (never reaching the last time);
from the last time to 0 with both ends. The last two make n + 1 such steps and leave out the earliest, as diffusers'
DPM-Solver schedulers do."""


def sampling_times(schedule: Schedule, count: int, spacing: Spacing) -> list[int]:
    """Returns `count` whole times of a schedule, latest first, as diffusers' schedulers place them."""
    total, last = schedule.num_steps, schedule.last
    match spacing:
        case "leading+1":
            return sampling_times(schedule, count + 1, "leading")[:-1]
        case "linspace+1":
            return sampling_times(schedule, count + 1, "linspace")[:-1]
        case "trailing":
            times = torch.arange(total, 0, -total / count, dtype=torch.float64).round()[:count] + (last - total)
        case "leading":
            times = (torch.arange(count) * (total // count)).flip(0) + 1
        case "linspace":
            times = torch.linspace(0, last, count, dtype=torch.float64).round().flip(0)
        case _:
            assert_never(spacing)
    return [int(time) for time in times]
