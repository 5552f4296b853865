"""Distances between the two answers of the consistency loss, sample by sample: a function and a line in DISTANCES."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from torch import Tensor

Distance = Callable[[Tensor, Tensor], Tensor]
"""(`[b, …]`, `[b, …]`) → `[b]`."""


def l2(x: Tensor, y: Tensor) -> Tensor:
    """Returns the mean of (x − y)²."""
    return (x - y).square().flatten(1).mean(1)


def pseudo_huber(c: float) -> Distance:
    """Makes the mean of √((x − y)² + c²) − c, elementwise (arXiv 2310.14189, section 3.3, as LCM's released code
    applies it)."""

    def distance(x: Tensor, y: Tensor) -> Tensor:
        return (((x - y).square() + c**2).sqrt() - c).flatten(1).mean(1)

    return distance


DISTANCES: dict[str, Callable[[float], Distance]] = {"huber": pseudo_huber, "l2": lambda _: l2}
"""By name, from the width c of the bottom, which a distance without one does not heed."""

if TYPE_CHECKING:
    DistanceName = str
else:
    DistanceName = Literal[tuple(DISTANCES)]  # what the command line allows
