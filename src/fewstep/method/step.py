"""Algorithm 1 of the paper, as a pure function: every draw is handed in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.diffusion.prediction import Network
from fewstep.diffusion.schedule import Schedule
from fewstep.method.boundary import consistency_function
from fewstep.method.distances import Distance
from fewstep.method.paths import Path, Sample


@dataclass(frozen=True)
class Method:
    """The seams of consistency distillation."""

    schedule: Schedule
    path: Path
    distance: Distance
    weight: Callable[[Tensor], Tensor] = torch.ones_like
    """λ(t) of the loss, `[b]` from t `[b]`; constant in the paper."""


def consistency_losses(method: Method, student: Network, target: Network, sample: Sample) -> Tensor:
    """λ(t)·d(f_θ(z_t, ω, c, t), f_θ⁻(ẑ_s, ω, c, s)) `[b]`, whose mean is the loss (LCM, eq. 17 and algorithm 1).

    Gradient flows into `student` alone; `target` is its EMA, or the student itself.
    """
    z_t = method.schedule.diffuse(sample.z_0, sample.epsilon, sample.t)
    with torch.no_grad():
        z_s = method.path(z_t, sample)
        answer_at_s = consistency_function(target, z_s, sample.s, sample.cond, sample.omega)
    answer_at_t = consistency_function(student, z_t, sample.t, sample.cond, sample.omega)
    weight = method.weight(sample.t.to(answer_at_t.dtype))
    return weight * method.distance(answer_at_t, answer_at_s)
