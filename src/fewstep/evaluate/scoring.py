"""A line of the table: a cell painted on a bench, and every metric of its pictures."""

from __future__ import annotations

from pathlib import Path

from fewstep.evaluate.bench import Bench
from fewstep.evaluate.cell import COLUMNS, Cell, Painter, Row
from fewstep.evaluate.columns import Column
from fewstep.evaluate.metrics import compute_columns, list_columns, list_observers
from fewstep.evaluate.painting import PaintedCell, paint

MODEL = Column("model")
SECONDS = Column(
    "seconds_per_image",
    "To sample and decode one, here and then: compare within one report, and on a quiet machine.",
    on_terminal=False,
)


def index_columns() -> dict[str, Column]:
    """Returns every column that a row may have, by name and in the table's order."""
    return {column.name: column for column in (MODEL, *COLUMNS, SECONDS, *list_columns())}


def score(
    bench: Bench, cell: Cell, painter: Painter, name: str, batch_size: int = 64, folder: Path | None = None
) -> tuple[Row, PaintedCell]:
    """Returns the row, and what it was made of; keeps painted parts under `folder`, in one named after the cell."""
    kept = paint(bench, painter, list_observers(), batch_size, None if folder is None else folder / cell.slug)
    computed = compute_columns(kept, bench)
    rounded = {key: value if value is None else round(value, 6) for key, value in computed.items()}
    return {MODEL.name: name, **cell.head(), SECONDS.name: round(kept.seconds_per_image, 5), **rounded}, kept
