"""What one update of the student is computed from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fewstep.diffusion.prediction import Cond


@dataclass(frozen=True)
class TrainingBatch:
    """Data with every draw that its loss needs: z_0 and epsilon `[b, …]`, e ≤ s ≤ t `[b]`, ω `[b]` or None."""

    z_0: Tensor
    cond: Cond
    t: Tensor
    s: Tensor
    e: Tensor
    """The end point, where answers at t and at s land."""
    epsilon: Tensor
    omega: Tensor | None
    z_t: Tensor | None = None
    """Where the batch stands at t, if that is not z_0 with the noise ε."""
    z_s: Tensor | None = None
    """Where the path leads from z_t, if that is known."""
