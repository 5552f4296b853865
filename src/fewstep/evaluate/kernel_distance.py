"""The kernel distance (KID) between two sets of features: unbiased at any number of samples."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LARGEST_BLOCK = 1000
FEWEST_BLOCKS = 10


def kernel_distance(first: Tensor, second: Tensor, seed: int = 0) -> tuple[float, float]:
    """Estimates the squared maximum mean discrepancy and its standard error, k(x, y) = (x·y/d + 1)³ (arXiv 1801.01401).

    Both sets, `[n, d]`, are shuffled by `seed` and cut into blocks that share no sample, at least ten, of at most 1,000
    (a B-test, arXiv 1307.1954): the blocks' estimates are independent, so that their spread is an honest error, which
    that of overlapping subsets is not. Raises ValueError with fewer than 20 samples.
    """
    few = min(len(first), len(second))
    size = min(LARGEST_BLOCK, few // FEWEST_BLOCKS)
    if size < 2:
        raise ValueError(f"{few} samples are too few for a kernel distance; needed: {2 * FEWEST_BLOCKS}")
    count = few // size
    generator = torch.Generator().manual_seed(seed)
    x, y = (features[torch.randperm(len(features), generator=generator)].double() for features in (first, second))
    blocks = [_estimate_unbiased(x[i * size : (i + 1) * size], y[i * size : (i + 1) * size]) for i in range(count)]
    estimates = torch.stack(blocks)
    return float(estimates.mean()), float(estimates.std() / math.sqrt(count))


def _estimate_unbiased(x: Tensor, y: Tensor) -> Tensor:
    n = len(x)
    within = sum(
        (_compute_kernel(part, part).sum() - _compute_kernel(part, part).trace()) / (n * (n - 1)) for part in (x, y)
    )
    return within - 2 * _compute_kernel(x, y).mean()


def _compute_kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3
