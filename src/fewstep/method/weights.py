"""λ(t), how much each time counts in the consistency loss: a function of the schedule and a line in WEIGHTS."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from fewstep.diffusion.schedule import Schedule

Weight = Callable[[Tensor], Tensor]
"""λ `[b]` from t `[b]`."""


def constant(schedule: Schedule) -> Weight:  # noqa: ARG001  # the same on every schedule
    """Makes the paper's weight: 1 everywhere."""
    return torch.ones_like


def truncated_snr(schedule: Schedule) -> Weight:
    """Makes max(α²/σ², 1), which favours little noise (arXiv 2202.00512)."""
    return lambda t: torch.exp(2 * schedule.lam(t)).clamp(min=1).to(t.dtype)


WEIGHTS: dict[str, Callable[[Schedule], Weight]] = {"constant": constant, "truncated-snr": truncated_snr}
"""By name."""

if TYPE_CHECKING:
    WeightName = str
else:
    WeightName = Literal[tuple(WEIGHTS)]  # what the command line allows
