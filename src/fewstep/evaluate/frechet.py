"""The Fréchet distance between two sets of features, each taken as a Gaussian."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Holds count, mean `[d]` and scatter Σ(x − μ)(x − μ)ᵀ `[d, d]` of features, in float64; parts add up."""

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """Computes them of features `[n, d]`, n ≥ 1."""
        features = features.double()
        centred = features - features.mean(0)
        return cls(len(features), features.mean(0), centred.T @ centred)

    def __add__(self, other: Moments) -> Moments:
        """Applies Chan, Golub and LeVeque's rule (1979), which loses no digits to large means."""
        count = self.count + other.count
        gap = other.mean - self.mean
        mean = self.mean + gap * (other.count / count)
        between = torch.outer(gap, gap) * (self.count * other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + between)

    @property
    def covariance(self) -> Tensor:
        return self.scatter / (self.count - 1)


def frechet_distance(first: Moments, second: Moments) -> float:
    """Computes ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2(Σ₁^½ Σ₂ Σ₁^½)^½), in float64 (arXiv 1706.08500, eq. 6).

    With Σ = LLᵀ the last trace is the sum of L₁ᵀL₂'s singular values: no general matrix root, whose eigenvalues are
    complex by rounding, and no squares, whose rounding a root would enlarge. Raises ValueError with fewer than 2d
    samples: near d the covariance is mostly noise, and the distance with it.
    """
    for moments in (first, second):
        if moments.count < 2 * len(moments.mean):
            raise ValueError(
                f"{moments.count} samples are too few for {len(moments.mean)} features; needed: twice as many"
            )
    cross = torch.linalg.svdvals(_factor(first.covariance).T @ _factor(second.covariance)).sum()
    means = (first.mean - second.mean).square().sum()
    return float(means + first.covariance.trace() + second.covariance.trace() - 2 * cross)


def _factor(matrix: Tensor) -> Tensor:
    """Finds L with LLᵀ = `matrix`, which may be singular."""
    values: Tensor
    vectors: Tensor
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt()
