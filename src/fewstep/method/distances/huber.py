"""Pseudo-Huber, which is quadratic near 0 and linear far off."""

from __future__ import annotations

from torch import Tensor

from fewstep.method.distances.base import Distance, DistanceKind


def pseudo_huber(c: float) -> Distance:
    """Makes the mean of √((x − y)² + c²) − c, elementwise (arXiv 2310.14189, section 3.3, as LCM's released code
    applies it)."""

    def distance(x: Tensor, y: Tensor) -> Tensor:
        return (((x - y).square() + c**2).sqrt() - c).flatten(1).mean(1)

    return distance


DISTANCE = DistanceKind("huber", make=pseudo_huber)
