"""How long an evaluation will take, told from its first pictures."""

from __future__ import annotations

from collections.abc import Sequence

from fewstep.evaluate.cell import Cell

_LOOKING = 2
"""Counts what it takes to decode a picture and to look at it, in calls of the network; of the bundled world's size."""


def count_calls(cell: Cell) -> int:
    """Counts what one picture takes, in calls of the network."""
    return cell.network_evaluations + _LOOKING


def count_work(cells: Sequence[Cell], scored: int, tuned: Sequence[int]) -> int:
    """Counts the calls that all cells take at most: each is painted in `scored` parts, after as many for tuning as
    `tuned` says of it."""
    return sum(count_calls(cell) * (scored + tuning) for cell, tuning in zip(cells, tuned, strict=True))


def say_time(seconds: float) -> str:
    """Says a span of time as a person would."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
