"""The interface of a kind of source: how it recognises `--data`, and what it is asked to open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from fewstep.data.sources.base import Source
from fewstep.data.sources.selection import Selection


@dataclass(frozen=True, kw_only=True)
class SourceRequest:
    """The pictures that a command wants, and how it wants them."""

    data: str
    """Is the value of `--data`."""
    resolution: int
    """Side in pixels to which pictures will be resized."""
    seed: int = 0
    """Seed of pictures that are drawn on the fly."""
    count: int = 8192
    """Number of pictures to draw, where a source has no end of its own."""
    selection: Selection = field(default_factory=Selection)
    """Which pictures are used, by size and metadata, and which fields hold captions."""
    cache_bytes: int = 100 * 2**30
    """Bounds the disk space for copies of remote files, in bytes."""


@dataclass(frozen=True)
class SourceKind:
    """A kind of source; its file ends with one, named `KIND`."""

    recognises: Callable[[str], bool]
    """Tells from the value of `--data` alone, without opening anything, whether it names a source of this kind."""
    open: Callable[[SourceRequest], Source]
    """Opens the source, and prints what was dropped if anything can be. Raises UserError where nothing can be used."""
    check: Callable[[str], None] = lambda _: None
    """Raises UserError at once where the value of `--data` names nothing that is there."""
