"""The length of the difference, rounded off near 0."""

from __future__ import annotations

from torch import Tensor

from fewstep.method.distances.base import Distance, DistanceKind


def root(c: float) -> Distance:
    """Makes √(‖x − y‖² + c²) − c of each sample as a whole (arXiv 2406.14548)."""

    def distance(x: Tensor, y: Tensor) -> Tensor:
        return ((x - y).square().flatten(1).sum(1) + c**2).sqrt() - c

    return distance


DISTANCE = DistanceKind("root", make=root)
