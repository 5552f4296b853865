"""Latent consistency distillation as a task of the training loop: draws in, loss out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from fewstep.consistency.path import Times, draw_times
from fewstep.consistency.step import Method, Sample, consistency_loss
from fewstep.data import draws
from fewstep.diffusion.prediction import Cond


class LatentSource(Protocol):
    """Examples as the network sees them."""

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int], noise: Tensor) -> tuple[Tensor, Cond]:
        """z_0 `[b, c, h, w]` and conditions of these examples; `noise`, shaped like z_0, draws from the
        autoencoder's posterior."""
        ...

    @property
    def latent_shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True, kw_only=True)
class TimeAndGuidance:
    """Which t, s and ω are drawn."""

    skip: int
    times: Times
    omega_range: tuple[float, float] | None
    """Uniform in it, in the paper's convention; None for a method without guidance."""


class DistillTask:
    """The student learns to answer at t as its target answers at s, one solver step of the teacher earlier."""

    def __init__(
        self, student: nn.Module, method: Method, source: LatentSource, drawn: TimeAndGuidance, ema: bool, seed: int
    ) -> None:
        """`student` is a Network; without `ema` it is its own target, without gradient."""
        self.student = student
        self.averaged = copy.deepcopy(student).requires_grad_(False) if ema else None
        self._method, self._source, self._drawn, self._seed = method, source, drawn, seed
        self._device = next(student.parameters()).device

    def sample(self, counters: range) -> Sample:
        """The batch at these counters, with every draw that its loss needs."""
        shape = self._source.latent_shape
        indices = draws.order(self._seed, len(self._source), counters)
        z_0, cond = self._source.batch(indices, self._normal("vae", counters, shape))
        u = draws.uniform(self._seed, "t", counters)
        t, s = draw_times(u, self._method.schedule.num_steps, self._drawn.skip, self._drawn.times)
        omega = None
        if self._drawn.omega_range is not None:
            low, high = self._drawn.omega_range
            omega = (
                (low + (high - low) * draws.uniform(self._seed, "omega", counters))
                .float()
                .to(self._device, non_blocking=True)
            )
        epsilon = self._normal("epsilon", counters, shape)
        t, s = (time.to(self._device, non_blocking=True) for time in (t, s))
        return Sample(z_0, cond, t, s, epsilon, omega)

    def loss(self, counters: range) -> Tensor:
        target = self.averaged if self.averaged is not None else self.student
        return consistency_loss(self._method, self.student, target, self.sample(counters))

    def _normal(self, stream: str, counters: range, shape: Sequence[int]) -> Tensor:
        return draws.normal(self._seed, stream, counters, shape).to(self._device, non_blocking=True)
