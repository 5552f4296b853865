"""A look told from another: a linear probe of the features that an evaluation compares."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

_DECAY = 1e-4


@dataclass(frozen=True)
class StyleProbe:
    """Says of features `[n, d]` whether they are in the style, `[n]`."""

    weight: Tensor
    """Is `[d]`."""
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        return features.double() @ self.weight + self.bias > 0


def fit_probe(style: Tensor, others: Tensor) -> StyleProbe:
    """Fits logistic regression to real pictures' features, `[n, d]` in the style and `[m, d]` in another."""
    x = torch.cat([style, others]).double()
    y = torch.cat([x.new_ones(len(style)), x.new_zeros(len(others))])
    mean, deviation = x.mean(0), x.std(0).clamp(min=1e-6)
    scaled = (x - mean) / deviation
    weight = x.new_zeros(x.shape[1]).requires_grad_(True)
    bias = x.new_zeros(()).requires_grad_(True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = functional.binary_cross_entropy_with_logits(scaled @ weight + bias, y) + _DECAY * weight.square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    slope = (weight / deviation).detach()
    return StyleProbe(slope, bias.detach() - mean @ slope)
