"""Latent consistency distillation as a task of the training loop: draws in, loss out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.data import draws
from fewstep.data.latents import LatentSource
from fewstep.method.paths import Sample, Times, draw_times, shrinking_gap
from fewstep.method.step import Method, consistency_losses
from fewstep.train.latent_task import LatentTask
from fewstep.train.learner import Learner
from fewstep.train.task import Loss


@dataclass(frozen=True, kw_only=True)
class TimeAndGuidance:
    """Which t, s and ω are drawn."""

    skip: int
    times: Times
    omega_range: tuple[float, float] | None
    """Uniform in it, in the paper's convention; None for a method without guidance."""
    shrinking_samples: int = 0
    """So many samples long t − s falls from the whole schedule to the skip; 0: it is the skip throughout."""


class DistillTask(LatentTask):
    """The student learns to answer at t as its target answers at s, one solver step of the teacher earlier."""

    def __init__(
        self, learner: Learner, method: Method, source: LatentSource, drawn: TimeAndGuidance, seed: int
    ) -> None:
        super().__init__(learner, source, seed)
        self.method, self._drawn = method, drawn

    def sample(self, counters: range) -> tuple[Sample, Tensor]:
        """The batch at these counters, with every draw that its loss needs; and which of it are valid."""
        shape = self._source.latent_shape
        batch = self._source.batch(counters, self._normal("vae", counters, shape))
        u = draws.uniform(self._seed, "t", counters)
        t, s = draw_times(u, self.method.schedule, self._drawn.skip, self._drawn.times, self._gap(counters))
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
        return Sample(batch.z_0, batch.cond, t, s, epsilon, omega), batch.valid

    def _gap(self, counters: range) -> Tensor | None:
        if not self._drawn.shrinking_samples:
            return None
        progress = torch.tensor(counters, dtype=torch.float64) / self._drawn.shrinking_samples
        return shrinking_gap(progress, self.method.schedule.num_steps, self._drawn.skip)

    def loss(self, counters: range) -> Loss:
        sample, valid = self.sample(counters)
        losses = consistency_losses(self.method, self._learner.student, self._learner.answering, sample)
        return Loss(torch.where(valid, losses, 0).sum(), valid.sum())
