"""The first pictures of the gallery as a source."""

from __future__ import annotations

from fewstep import assets
from fewstep.data.kind import SourceRequest
from fewstep.data.worlds.examples import WorldExamples, check_request
from fewstep.data.worlds.gallery import Gallery
from fewstep.data.worlds.gallery_art import Hand
from fewstep.data.worlds.gallery_drawing import SIDE

HANDS: dict[str, Hand] = {assets.GALLERY: "noto", assets.GALLERY_TWEMOJI: "twemoji"}


class GalleryExamples(WorldExamples):
    """Pictures of the gallery."""

    noun = "gallery picture"


def open_gallery_pictures(request: SourceRequest) -> GalleryExamples:
    """Opens them in the hand asked for. Raises UserError for filters, caption fields or another resolution."""
    check_request(request, "pictures of the gallery", SIDE)
    return GalleryExamples(Gallery(seed=request.seed, hand=HANDS[request.data]), request.count)
