"""What a kind of source says of itself, and what is asked of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from fewstep.data.sources.base import Source
from fewstep.data.sources.selection import Selection


@dataclass(frozen=True, kw_only=True)
class SourceRequest:
    """What a command asks of its pictures."""

    data: str
    """As `--data` has it."""
    resolution: int
    """Side in pixels to which pictures will be brought."""
    seed: int = 0
    """Seeds what is drawn on the fly."""
    count: int = 8192
    """How many pictures are drawn, of a world that has no end."""
    selection: Selection = field(default_factory=Selection)
    """Which pictures are used, by size and metadata."""
    cache_bytes: int = 100 * 2**30
    """Room on this machine's disk for what lies elsewhere."""


@dataclass(frozen=True)
class SourceKind:
    """One kind of source."""

    recognises: Callable[[str], bool]
    """Whether `--data` names one of this kind; must not open it."""
    open: Callable[[SourceRequest], Source]
    """Opens it, and prints what was used and dropped where that can surprise. Raises UserError."""
