"""The first pictures of the gallery as a source."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep import assets
from fewstep.data.kind import SourceRequest
from fewstep.data.sources.base import Example, SourceReport
from fewstep.data.sources.filters import Filters
from fewstep.data.worlds.gallery import Gallery
from fewstep.data.worlds.gallery_art import Hand
from fewstep.data.worlds.gallery_drawing import SIDE
from fewstep.errors import UserError

_HANDS: dict[str, Hand] = {assets.GALLERY: "noto", assets.GALLERY_TWEMOJI: "twemoji"}


@dataclass(frozen=True)
class GalleryExamples:
    """The first `count` pictures of a gallery."""

    gallery: Gallery
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
        return f"gallery picture {index}"

    def shard_name(self, shard: int) -> str:
        return str(shard)  # part of what identifies the pictures of a run

    def caption(self, index: int) -> str:
        return self.gallery.prompt(index)[0]

    def read(self, index: int) -> Example:
        if not 0 <= index < self.count:
            raise IndexError(index)
        picture = self.gallery[index]
        return Example(picture.image, picture.caption)


def open_gallery_pictures(request: SourceRequest) -> GalleryExamples:
    """Opens them in the hand asked for. Raises UserError for filters, caption fields or another resolution."""
    if request.selection.filters != Filters() or request.selection.captions:
        raise UserError("the gallery has no metadata to filter by; give your own pictures with --data")
    if request.resolution != SIDE:
        raise UserError(
            f"the gallery's pictures are {SIDE} pixels wide and resolution is {request.resolution}; give your own "
            "pictures with --data"
        )
    return GalleryExamples(Gallery(seed=request.seed, hand=_HANDS[request.data]), request.count)
