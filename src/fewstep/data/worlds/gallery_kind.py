"""The gallery as a source of pictures: `--data gallery`, or `gallery-twemoji` for the same in another artist's hand."""

from __future__ import annotations

from fewstep import assets
from fewstep.data.kind import SourceKind, SourceRequest
from fewstep.data.sources.base import Source


def open_gallery(request: SourceRequest) -> Source:
    """Opens the first pictures of the gallery in a hand; its artwork is read only then."""
    from fewstep.data.worlds.gallery_source import open_gallery_pictures

    return open_gallery_pictures(request)


KIND = SourceKind(recognises=(assets.GALLERY, assets.GALLERY_TWEMOJI).__contains__, open=open_gallery)
