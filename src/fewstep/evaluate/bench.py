"""What all rows of a table share, and what a metric consists of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from fewstep.evaluate.columns import Column
from fewstep.evaluate.roster import Roster
from fewstep.evaluate.style import StyleProbe
from fewstep.evaluate.worlds import WorldReader
from fewstep.models.extractors import Extractor


@dataclass(frozen=True)
class Bench:
    """Holds the prompts, references and judges that every row is scored with."""

    roster: Roster
    extractor: Extractor
    """Its features are what distances and diversity compare."""
    reference: Tensor
    """Features `[m, d]` of real pictures."""
    reader: WorldReader | None = None
    """Reads the scenes of a bundled world; None for pictures that it was not trained on."""
    style: StyleProbe | None = None
    """Tells the look of the data from another; None where there is no other."""
    clip: Extractor | None = None
    """Scores how well pictures and prompts go together."""
    real: Mapping[str, float] = field(default_factory=dict)
    """Columns of as many real pictures of the repeated prompts as are painted, read by the same reader."""
    teacher_latents: Tensor | None = None
    """z_0 `[n, c, h, w]` of the teacher's own pictures from the same noise, once they are painted."""


@dataclass(frozen=True)
class PaintedBatch:
    """Holds some of a cell's pictures, as they were painted together."""

    pictures: Tensor
    """Are uint8 `[b, h, w, 3]`."""
    latents: Tensor
    """z_0 `[b, c, h, w]` that they were decoded from."""
    rows: list[int]
    """Are their places in the roster."""
    bench: Bench


Observer = Callable[[PaintedBatch], Tensor | None]
"""Returns what is kept of pictures: `[b, …]`, each row a function of its picture alone; None where the bench has no use
for it."""


def keep_latents(batch: PaintedBatch) -> Tensor:
    """Returns z_0 `[b, c, h, w]`, which are kept of every picture anyway."""
    return batch.latents


@dataclass(frozen=True)
class Metric:
    """Makes some columns of the table."""

    observe: Observer
    """Returns what the metric needs to know of each picture; metrics may share it. It is kept under the function's
    file and name, and made anew where the file has changed."""
    compute: Callable[[Tensor, Bench], Mapping[str, float | None]]
    """Computes the columns' values, and the ends of their intervals, from what was kept of every picture in the
    roster's order; leaves out those that the bench has no use for."""
    columns: tuple[Column, ...]
