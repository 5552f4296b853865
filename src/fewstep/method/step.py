"""Algorithm 1 of the paper, as a pure function: every draw is handed in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fewstep.diffusion.prediction import Network
from fewstep.diffusion.schedule import Schedule
from fewstep.method.distances import Distance
from fewstep.method.landing import BOUNDARY, ConsistencyFunction, Landing
from fewstep.method.paths import Path, TrainingBatch
from fewstep.method.weights import Weight, one

TargetName = Literal["average", "itself", "none"]
"""Who answers at s: the student's moving average, the student itself, or nobody."""


@dataclass(frozen=True)
class Method:
    """The seams of consistency distillation."""

    schedule: Schedule
    path: Path
    distance: Distance
    weight: Weight = one
    landing: Landing = BOUNDARY
    told_end: bool = False
    """Whether student and target are told where they shall land, as `cond["end"]`; the teacher never is."""

    def consistency_function(self, network: Network, batch: TrainingBatch) -> ConsistencyFunction:
        """Returns f of a network under the batch's condition and ω."""
        return ConsistencyFunction(network, batch.cond, batch.omega, self.schedule, self.landing, self.told_end)


def consistency_losses(method: Method, student: Network, target: Network | None, batch: TrainingBatch) -> Tensor:
    """Returns λ(t, s, e)·d(f_θ(z_t, ω, c, t), f_θ⁻(ẑ_s, ω, c, s)) `[b]`, both landed at e; its mean is the loss (LCM,
    eq. 17 and algorithm 1, with λ = 1 and e = 0).

    Gradient flows into `student` alone.
    """
    return compare(method, batch, *answer_both(method, student, target, batch))


def answer_both(
    method: Method, student: Network, target: Network | None, batch: TrainingBatch
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Returns the student's answer at t, and the wanted one at s, which has no gradient; both landed at e.

    `target` is the student's EMA, or the student itself, or None: then the wanted answer is ẑ_s itself, which has
    landed where s = e.
    """
    z_t = method.schedule.diffuse(batch.z_0, batch.epsilon, batch.t) if batch.z_t is None else batch.z_t
    with torch.no_grad():
        z_s = method.path(z_t, batch)
        from_s = z_s if target is None else method.consistency_function(target, batch)(z_s, batch.s, batch.e)
    return method.consistency_function(student, batch)(z_t, batch.t, batch.e), from_s


def compare(method: Method, batch: TrainingBatch, from_t: Tensor, from_s: Tensor) -> Tensor:
    """Returns λ(t, s, e)·d of both answers `[b]`."""
    t, s, e = (time.to(from_t.dtype) for time in (batch.t, batch.s, batch.e))
    return method.weight(t, s, e) * method.distance(from_t, from_s)
