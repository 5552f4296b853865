"""The first pictures of a bundled world as a source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from fewstep.data.kind import SourceRequest
from fewstep.data.sources.base import Example, SourceReport
from fewstep.data.sources.filters import Filters
from fewstep.errors import UserError


class DrawnWorld(Protocol):
    """Draws a captioned picture for every index."""

    def prompt(self, index: int, /) -> tuple[str, Any]:
        """Returns the caption of a picture, and what it states."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """Draws a picture, which has `image` and `caption`."""
        ...


@dataclass(frozen=True)
class WorldExamples:
    """The first `count` pictures of a world as a source."""

    noun: ClassVar[str]
    """Is what a key calls a picture."""
    world: DrawnWorld
    count: int

    @property
    def report(self) -> SourceReport:
        return SourceReport(found=self.count, used=self.count, dropped={}, names={})

    @property
    def shard_sizes(self) -> tuple[int]:
        return (self.count,)

    def __len__(self) -> int:
        return self.count

    def key(self, index: int) -> str:
        return f"{self.noun} {index}"

    def shard_name(self, shard: int) -> str:
        return str(shard)  # part of what identifies the pictures of a run

    def caption(self, index: int) -> str:
        return self.world.prompt(index)[0]

    def read(self, index: int) -> Example:
        if not 0 <= index < self.count:
            raise IndexError(index)
        picture = self.world[index]
        return Example(picture.image, picture.caption)


def check_request(request: SourceRequest, what: str, side: int) -> None:
    """Raises UserError for filters, caption fields or another resolution, which a world does not have."""
    if request.selection.filters != Filters() or request.selection.captions:
        raise UserError(f"{what} have no metadata to filter by; give your own pictures with --data")
    if request.resolution != side:
        raise UserError(
            f"{what} are {side} pixels wide and resolution is {request.resolution}; give your own pictures with --data"
        )
