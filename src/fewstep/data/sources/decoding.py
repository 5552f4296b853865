"""Decodes untrusted bytes to an upright RGB picture, with bounds on time and memory."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable

import numpy as np
from PIL import ExifTags, Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from fewstep.data.sources.base import DroppedError
from fewstep.data.sources.filters import Reason
from fewstep.data.sources.fitting import PictureLimits

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
OTHER_SUFFIXES = (".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jxl", ".tif", ".tiff")
"""Suffixes of pictures that are counted but not read."""
ENOUGH = 2.9
"""A JPEG is reduced as it is decoded while its shorter side stays this many times what it will be resized to. The
result is then within 0.6 of 255 levels of that of the whole picture on average, and within 3 in 99 of 100 values."""
_USUAL = PictureLimits()
PillowReader = type[JpegImageFile] | type[PngImageFile] | type[WebPImageFile]
_READERS: tuple[tuple[bytes, PillowReader], ...] = (
    (b"\xff\xd8\xff", JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"RIFF", WebPImageFile),
)
_MAX_PARTS = 1 << 16
_LYING = (5, 6, 7, 8)
"""Values of EXIF's orientation in which width and height change places."""
_MAX_JPEG_HEADER = 16 << 20
_START_OF_SCAN = 0xDA
_MAX_SCANS = 500
_WITHOUT_LENGTH = frozenset((0x00, 0x01, 0xD8, 0xFF, *range(0xD0, 0xD8)))
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")  # about damaged EXIF


class _WatchedFile(io.BytesIO):
    """A file whose reading calls `check`, and which keeps what that raised: Pillow is read piece by piece."""

    def __init__(self, content: bytes, check: Callable[[], None] | None) -> None:
        super().__init__(content)
        self._check, self.raised = check, None

    raised: Exception | None

    def read(self, size: int | None = -1) -> bytes:
        if self._check is not None:
            try:
                self._check()
            except Exception as error:
                self.raised = error
                raise
        return super().read(size)


def decode(
    content: bytes, limits: PictureLimits = _USUAL, *, transparency: bool = False,
    check: Callable[[], None] | None = None,
) -> Image.Image:  # fmt: skip
    """Decodes a picture as `decode_to_fit` does, but always whole."""
    return decode_to_fit(content, limits, whole=True, transparency=transparency, check=check)[0]


def read_size(content: bytes, limits: PictureLimits = _USUAL) -> tuple[int, int]:
    """Returns width and height as the header says. Raises DroppedError for what `decode` would not decode."""
    if len(content) > limits.max_bytes or _is_overgrown(content):
        raise DroppedError(Reason.TOO_LARGE)
    reader = find_reader(content)
    try:
        with reader(io.BytesIO(content)) as image:
            size: tuple[int, int] = image.size
    except Image.DecompressionBombError as error:
        raise DroppedError(Reason.TOO_LARGE) from error
    except Exception as error:
        raise DroppedError(Reason.BROKEN) from error
    if not limits.allows(*size):
        raise DroppedError(Reason.TOO_LARGE)
    return size


def find_upright_size(image: Image.Image) -> tuple[int, int]:
    """Returns width and height that a picture will have once it is decoded, by what has been read of its header."""
    with contextlib.suppress(Exception):  # as when it is decoded
        # Not the method of a PNG, which decodes it to find an entry behind the pixels.
        if Image.Image.getexif(image).get(ExifTags.Base.Orientation) in _LYING:
            return image.height, image.width
    return image.width, image.height


def read_upright_size(content: bytes) -> tuple[int, int]:
    """Returns the same of the beginning of a file. Raises DroppedError where it says no size."""
    reader = find_reader(content)
    try:
        with reader(io.BytesIO(content)) as image:
            return find_upright_size(image)
    except Exception as error:  # as in decode
        raise DroppedError(Reason.BROKEN) from error


def decode_to_fit(
    content: bytes, limits: PictureLimits = _USUAL, *, whole: bool = False, transparency: bool = False,
    check: Callable[[], None] | None = None,
) -> tuple[Image.Image, int]:  # fmt: skip
    """Decodes a JPEG, PNG or WebP, or its first frame, to an upright RGB picture. Colour profiles are not applied.

    With `transparency`, a picture that has any is RGBA; else it is laid on white.

    The first bytes choose the decoder, and the size in the header is checked before any pixel is decoded. Large JPEGs
    are decoded at 1/2, 1/4 or 1/8 of their sides, the number returned; `ENOUGH` says which. `check` is called again and
    again, and what it raises ends the decoding. Raises DroppedError without a key.
    """
    if len(content) > limits.max_bytes or _is_overgrown(content):
        raise DroppedError(Reason.TOO_LARGE)
    reader, file = find_reader(content), _WatchedFile(content, check)
    try:
        # Not through Image.open: Pillow's own limit there warns, which cannot be silenced in one thread alone.
        with reader(file) as image:
            if not limits.allows(*image.size):
                raise DroppedError(Reason.TOO_LARGE)
            reduced = 1 if whole or reader is not JpegImageFile else _find_reduction(image.size, limits.side)
            if reduced > 1:
                image.draft(None, (image.width // reduced, image.height // reduced))
            image.load()
            upright = _upright(image)
            kept = transparency and upright.has_transparency_data
            return upright.convert("RGBA") if kept else _to_rgb(upright), reduced
    except (DroppedError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise DroppedError(Reason.TOO_LARGE) from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
        if file.raised is not None:
            try:
                raise file.raised from None
            finally:
                file.raised = None  # else the two would keep each other, and the pixels
        raise DroppedError(Reason.BROKEN) from error


def _find_reduction(size: tuple[int, int], side: int) -> int:
    """Returns the most by which a JPEG may be reduced as it is decoded, of scales that divide both sides."""
    fit = (n for n in (8, 4, 2) if side and not any(length % n for length in size) and min(size) >= ENOUGH * n * side)
    return next(fit, 1)


def find_reader(content: bytes) -> PillowReader:
    """Returns Pillow's decoder for what begins with these bytes. Raises DroppedError where it is no picture."""
    reader = next((reader for mark, reader in _READERS if content.startswith(mark)), None)
    if reader is None:
        raise DroppedError(Reason.BROKEN)
    return reader


def _upright(image: Image.Image) -> Image.Image:
    with contextlib.suppress(Exception):  # the pixels may be whole even where the EXIF cannot be read
        ImageOps.exif_transpose(image, in_place=True)  # a copy would double the memory
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit grey, which Pillow's own conversion would clip at 255 instead of scaling it.
        levels = np.asarray(image)
        scaled = levels / np.float32(257)
        grey = scaled.round(out=scaled).clip(0, 255, out=scaled).astype(np.uint8)
        del scaled
        grey[levels == image.info.get("transparency", -1)] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


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
