"""Ordinary diffusion training of a network that can paint already: how style LoRAs are made."""

from __future__ import annotations

import torch

from fewstep.data import draws
from fewstep.data.latents import LatentSource
from fewstep.diffusion.prediction import Cond, Parameterisation, Prediction, to_output
from fewstep.diffusion.schedule import Schedule
from fewstep.train.learner import Learner
from fewstep.train.task import LatentTask, Loss, StudentTask


class DiffusionTuningTask(LatentTask, StudentTask):
    """‖output − wanted output‖² in the network's own parameterisation, t uniform, captions dropped at times."""

    DROP_RATE = 0.1

    def __init__(
        self, learner: Learner, schedule: Schedule, parameterisation: Parameterisation, source: LatentSource,
        null_cond: Cond, seed: int,
    ) -> None:  # fmt: skip
        """`null_cond` is the empty condition, batch of one."""
        super().__init__(learner, source, seed)
        self._schedule, self._kind, self._null = schedule, parameterisation, null_cond

    def loss(self, counters: range) -> Loss:
        shape = self._source.shape_at(counters)
        batch = self._source.batch(counters, self._normal("vae", counters, shape))
        z_0 = batch.z_0
        dropped = (draws.uniform(self._seed, "drop", counters) < self.DROP_RATE).to(self._device)
        cond = batch.cond | {
            name: torch.where(
                dropped.view(-1, *[1] * (empty.ndim - 1)), empty.to(batch.cond[name].dtype), batch.cond[name]
            )
            for name, empty in self._null.items()
        }
        t = self._schedule.pick(draws.uniform(self._seed, "t", counters)).to(self._device)
        epsilon = self._normal("epsilon", counters, shape)
        answer = self._learner.student(self._schedule.diffuse(z_0, epsilon, t), t, cond, None)
        alpha, sigma = self._schedule.coefficients(t, z_0)
        found, wanted = (to_output(self._kind, each, alpha, sigma) for each in (answer, Prediction(z_0, epsilon)))
        losses = (found - wanted).square().flatten(1).mean(1)
        return Loss(torch.where(batch.valid, losses, 0).sum(), batch.valid.sum())
