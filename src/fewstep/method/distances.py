"""Distances between the two answers of the consistency loss, by name: each is a function and a line in DISTANCES."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from torch import Tensor

Distance = Callable[[Tensor, Tensor], Tensor]
"""Maps (`[b, …]`, `[b, …]`) to `[b]`."""


def l2(x: Tensor, y: Tensor) -> Tensor:
    """Returns the mean of (x − y)²."""
    return (x - y).square().flatten(1).mean(1)


def pseudo_huber(c: float) -> Distance:
    """Makes the mean of √((x − y)² + c²) − c, elementwise: quadratic near 0 and linear far off (arXiv 2310.14189,
    section 3.3, as LCM's released code applies it)."""

    def distance(x: Tensor, y: Tensor) -> Tensor:
        return (((x - y).square() + c**2).sqrt() - c).flatten(1).mean(1)

    return distance


def cauchy(c: float) -> Distance:
    """Makes log(1 + ‖x − y‖²/2c²) of each sample as a whole, which hardly heeds outliers (arXiv 2502.01441)."""

    def distance(x: Tensor, y: Tensor) -> Tensor:
        return ((x - y).square().flatten(1).sum(1) / (2 * c**2)).log1p()

    return distance


def root(c: float) -> Distance:
    """Makes √(‖x − y‖² + c²) − c of each sample as a whole: its length, rounded off near 0 (arXiv 2406.14548)."""

    def distance(x: Tensor, y: Tensor) -> Tensor:
        return ((x - y).square().flatten(1).sum(1) + c**2).sqrt() - c

    return distance


DISTANCES: dict[str, Callable[[float], Distance]] = {
    "cauchy": cauchy, "huber": pseudo_huber, "l2": lambda _: l2, "root": root,
}  # fmt: skip
"""Makes every distance, by its name, from the width c of its bottom, which one without a bottom does not heed."""

if TYPE_CHECKING:
    DistanceName = str
else:
    DistanceName = Literal[("auto", *DISTANCES)]  # what the command line allows
