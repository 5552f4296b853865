"""The noise schedule of a flow: straight paths from data to noise, with the shift of its times."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.diffusion.schedule import Schedule, ScheduleError, float_dtype

MOST_SHIFT = 1000
"""A shift beyond this is a mistake: next to all times are noise."""


@dataclass(frozen=True)
class Flow(Schedule):
    """α = 1 − σ with σ = shift(t/N) for t = 0 … N, where shift(u) = s·u/(1 + (s − 1)·u) (arXiv 2403.03206, eq. 23).

    Time 0 is the data, σ = 0 exactly, and time N noise alone, σ = 1: λ is +∞ and −∞ there.
    """

    num_steps: int = 1000
    """Is N."""
    shift: float = 1.0
    """s: above 1 it moves times towards noise, as large pictures want."""

    def __post_init__(self) -> None:
        if self.num_steps < 1 or not 0 < self.shift < float("inf"):
            raise ScheduleError(f"num_steps is {self.num_steps} and shift {self.shift}; both must be above 0")

    @property
    def last(self) -> int:
        """Returns N."""
        return self.num_steps

    def alpha(self, t: Tensor) -> Tensor:
        signal, noise = self._parts(t)
        return signal / (signal + noise)

    def sigma(self, t: Tensor) -> Tensor:
        signal, noise = self._parts(t)
        return noise / (signal + noise)

    def lam(self, t: Tensor) -> Tensor:
        signal, noise = self._parts(t)
        return torch.log(signal / noise)

    def time_of_lam(self, lam: Tensor) -> Tensor:
        # σ = 1/(1 + e^λ), with u for σ where the shift is undone
        return self.num_steps / (1 + self.shift * torch.exp(lam.to(float_dtype(lam.device))))

    def _parts(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what stands to each other as α to σ: N − t and s·t, exact at both ends."""
        t = t.to(float_dtype(t.device))
        return self.num_steps - t, self.shift * t
