"""Bytes from strangers to an upright RGB picture, with bounds on what that may cost."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from fewstep.data.sources.base import DroppedError, Reason
from fewstep.data.sources.picture_headers import is_overgrown

MAX_PIXELS = 64_000_000
"""Pictures with more pixels than this are not decoded, unless the caller sets another limit."""
MAX_BYTES = 64 << 20
"""Nor are files longer than this."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
OTHER_SUFFIXES = (".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jxl", ".tif", ".tiff")
"""Pictures that are counted and not read."""
_READERS: tuple[tuple[bytes, type[JpegImageFile] | type[PngImageFile] | type[WebPImageFile]], ...] = (
    (b"\xff\xd8\xff", JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"RIFF", WebPImageFile),
)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")  # of damaged EXIF, no matter


@dataclass(frozen=True, kw_only=True)
class PictureLimits:
    """What one picture may cost; what is above is dropped as too large."""

    max_bytes: int = MAX_BYTES
    """Of the file."""
    max_pixels: int = MAX_PIXELS
    side: int = 0
    """The length in pixels to which the shorter side will be brought, 0 where that is open: a very narrow
    picture would grow past any bound."""

    def allows(self, width: int, height: int) -> bool:
        short, long = sorted((width, height))
        grown = long * self.side**2 // max(1, short)
        return short * long <= self.max_pixels and grown <= max(MAX_PIXELS, self.side**2)


def decode(content: bytes, limits: PictureLimits = PictureLimits()) -> Image.Image:
    """The picture, or its first frame, upright and in RGB. Colour profiles are not applied.

    The first bytes, and no name, say which of the decoders of JPEG, PNG and WebP is asked, and the size in the
    header is compared with the limits before any pixel is decoded. Raises DroppedError, which has no key yet.
    """
    if len(content) > limits.max_bytes or is_overgrown(content):
        raise DroppedError(Reason.TOO_LARGE)
    reader = next((reader for mark, reader in _READERS if content.startswith(mark)), None)
    if reader is None:
        raise DroppedError(Reason.BROKEN)
    try:
        # Not through Image.open: Pillow's own limit there warns, which cannot be silenced in one thread alone.
        with reader(io.BytesIO(content)) as image:
            if not limits.allows(*image.size):
                raise DroppedError(Reason.TOO_LARGE)
            image.load()
            return _to_rgb(_upright(image))
    except (DroppedError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise DroppedError(Reason.TOO_LARGE) from error
    except Exception as error:  # damaged data makes Pillow's decoders raise nearly anything
        raise DroppedError(Reason.BROKEN) from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # the pixels are whole: EXIF that cannot be read does not cost the picture
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit grey, which Pillow's own conversion would clip at 255 instead of scaling it.
        levels = np.asarray(image)
        grey = (levels / np.float32(257)).round().clip(0, 255).astype(np.uint8)
        grey[levels == image.info.get("transparency", -1)] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def fit_cover(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The middle of a picture, just large enough for a height and width; of a square what `fit_square` gives."""
    height, width = size
    grown = max(height / image.height, width / image.width)
    whole = max(width, round(image.width * grown)), max(height, round(image.height * grown))
    left, top = (whole[0] - width) // 2, (whole[1] - height) // 2
    resized = image.resize(whole, Image.Resampling.BICUBIC, reducing_gap=None)
    return resized.crop((left, top, left + width, top + height))


def fit_square(image: Image.Image, resolution: int, corner: tuple[int, int] | None = None) -> Image.Image:
    """A square after the shorter side was brought to `resolution` by Pillow's antialiased bicubic filter: that with its
    left and upper edge at `corner`, else the middle one."""
    short = min(image.size)
    width, height = (round(side * resolution / short) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=None)
    left, top = corner or ((width - resolution) // 2, (height - resolution) // 2)
    return resized.crop((left, top, left + resolution, top + resolution))
