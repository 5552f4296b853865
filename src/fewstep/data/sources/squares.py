"""Presents the pictures of a source as squares of one size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fewstep.data.sources.base import DroppedError, Example, Source, SourceReport, escape_line
from fewstep.data.sources.fitting import fit_square
from fewstep.errors import UserError


@dataclass(frozen=True)
class SquarePictures:
    """Decodes each picture on access, resizes its shorter side to `resolution` and crops the middle.

    Raises UserError for a picture that cannot be read; callers that can skip pictures use the source itself.
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
        with _dropped_as_user_error():
            example = self.source.read(index)
        return Example(fit_square(example.image, self.resolution), example.caption)

    def caption(self, index: int) -> str:
        with _dropped_as_user_error():
            return self.source.caption(index)


@contextmanager
def _dropped_as_user_error() -> Iterator[None]:
    try:
        yield
    except DroppedError as dropped:
        raise UserError(
            f"picture {escape_line(dropped.key)}, which was counted as usable, cannot be read ({dropped.reason}); "
            "fix it, or start again without it"
        ) from dropped
