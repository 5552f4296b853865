"""Decodes untrusted bytes to an upright RGB picture, with bounds on time and memory."""

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

MAX_PIXELS = 64_000_000
"""Most pixels of a picture, unless the caller sets another limit."""
MAX_BYTES = 64 << 20
"""Most bytes of a file, unless the caller sets another limit."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
OTHER_SUFFIXES = (".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jxl", ".tif", ".tiff")
"""Suffixes of pictures that are counted but not read."""
Reader = type[JpegImageFile] | type[PngImageFile] | type[WebPImageFile]
_READERS: tuple[tuple[bytes, Reader], ...] = (
    (b"\xff\xd8\xff", JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"RIFF", WebPImageFile),
)
_MAX_PARTS = 1 << 16
_MAX_JPEG_HEADER = 16 << 20
_START_OF_SCAN = 0xDA
_MAX_SCANS = 500
_WITHOUT_LENGTH = frozenset((0x00, 0x01, 0xD8, 0xFF, *range(0xD0, 0xD8)))
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")  # about damaged EXIF


@dataclass(frozen=True, kw_only=True)
class PictureLimits:
    """Limits on one picture; anything above them is dropped as too large."""

    max_bytes: int = MAX_BYTES
    """Most bytes of the file."""
    max_pixels: int = MAX_PIXELS
    side: int = 0
    """Length in pixels to which the shorter side will be resized, 0 if unknown: a very narrow picture would grow
    past any bound."""

    def allows(self, width: int, height: int) -> bool:
        short, long = sorted((width, height))
        grown = long * self.side**2 // max(1, short)
        return short * long <= self.max_pixels and grown <= max(MAX_PIXELS, self.side**2)


def decode(
    content: bytes, limits: PictureLimits = PictureLimits(), *, transparency: bool = False
) -> Image.Image:  # fmt: skip
    """Decodes a JPEG, PNG or WebP, or its first frame, to an upright RGB picture. Colour profiles are not applied.

    With `transparency`, a picture that has any is RGBA; else it is laid on white.

    The first bytes choose the decoder, and the size in the header is checked before any pixel is decoded. Raises
    DroppedError without a key.
    """
    if len(content) > limits.max_bytes or _is_overgrown(content):
        raise DroppedError(Reason.TOO_LARGE)
    reader = find_reader(content)
    try:
        # Not through Image.open: Pillow's own limit there warns, which cannot be silenced in one thread alone.
        with reader(io.BytesIO(content)) as image:
            if not limits.allows(*image.size):
                raise DroppedError(Reason.TOO_LARGE)
            image.load()
            upright = _upright(image)
            return upright.convert("RGBA") if transparency and upright.has_transparency_data else _to_rgb(upright)
    except (DroppedError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise DroppedError(Reason.TOO_LARGE) from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
        raise DroppedError(Reason.BROKEN) from error


def find_reader(content: bytes) -> Reader:
    """Returns Pillow's decoder for what begins with these bytes. Raises DroppedError where it is no picture."""
    reader = next((reader for mark, reader in _READERS if content.startswith(mark)), None)
    if reader is None:
        raise DroppedError(Reason.BROKEN)
    return reader


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # the pixels may be whole even where the EXIF cannot be read
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
    """Resizes a picture until it just covers a height and width, and crops the middle."""
    height, width = size
    grown = max(height / image.height, width / image.width)
    whole = max(width, round(image.width * grown)), max(height, round(image.height * grown))
    left, top = (whole[0] - width) // 2, (whole[1] - height) // 2
    resized = image.resize(whole, Image.Resampling.BICUBIC, reducing_gap=None)
    return resized.crop((left, top, left + width, top + height))


def fit_square(image: Image.Image, resolution: int, corner: tuple[int, int] | None = None) -> Image.Image:
    """Resizes the shorter side to `resolution` by Pillow's antialiased bicubic filter, and crops a square.

    `corner` is the square's left and top; without it the middle is cropped.
    """
    short = min(image.size)
    width, height = (round(side * resolution / short) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=None)
    left, top = corner or ((width - resolution) // 2, (height - resolution) // 2)
    return resized.crop((left, top, left + resolution, top + resolution))


def _is_overgrown(content: bytes) -> bool:
    """Tells whether a JPEG has over 16 MiB of header or 500 scans, or a JPEG or PNG over 65,536 parts."""
    if content.startswith(b"\xff\xd8"):
        return content.count(b"\xff\xda") > _MAX_SCANS or _has_overgrown_jpeg_header(content)
    return content.startswith(b"\x89PNG") and _has_too_many_chunks(content)


def _has_overgrown_jpeg_header(content: bytes) -> bool:
    place, parts = 2, 0
    while (place := content.find(b"\xff", place)) >= 0 and place + 4 <= len(content):
        parts += 1
        marker = content[place + 1]
        if parts > _MAX_PARTS or place > _MAX_JPEG_HEADER:
            return True
        if marker == _START_OF_SCAN:
            return False
        place += 1 if marker in _WITHOUT_LENGTH else 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return False


def _has_too_many_chunks(content: bytes) -> bool:
    place, parts = 8, 0
    while place < len(content):
        parts += 1
        if parts > _MAX_PARTS:
            return True
        place += 12 + int.from_bytes(content[place : place + 4], "big")
    return False
