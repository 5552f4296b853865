"""What is taken of the pictures that are found, and the counting of what is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fewstep.data.sources.base import Tally
from fewstep.data.sources.decoding import PictureLimits
from fewstep.data.sources.filters import Filters


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Settings that decide which pictures are used and what their captions are."""

    limits: PictureLimits = field(default_factory=PictureLimits)
    filters: Filters = field(default_factory=Filters)
    captions: tuple[str, ...] = ()
    """Fields or columns that hold captions; where given, they alone are asked, and no `.txt` file."""

    def select(self, scores: NDArray[np.float64], key: Callable[[int], str], tally: Tally) -> NDArray[np.bool_]:
        """Which rows of scores pass the filters; the others are counted in `tally`, named by `key`."""
        wanted = np.ones(len(scores), dtype=bool)
        for reason, mask in self.filters.find_refused(scores, key).items():
            wanted &= ~mask
            rows = np.flatnonzero(mask)
            tally.add({reason: len(rows)}, {reason: (key(int(row)) for row in rows)})
        return wanted
