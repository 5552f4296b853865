"""The Fréchet distance between two sets of features, each taken as a Gaussian."""

from __future__ import annotations

import torch
from torch import Tensor


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2(Σ₁^½ Σ₂ Σ₁^½)^½) of features `[n, d]`, in float64 (arXiv 1706.08500, eq. 6).

    Raises ValueError with fewer than d + 1 samples, where a covariance has no full rank.
    """
    for features in (first, second):
        if len(features) <= features.shape[1]:
            raise ValueError(f"{len(features)} samples are too few for {features.shape[1]} features")
    first, second = first.double(), second.double()
    root = _square_root(first.T.cov())
    middle = torch.linalg.eigvalsh(root @ second.T.cov() @ root)
    cross = middle.clamp(min=0).sqrt().sum()
    means = (first.mean(0) - second.mean(0)).square().sum()
    return float(means + first.T.cov().trace() + second.T.cov().trace() - 2 * cross)


def _square_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
