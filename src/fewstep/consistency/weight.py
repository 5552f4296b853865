"""λ(t), how much each time counts in the consistency loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from fewstep.diffusion.schedule import Schedule

WeightName = Literal["constant", "truncated-snr"]


def loss_weight(name: WeightName, schedule: Schedule) -> Callable[[Tensor], Tensor]:
    """`[b]` from t `[b]`: 1, as in the paper, or max(α²/σ², 1), which favours little noise (arXiv 2202.00512)."""
    if name == "constant":
        return torch.ones_like
    return lambda t: torch.exp(2 * schedule.lam(t)).clamp(min=1).to(t.dtype)
