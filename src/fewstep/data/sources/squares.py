"""The pictures of a source as squares of one size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fewstep.data.sources.base import DroppedError, Example, Source, SourceReport, escape_line
from fewstep.data.sources.decoding import fit_square
from fewstep.errors import UserError


@dataclass(frozen=True)
class SquarePictures:
    """Each picture decoded when it is asked for, its shorter side brought to `resolution`, its middle cut out.

    Pillow's bicubic filter averages over the source pixels when it reduces, so nothing aliases. A picture that
    cannot be read ends in a UserError: who can do without it reads from the source itself.
    """

    source: Source
    resolution: int

    def __post_init__(self) -> None:
        if self.resolution < 1:
            raise UserError(f"resolution is {self.resolution}; it must be at least 1")

    @property
    def report(self) -> SourceReport:
        return self.source.report

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        index = range(len(self))[index]
        with _told():
            example = self.source.read(index)
        return Example(fit_square(example.image, self.resolution), example.caption)

    def caption(self, index: int) -> str:
        with _told():
            return self.source.caption(index)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except DroppedError as dropped:
        raise UserError(
            f"picture {escape_line(dropped.key)}, which was counted as usable, cannot be read ({dropped.reason}); "
            "mend it, or start again without it"
        ) from dropped
