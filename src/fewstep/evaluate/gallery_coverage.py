"""COVERAGE on the gallery: how far what is painted is from the exact distribution that each prompt leaves open."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from fewstep.data.worlds.gallery_scene import AXES, GalleryPrompt, GalleryScene, find_law, sort_cells

WRONG = "wrong"
"""The cell of pictures that are unreadable or do not show what their prompt states."""


@dataclass(frozen=True)
class Coverage:
    """Distances are total variation, in [0, 1], of which less is better; real pictures have some too, by their number.

    Compare it with that of as many real pictures of the same prompts, read by the same reader.
    """

    accuracy: float
    """Says which share of the pictures show all that their prompt states."""
    distances: dict[str, float]
    """Holds, for each axis, the mean over the prompts that leave it open; NaN where none does."""
    repeats: float
    """Says which share of the pairs of readable pictures of one prompt show the very same scene."""

    @property
    def mean(self) -> float:
        """Returns the mean over the axes that any prompt leaves open."""
        return _average([value for value in self.distances.values() if not math.isnan(value)])


def measure_coverage(prompts: Sequence[GalleryPrompt], found: Sequence[Sequence[GalleryScene | None]]) -> Coverage:
    """Measures pictures `found[i]`, as a reader read them, against the law of `prompts[i]`."""
    distances: dict[str, list[float]] = {axis: [] for axis in AXES}
    right, pairs, alike = [], 0, 0
    for prompt, scenes in zip(prompts, found, strict=True):
        sorted_cells = [None if scene is None else sort_cells(prompt, scene) for scene in scenes]
        right += [cells is not None for cells in sorted_cells]
        for axis, law in find_law(prompt).items():
            if len(law) > 1:
                painted = _pool([{WRONG: 1.0} if cells is None else cells[axis] for cells in sorted_cells])
                distances[axis].append(_compare(law, painted))
        shown = Counter(scene for scene in scenes if scene is not None)
        pairs += math.comb(shown.total(), 2)
        alike += sum(math.comb(count, 2) for count in shown.values())
    means = {axis: _average(values) for axis, values in distances.items()}
    return Coverage(_average(right), means, alike / pairs if pairs else math.nan)


def _compare(law: dict[str, float], painted: dict[str, float]) -> float:
    return sum(abs(law.get(cell, 0.0) - painted.get(cell, 0.0)) for cell in law.keys() | painted.keys()) / 2


def _pool(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    pooled: dict[str, float] = {}
    for part in parts:
        for cell, share in part.items():
            pooled[cell] = pooled.get(cell, 0.0) + share / len(parts)
    return pooled


def _average(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
