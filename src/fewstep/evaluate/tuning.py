"""Every sampler at its best: guidance and spacing are chosen by pictures of prompts that are not scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from fewstep.diffusion.sampling import Spacing
from fewstep.evaluate.cell import Cell, Row


def best_cell(
    start: Cell, guidance_scales: Sequence[float], spacings: Sequence[Spacing], score: Callable[[Cell], Row]
) -> tuple[Cell, list[Row]]:
    """The best guidance at the first spacing, then the best spacing at that guidance; and all rows that were scored.

    A choice of one is not scored. The first of equals wins.
    """
    tried: list[Row] = []

    def best(cells: list[Cell]) -> Cell:
        if len(cells) == 1:
            return cells[0]
        rows = [score(cell) for cell in cells]
        tried.extend(row for row in rows if row not in tried)
        return cells[max(range(len(cells)), key=lambda i: merit(rows[i]))]

    cell = best([replace(start, guidance_scale=scale) for scale in guidance_scales])
    if start.spacing != "lcm":
        cell = best([replace(cell, spacing=spacing) for spacing in spacings])
    return cell, tried


def merit(row: Row) -> tuple[float, float]:
    """The more the better: prompt accuracy where there is one; then nearness to the real pictures."""
    return row.get("prompt_accuracy") or 0.0, -row["kd"]
