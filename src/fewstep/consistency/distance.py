"""How the two answers of the consistency loss are compared, sample by sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

Distance = Callable[[Tensor, Tensor], Tensor]
"""(`[b, …]`, `[b, …]`) → `[b]`."""

DistanceName = Literal["huber", "l2"]


def l2(x: Tensor, y: Tensor) -> Tensor:
    """Mean of (x − y)²."""
    return (x - y).square().flatten(1).mean(1)


def pseudo_huber(c: float) -> Distance:
    """Mean of √((x − y)² + c²) − c, elementwise (arXiv 2310.14189, section 3.3, as LCM's released code applies it)."""

    def distance(x: Tensor, y: Tensor) -> Tensor:
        return (((x - y).square() + c**2).sqrt() - c).flatten(1).mean(1)

    return distance
