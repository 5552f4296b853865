"""A line of the table: a cell painted on a bench, and every metric of its pictures."""

from __future__ import annotations

from pathlib import Path

from fewstep.evaluate.bench import Bench
from fewstep.evaluate.cell import Cell, Painter, Row
from fewstep.evaluate.metrics import OBSERVERS, conclude
from fewstep.evaluate.painting import Kept, paint


def score(
    bench: Bench, cell: Cell, painter: Painter, name: str, batch_size: int = 64, folder: Path | None = None
) -> tuple[Row, Kept]:
    """The row, and what it was made of; painted parts are kept under `folder`, in one named after the cell."""
    kept = paint(bench, painter, OBSERVERS, batch_size, None if folder is None else folder / cell.slug)
    columns = {key: value if value is None else round(value, 6) for key, value in conclude(kept, bench).items()}
    return {"model": name, **cell.head(), "seconds_per_image": round(kept.seconds_per_image, 5), **columns}, kept
