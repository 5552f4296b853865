"""Cauchy's distance, which hardly heeds outliers."""

from __future__ import annotations

from torch import Tensor

from fewstep.method.distances.base import Distance, DistanceKind


def cauchy(c: float) -> Distance:
    """Makes log(1 + ‖x − y‖²/2c²) of each sample as a whole (arXiv 2502.01441)."""

    def distance(x: Tensor, y: Tensor) -> Tensor:
        return ((x - y).square().flatten(1).sum(1) / (2 * c**2)).log1p()

    return distance


DISTANCE = DistanceKind("cauchy", make=cauchy)
