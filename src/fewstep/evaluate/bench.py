"""What all rows of a table share, and what a metric is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from fewstep.evaluate.reader import Reader
from fewstep.evaluate.roster import Roster
from fewstep.evaluate.style import StyleProbe
from fewstep.models.extractors import Extractor


@dataclass(frozen=True)
class Bench:
    """The same pictures, references and judges for every row."""

    roster: Roster
    extractor: Extractor
    """Its features are what distances and diversity compare."""
    reference: Tensor
    """Features `[m, d]` of real pictures."""
    reader: Reader | None = None
    """Reads scenes; None for pictures that it was not trained on."""
    style: StyleProbe | None = None
    """Tells the look of the data from another; None where there is no other."""
    clip: Extractor | None = None
    """Scores how well pictures and prompts go together."""
    teacher_latents: Tensor | None = None
    """z_0 `[n, c, h, w]` of the teacher's own pictures from the same noise, once they are painted."""


@dataclass(frozen=True)
class Seen:
    """Some of a cell's pictures."""

    pictures: Tensor
    """uint8 `[b, h, w, 3]`."""
    latents: Tensor
    """z_0 `[b, c, h, w]` that they were decoded from."""
    rows: list[int]
    """Where they stand in the roster."""
    bench: Bench


Observer = Callable[[Seen], Tensor | None]
"""What is kept of pictures: `[b, …]`, each row a function of its picture alone; None where the bench has no use for
it."""


def latents(seen: Seen) -> Tensor:
    """z_0; kept of every picture anyway."""
    return seen.latents


@dataclass(frozen=True)
class Metric:
    """Some columns of the table."""

    observe: Observer
    """What it needs to know of each picture; metrics may share it. Kept under its file and name, and
    made anew where its file has changed."""
    conclude: Callable[[Tensor, Bench], Mapping[str, float | None]]
    """The columns, from what was kept of every picture in the roster's order."""
