"""Ordinary diffusion training of a network that can paint already: how style LoRAs are made."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fewstep.data import draws
from fewstep.diffusion.prediction import Cond, Parameterisation
from fewstep.diffusion.schedule import Schedule
from fewstep.train.distill_task import LatentSource, Learner


class DiffusionTuningTask:
    """‖output − wanted output‖² in the network's own parameterisation, t uniform, captions dropped at times."""

    DROP_RATE = 0.1

    def __init__(
        self, learner: Learner, schedule: Schedule, parameterisation: Parameterisation, source: LatentSource,
        null_cond: Cond, seed: int,
    ) -> None:  # fmt: skip
        """`null_cond` is the empty condition, batch of one."""
        self.student, self.averaged = learner.weights, learner.averaged
        self._network, self._schedule, self._kind = learner.student, schedule, parameterisation
        self._source, self._null, self._seed = source, null_cond, seed
        self._device = next(learner.weights.parameters()).device

    def loss(self, counters: range) -> Tensor:
        shape = self._source.latent_shape
        indices = draws.order(self._seed, len(self._source), counters)
        z_0, cond = self._source.batch(indices, self._normal("vae", counters, shape))
        dropped = (draws.uniform(self._seed, "drop", counters) < self.DROP_RATE).to(self._device)
        cond = {
            name: torch.where(dropped.view(-1, *[1] * (value.ndim - 1)), self._null[name].to(value.dtype), value)
            for name, value in cond.items()
        }
        t = (draws.uniform(self._seed, "t", counters) * self._schedule.num_steps).long().to(self._device)
        epsilon = self._normal("epsilon", counters, shape)
        answer = self._network(self._schedule.diffuse(z_0, epsilon, t), t, cond, None)
        alpha, sigma = self._schedule.coefficients(t, z_0)
        return functional.mse_loss(
            _output(self._kind, answer.z_0, answer.epsilon, alpha, sigma),
            _output(self._kind, z_0, epsilon, alpha, sigma),
        )

    def _normal(self, stream: str, counters: range, shape: tuple[int, ...]) -> Tensor:
        return draws.normal(self._seed, stream, counters, shape).to(self._device, non_blocking=True)


def _output(kind: Parameterisation, z_0: Tensor, epsilon: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """What a network of this kind would have to answer for these z_0 and ε."""
    if kind == "epsilon":
        return epsilon
    return alpha * epsilon - sigma * z_0 if kind == "v_prediction" else z_0
