"""Algorithm 1 of the paper, as a pure function: every draw is handed in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.diffusion.prediction import Network
from fewstep.diffusion.schedule import Schedule
from fewstep.method.batch import TrainingBatch
from fewstep.method.distances.base import Distance
from fewstep.method.landing import BOUNDARY, ConsistencyFunction, Landing
from fewstep.method.paths import Path


@dataclass(frozen=True)
class Method:
    """The seams of consistency distillation."""

    schedule: Schedule
    path: Path
    distance: Distance
    weight: Callable[[Tensor], Tensor] = torch.ones_like
    """λ(t) of the loss, `[b]` from t `[b]`; constant in the paper."""
    landing: Landing = BOUNDARY

    def consistency_function(self, network: Network, batch: TrainingBatch) -> ConsistencyFunction:
        """Returns f of a network under the batch's condition and ω."""
        return ConsistencyFunction(network, batch.cond, batch.omega, self.schedule, self.landing)


def consistency_losses(method: Method, student: Network, target: Network, batch: TrainingBatch) -> Tensor:
    """Returns λ(t)·d(f_θ(z_t, ω, c, t), f_θ⁻(ẑ_s, ω, c, s)) `[b]`, both landed at e; its mean is the loss (LCM, eq. 17
    and algorithm 1, with e = 0).

    Gradient flows into `student` alone; `target` is its EMA, or the student itself.
    """
    z_t = method.schedule.diffuse(batch.z_0, batch.epsilon, batch.t)
    with torch.no_grad():
        z_s = method.path(z_t, batch)
        from_s = method.consistency_function(target, batch)(z_s, batch.s, batch.e)
    from_t = method.consistency_function(student, batch)(z_t, batch.t, batch.e)
    return method.weight(batch.t.to(from_t.dtype)) * method.distance(from_t, from_s)
