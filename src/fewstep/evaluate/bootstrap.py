"""How sure a mean is."""

from __future__ import annotations

import math

import torch
from torch import Tensor

RESAMPLES = 2000


_NORMAL = 1.959963984540054
"""The standard normal distribution's 97.5 % point."""


def share_interval(right: Tensor, seed: int = 0) -> tuple[float, float]:
    """Computes the 95 % interval of a share, `right` `[n]` of 0 and 1: the bootstrap's, or Wilson's where all are
    alike, as every resample then is too."""
    share, n = float(right.double().mean()), len(right)
    if 0 < share < 1:
        return bootstrap_interval(right, seed=seed)
    square = _NORMAL**2
    middle = (share + square / (2 * n)) / (1 + square / n)
    half = _NORMAL / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap_interval(values: Tensor, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Computes the percentile bootstrap's interval of the mean of `values` `[n]`, in float64."""
    generator = torch.Generator().manual_seed(seed)
    values = values.double()
    means = torch.stack(
        [values[torch.randint(len(values), (len(values),), generator=generator)].mean() for _ in range(RESAMPLES)]
    )
    outside = (1 - level) / 2
    low, high = torch.quantile(means, torch.tensor([outside, 1 - outside], dtype=torch.float64)).tolist()
    return low, high
