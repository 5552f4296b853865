"""What is known of a column of an evaluation's table, apart from its values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Column:
    """Says how a column is headed, explained and drawn; it stands beside the code that makes the values."""

    name: str
    """Is its key in results.json. The ends of an interval are kept beside it as `name_low` and `name_high`, a standard
    error as `name_error`."""
    meaning: str = ""
    """Explains it below the table, on the report's page and on a terminal; some need no explanation."""
    heading: str = ""
    """Heads it on a terminal, where there is little room; by default the name."""
    on_terminal: bool = True
    """Whether the terminal's table has it."""
    better: Literal["more", "less"] | None = None
    """Which values are better, if any are."""
    curve_label: str = ""
    """Labels the axis of its curves, which are drawn only where this is given."""
    log_scale: bool = False
    """Tells whether its curves are drawn over a logarithmic axis."""
    chooses: bool = False
    """Tells whether guidance and spacing are chosen by it; later columns that choose too decide where it is equal."""
    biased_below: int = 0
    """Says below how many pictures its values lean upwards, which the report tells."""
    plural: str = ""
    """Says what its values are called in that sentence."""

    def __post_init__(self) -> None:
        if (self.chooses and not self.better) or (self.biased_below and not self.plural):
            raise ValueError(f"{self.name}: `chooses` needs `better`, and `biased_below` needs `plural`")

    @property
    def label(self) -> str:
        """Returns the name as people read it."""
        return self.name.replace("_", " ")

    @property
    def is_headline(self) -> bool:
        """Tells whether a terminal reads it while an evaluation goes on: it has curves, and values that are better."""
        return bool(self.curve_label and self.better)


def order_by_direction(columns: Iterable[Column]) -> list[Column]:
    """Puts columns that should rise first, then those that should fall, then the rest; else the order stays."""
    return sorted(columns, key=lambda column: ("more", "less", None).index(column.better))
