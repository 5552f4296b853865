"""How sure a mean is."""

from __future__ import annotations

import torch
from torch import Tensor

RESAMPLES = 2000


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
