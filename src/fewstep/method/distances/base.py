"""What a distance between the two answers of the consistency loss is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Distance = Callable[[Tensor, Tensor], Tensor]
"""Maps (`[b, …]`, `[b, …]`) to `[b]`."""


@dataclass(frozen=True)
class DistanceKind:
    """A distance by name."""

    name: str
    make: Callable[[float], Distance]
    """Makes it from the width c of its bottom, which a distance without one does not heed."""
