"""Distillation on trajectories that the teacher went beforehand: an update asks no teacher."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from fewstep.data.latents import LatentSource, StepBatch
from fewstep.method.batch import TrainingBatch
from fewstep.method.paths import kept_path
from fewstep.method.step import Method, TargetName
from fewstep.train.distill_task import DistillTask, TimeAndGuidance
from fewstep.train.learner import Learner


class KeptTask(DistillTask):
    """Every row of a batch is one step of a trajectory, with its caption and its ω."""

    def __init__(
        self, learner: Learner, method: Method, source: LatentSource, drawn: TimeAndGuidance, seed: int,
        target: TargetName = "average", *, stops: Tensor,
    ) -> None:  # fmt: skip
        """`source` gives StepBatches, whose steps lead from each of `stops` to the next."""
        super().__init__(learner, dataclasses.replace(method, path=kept_path), source, drawn, seed, target)
        self._stops = stops

    def draw_batch(self, counters: range) -> tuple[TrainingBatch, Tensor]:
        kept = self._source.batch(counters, torch.empty(0))
        assert isinstance(kept, StepBatch)
        t, s = self._stops[kept.hops], self._stops[kept.hops + 1]
        e = torch.minimum(self._draw_end(t, counters), s)  # an end anywhere below t may lie above s
        t, s, e = (time.to(self._device, non_blocking=True) for time in (t, s, e))
        batch = TrainingBatch(
            kept.z_0, kept.cond, t, s, e, epsilon=kept.z_t, omega=kept.omega, z_t=kept.z_t, z_s=kept.z_s
        )
        return batch, kept.valid
