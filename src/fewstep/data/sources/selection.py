"""Settings that select pictures, and the counting of those that are left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fewstep.data.sources.base import Tally
from fewstep.data.sources.filters import CaptionLines, Filters
from fewstep.data.sources.fitting import PictureLimits


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Decides which pictures are used and where their captions come from."""

    limits: PictureLimits = field(default_factory=PictureLimits)
    filters: Filters = field(default_factory=Filters)
    captions: tuple[str, ...] = ()
    """Fields or columns that hold captions; if given, no others are read, and no `.txt` files."""
    lines: CaptionLines = "join"
    follow_links: bool = False
    """Whether links may lead out of the folder of a source."""
    repeats: bool = True
    """Whether the numbers of folders `10_cat`, `1_dog` say how often their pictures come in an epoch."""
    squares: bool = True
    """Whether pictures become squares, so that it is told of how many the shorter side is enlarged."""

    def select(self, scores: NDArray[np.float64], key: Callable[[int], str], tally: Tally) -> NDArray[np.bool_]:
        """Returns a mask of the rows of scores that pass the filters; counts the others in `tally`, named by `key`."""
        wanted = np.ones(len(scores), dtype=bool)
        for reason, mask in self.filters.find_refused(scores, key).items():
            wanted &= ~mask
            rows = np.flatnonzero(mask)
            tally.add({reason: len(rows)}, {reason: (key(int(row)) for row in rows)})
        short = np.minimum(*scores[wanted].T[-2:])  # the last two scores are the sides; a NaN is not small
        if self.squares and (small := int((short < self.limits.side).sum())):
            tally.told[f"smaller than {self.limits.side} pixels, and enlarged"] += small
        return wanted
