"""Distillation on trajectories that the teacher went beforehand: an update asks no teacher, and no target."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from fewstep.method.paths import TrainingBatch, kept_path
from fewstep.method.step import Method
from fewstep.method.walks import find_stop
from fewstep.models.prepared_trajectories import KeptTrajectories
from fewstep.train.distill_task import DistillTask, TimeAndGuidance
from fewstep.train.learner import Learner


class KeptTask(DistillTask):
    """Every row of a batch is a jump along a trajectory, from one of its stops to a later one."""

    asks_teacher = False

    def __init__(
        self, learner: Learner, method: Method, source: KeptTrajectories, drawn: TimeAndGuidance, seed: int
    ) -> None:
        super().__init__(learner, dataclasses.replace(method, path=kept_path), source, drawn, seed, "none")
        self._trajectories = source

    def draw_batch(self, counters: range) -> tuple[TrainingBatch, Tensor]:
        kept, stops = self._trajectories.batch(counters, torch.empty(0)), self._trajectories.stops
        t = stops[kept.hops]
        to = find_stop(stops, self._draw_end(t, counters))
        z_e = self._trajectories.read_states(counters, to)
        t, e = (time.to(self._device, non_blocking=True) for time in (t, stops[to]))
        batch = TrainingBatch(kept.z_0, kept.cond, t, e, e, epsilon=kept.z_t, omega=kept.omega, z_t=kept.z_t, z_s=z_e)
        return batch, kept.valid
