"""Distances of the consistency loss by name: each is a file in this folder that ends in its DISTANCE, and a line in
_FILES."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Literal

from fewstep.method.distances.base import DistanceKind

_FILES = (
    "cauchy",
    "huber",
    "l2",
    "root",
)
_FOUND: list[DistanceKind] = [importlib.import_module(f"{__name__}.{file}").DISTANCE for file in _FILES]
DISTANCES: dict[str, DistanceKind] = {kind.name: kind for kind in _FOUND}
"""Every distance; the command line and the tests read it."""

if TYPE_CHECKING:
    DistanceName = str
else:
    DistanceName = Literal[("auto", *DISTANCES)]  # what the command line allows
