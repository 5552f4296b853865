"""λ(t, s, e), how much each update's sample counts in the consistency loss: a function of the schedule and a line in
WEIGHTS."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from fewstep.diffusion.schedule import Schedule

Weight = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Makes λ `[b]` from t, s and e `[b]`."""
MOST = 100.0
"""Where a weight that grows without bound stops."""


def one(t: Tensor, _s: Tensor, _e: Tensor) -> Tensor:
    """Returns 1 for every sample."""
    return torch.ones_like(t)


def constant(schedule: Schedule) -> Weight:  # noqa: ARG001  # the same on every schedule
    """Makes the paper's weight: 1 everywhere."""
    return one


def truncated_snr(schedule: Schedule) -> Weight:
    """Makes max(α²/σ², 1) at t, which favours little noise (arXiv 2202.00512)."""
    return lambda t, _s, _e: torch.exp(2 * schedule.lam(t)).clamp(min=1).to(t.dtype)


def equal_jumps(schedule: Schedule) -> Weight:
    """Makes 1/(σ_t·α_e − α_t·σ_e)², at most MOST: by its square a jump from t to e scales the error of v̂."""

    def weight(t: Tensor, _s: Tensor, e: Tensor) -> Tensor:
        share = schedule.sigma(t) * schedule.alpha(e) - schedule.alpha(t) * schedule.sigma(e)
        return share.square().clamp(min=1 / MOST).reciprocal().to(t.dtype)

    return weight


def inverse_jump(schedule: Schedule) -> Weight:
    """Makes 1/(σ_t·α_e − α_t·σ_e), at most 3: a jump from t to e scales the error of v̂ by its inverse. Without a bound
    short jumps would be learnt at the cost of all others."""

    def weight(t: Tensor, _s: Tensor, e: Tensor) -> Tensor:
        share = schedule.sigma(t) * schedule.alpha(e) - schedule.alpha(t) * schedule.sigma(e)
        return share.clamp(min=1 / 3).reciprocal().to(t.dtype)

    return weight


def inverse_gap(schedule: Schedule) -> Weight:
    """Makes 1/(x_t − x_s) for the noise x = σ/α beside a picture of weight 1, at most MOST (ECT, arXiv 2406.14548)."""

    def weight(t: Tensor, s: Tensor, _e: Tensor) -> Tensor:
        gap = torch.exp(-schedule.lam(t)) - torch.exp(-schedule.lam(s))
        return gap.clamp(min=1 / MOST).reciprocal().to(t.dtype)

    return weight


WEIGHTS: dict[str, Callable[[Schedule], Weight]] = {
    "constant": constant, "truncated-snr": truncated_snr, "equal-jumps": equal_jumps, "inverse-jump": inverse_jump,
    "inverse-gap": inverse_gap,
}  # fmt: skip
"""Holds every weight by its name."""

if TYPE_CHECKING:
    WeightName = str
else:
    WeightName = Literal[("auto", *WEIGHTS)]  # what the command line allows
