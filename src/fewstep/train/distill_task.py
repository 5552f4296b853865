"""Latent consistency distillation as a task of the training loop: draws in, loss out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from fewstep.consistency.path import Sample, Times, draw_times, shrinking_gap
from fewstep.consistency.step import Method, consistency_loss
from fewstep.data import draws
from fewstep.diffusion.prediction import Cond, Network


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
    shrinking_samples: int = 0
    """So many samples long t − s falls from the whole schedule to the skip; 0: it is the skip throughout."""


@dataclass(frozen=True, kw_only=True)
class Learner:
    """The weights that learn, their moving average, and the networks that answer with each."""

    weights: nn.Module
    student: Network
    averaged: nn.Module | None = None
    target: Network | None = None
    """Answers with `averaged`; None: the student is its own target, without gradient."""


def whole(network: nn.Module, *, ema: bool) -> Learner:
    """Every weight of `network` (a Network) learns."""
    averaged = copy.deepcopy(network).requires_grad_(False) if ema else None
    return Learner(weights=network, student=network, averaged=averaged, target=averaged)


class DistillTask:
    """The student learns to answer at t as its target answers at s, one solver step of the teacher earlier."""

    def __init__(
        self, learner: Learner, method: Method, source: LatentSource, drawn: TimeAndGuidance, seed: int
    ) -> None:
        self.student, self.averaged = learner.weights, learner.averaged
        self._networks = learner.student, learner.target or learner.student
        self._method, self._source, self._drawn, self._seed = method, source, drawn, seed
        self._device = next(learner.weights.parameters()).device

    def sample(self, counters: range) -> Sample:
        """The batch at these counters, with every draw that its loss needs."""
        shape = self._source.latent_shape
        indices = draws.order(self._seed, len(self._source), counters)
        z_0, cond = self._source.batch(indices, self._normal("vae", counters, shape))
        u = draws.uniform(self._seed, "t", counters)
        t, s = draw_times(u, self._method.schedule.num_steps, self._drawn.skip, self._drawn.times, self._gap(counters))
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

    def _gap(self, counters: range) -> Tensor | None:
        if not self._drawn.shrinking_samples:
            return None
        progress = torch.tensor(counters, dtype=torch.float64) / self._drawn.shrinking_samples
        return shrinking_gap(progress, self._method.schedule.num_steps, self._drawn.skip)

    def loss(self, counters: range) -> Tensor:
        return consistency_loss(self._method, *self._networks, self.sample(counters))

    def _normal(self, stream: str, counters: range, shape: Sequence[int]) -> Tensor:
        return draws.normal(self._seed, stream, counters, shape).to(self._device, non_blocking=True)
