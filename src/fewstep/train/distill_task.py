"""Latent consistency distillation as a task of the training loop: draws in, loss out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.data import draws
from fewstep.data.latents import LatentSource
from fewstep.method.paths import TrainingBatch
from fewstep.method.step import Method, TargetName, answer_both, compare
from fewstep.method.times import ZERO, End, Gap, Times, draw_times, edges, phase_lengths, step_back
from fewstep.train.learner import TARGETS, Learner
from fewstep.train.task import LatentTask, Loss, StudentTask


@dataclass(frozen=True, kw_only=True)
class TimeAndGuidance:
    """Which t, s, e and ω are drawn."""

    skip: int
    times: Times
    gap: Gap
    omega_range: tuple[float, float] | None
    """Bounds ω, which is uniform in it; None for a method without guidance."""
    end: End = ZERO
    phases: tuple[int, ...] = ()
    """Numbers of phases among which an end that is the beginning of one is drawn."""


def draw_omega(seed: int, counters: Sequence[int], within: tuple[float, float]) -> Tensor:
    """Draws ω `[len(counters)]`, fp32, independently for each counter."""
    low, high = within
    return (low + (high - low) * draws.uniform(seed, "omega", counters)).float()


@dataclass(frozen=True)
class Answers:
    """What student and target said of a batch."""

    batch: TrainingBatch
    valid: Tensor
    from_t: Tensor
    """Is the student's, at e, with its gradient."""
    from_s: Tensor
    """Is the target's, at e."""


class DistillTask(LatentTask, StudentTask):
    """The student learns to answer at t as its target answers at s, one solver step of the teacher earlier."""

    def __init__(
        self, learner: Learner, method: Method, source: LatentSource, drawn: TimeAndGuidance, seed: int,
        target: TargetName = "average",
    ) -> None:  # fmt: skip
        super().__init__(learner, source, seed)
        self.method, self._drawn = method, drawn
        # A sampler asks where a phase begins, which the grid of a skip need not hold.
        begins = [edges(method.schedule, count) for count in drawn.phases]
        self._edges = torch.cat(begins) if begins else None
        self._target = TARGETS[target](learner)

    def draw_batch(self, counters: range) -> tuple[TrainingBatch, Tensor]:
        """Returns the batch at these counters, with every draw that its loss needs; and which of it are valid."""
        shape = self._source.shape_at(counters)
        data = self._source.batch(counters, self._normal("vae", counters, shape))
        t, s, e = self._draw_times(counters)
        epsilon = self._normal("epsilon", counters, shape)
        t, s, e = (time.to(self._device, non_blocking=True) for time in (t, s, e))
        return TrainingBatch(data.z_0, data.cond, t, s, e, epsilon, self._draw_omega(counters)), data.valid

    def _draw_times(self, counters: range) -> tuple[Tensor, Tensor, Tensor]:
        u = draws.uniform(self._seed, "t", counters)
        t = draw_times(u, self.method.schedule, self._drawn.skip, self._drawn.times, self._edges)
        e = self._draw_end(t, counters)
        return t, step_back(t, self._drawn.gap(t, torch.tensor(counters)), e), e

    def _draw_end(self, t: Tensor, counters: range) -> Tensor:
        u = draws.uniform(self._seed, "e", counters)
        return self._drawn.end.choose(self.method.schedule, t, u, self._drawn.phases)

    def _draw_omega(self, counters: range) -> Tensor | None:
        if self._drawn.omega_range is None:
            return None
        return draw_omega(self._seed, counters, self._drawn.omega_range).to(self._device, non_blocking=True)

    def draw_phase_lengths(self, t: Tensor, counters: range) -> Tensor:
        """Returns how many times the phase has that each sample's end begins `[b]`; all that there are without one."""
        u = draws.uniform(self._seed, "e", counters)
        return phase_lengths(self.method.schedule, t.cpu(), u, self._drawn.phases)

    def answer(self, counters: range) -> Answers:
        """Asks student and target."""
        batch, valid = self.draw_batch(counters)
        return Answers(batch, valid, *answer_both(self.method, self._learner.student, self._target, batch))

    def loss(self, counters: range) -> Loss:
        answers = self.answer(counters)
        return Loss.of_valid(self.compare(answers), answers.valid)

    def compare(self, answers: Answers) -> Tensor:
        """Returns the consistency loss of every sample `[b]`."""
        return compare(self.method, answers.batch, answers.from_t, answers.from_s)
