"""Every sampler at its best: guidance and spacing are chosen by pictures of prompts that are not scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from fewstep.diffusion.schedule import Spacing
from fewstep.evaluate.cell import Cell, Row
from fewstep.evaluate.metrics import list_columns


def find_best_cell(
    start: Cell,
    guidance_scales: Sequence[float],
    spacings: Sequence[Spacing],
    score: Callable[[Cell], Row],
    announce: Callable[[Sequence[Cell]], None] = lambda _: None,
) -> tuple[Cell, list[Row]]:
    """Finds the best guidance at the first spacing, then the best spacing at that guidance; returns scored rows too.

    Guidance is tried in the order given, for as long as more of it is better: it helps up to a point and harms beyond.
    A choice of one is not scored. The first of equals wins. `announce` is told cells that will be scored, before.
    """
    rows: dict[Cell, Row] = {}

    def best(cells: list[Cell], *, while_better: bool) -> Cell:
        if len(cells) == 1:
            return cells[0]
        announce([cell for cell in (cells[:2] if while_better else cells) if cell not in rows])
        found = cells[0]
        for cell in cells:
            if cell not in rows:
                rows[cell] = score(cell)
            if rate(rows[cell]) > rate(rows[found]):
                found = cell
            elif while_better and cell is not found:
                break
        return found

    cell = best([replace(start, guidance_scale=scale) for scale in guidance_scales], while_better=True)
    if start.spacing != "lcm":
        cell = best([replace(cell, spacing=spacing) for spacing in spacings], while_better=False)
    return cell, list(rows.values())


def rate(row: Row) -> tuple[float, ...]:
    """Rates a row by the columns that choose, an earlier one before a later one; the greater the better."""
    values = [(column, row.get(column.name) or 0.0) for column in list_columns() if column.chooses]
    return tuple(-value if column.better == "less" else value for column, value in values)
