"""Pictures that clients send and are sent: decoded within bounds, fitted to a size, encoded with their settings."""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from fewstep.data.infotext import build_png_info
from fewstep.data.pictures import FORMATS
from fewstep.data.sources.base import DroppedError
from fewstep.data.sources.decoding import decode, read_size
from fewstep.data.sources.fitting import PictureLimits, fit_cover
from fewstep.serve.errors import RefusedError
from fewstep.serve.reading import ReadingTask
from fewstep.serve.settings import ServerSettings

Format = Literal["png", "jpeg", "webp"]
Box = tuple[int, int, int, int]
"""Has left, top, right and bottom in pixels."""
QUALITY = 95
"""Is the quality of JPEG and WebP, where a client names none."""
_MOST_ASPECT = 32
"""Largest ratio of the sides of a picture that a client sends."""
_DECODING, _DECODED = 12, 4
"""Bytes that a pixel takes beside its picture while it is decoded, at most, and those of the picture."""


@dataclass(frozen=True)
class SentPicture:
    """A picture that a client sent, not decoded yet."""

    content: bytes
    param: str
    settings: ServerSettings
    size: tuple[int, int]
    """Width and height as its header says, within bounds."""

    @property
    def pixels(self) -> int:
        return self.size[0] * self.size[1]

    def decode(self, reader: ReadingTask, *, transparency: bool = False) -> Image.Image:
        """Decodes it to RGB or, with `transparency`, to RGBA where any of it is transparent. Raises RefusedError."""
        try:
            return decode(self.content, _limit(self.settings), transparency=transparency, check=reader.check)
        except DroppedError as error:
            raise _refuse_picture(self.param, self.settings, error) from error


@contextlib.contextmanager
def open_pictures(
    settings: ServerSettings, reader: ReadingTask, **given: bytes | str | None
) -> Iterator[list[SentPicture]]:  # fmt: skip
    """Yields the pictures that are there, given by their fields' names; holds memory to decode one after the other.

    They come as bytes or in base64 (a data: URL too). Raises RefusedError.
    """
    pictures = [_open(content, name, settings) for name, content in given.items() if content is not None]
    pixels = [picture.pixels for picture in pictures]
    needed = _DECODING * max(pixels) + _DECODED * sum(pixels) + sum(len(picture.content) for picture in pictures)
    with reader.budget.reserve(needed, reader.check):
        yield pictures


def _open(content: bytes | str, param: str, settings: ServerSettings) -> SentPicture:
    if isinstance(content, str):
        if content.startswith(("http://", "https://")):
            raise RefusedError(f"{param} is a link, and no link is followed; send the picture in base64", param=param)
        try:
            content = base64.b64decode(content.rpartition(",")[2], validate=True)
        except (binascii.Error, ValueError) as error:
            raise RefusedError(f"{param} is not base64; send a PNG, JPEG or WebP picture so", param=param) from error
    try:
        width, height = read_size(content, _limit(settings))
    except DroppedError as error:
        raise _refuse_picture(param, settings, error) from error
    if max(width, height) > _MOST_ASPECT * min(width, height):
        size = f"{width}x{height}"
        raise RefusedError(f"{param} is {size}; a side may be {_MOST_ASPECT} times the other: cut it", param=param)
    return SentPicture(content, param, settings, (width, height))


def _limit(settings: ServerSettings) -> PictureLimits:
    return PictureLimits(max_bytes=settings.body_bytes, max_pixels=settings.image_pixels)


def _refuse_picture(param: str, settings: ServerSettings, error: DroppedError) -> RefusedError:
    megapixels = settings.image_pixels // 1_000_000
    return RefusedError(
        f"{param}: {error.reason}; expected a PNG, JPEG or WebP picture of at most {megapixels} megapixels",
        param=param,
    )  # fmt: skip


def count_bytes(*images: Image.Image | None) -> int:
    """Returns the bytes that pictures take in memory."""
    return sum(image.width * image.height * (1 if image.mode == "L" else 4) for image in images if image is not None)


def flatten(image: Image.Image) -> Image.Image:
    """Returns a picture as RGB, laid on white where it is transparent."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def check_mask(mask: Image.Image, param: str = "mask") -> Image.Image:
    """Returns the mask. Raises RefusedError where nothing of it may be painted."""
    if mask.getextrema()[1] == 0:
        raise RefusedError(f"{param} leaves nothing to paint; mark what shall change", param=param)
    return mask


def fit(image: Image.Image, size: tuple[int, int], how: Literal["stretch", "cover", "inside"]) -> Image.Image:
    """Brings a picture to a height and width: stretched, cut to fit, or whole with its edges drawn out."""
    height, width = size
    if image.size == (width, height):
        return image
    if how == "cover":
        return fit_cover(image, size)
    if how == "stretch":
        return image.resize((width, height), Image.Resampling.LANCZOS)
    left, top, right, bottom = box = find_inside(image.size, size)
    inner = image.resize((right - left, bottom - top), Image.Resampling.LANCZOS)
    padded = Image.new(image.mode, (width, height))
    padded.paste(inner, box)
    edges = (
        ((0, 0, left, height), (left, 0, left + 1, height)), ((right, 0, width, height), (right - 1, 0, right, height)),
        ((0, 0, width, top), (0, top, width, top + 1)), ((0, bottom, width, height), (0, bottom - 1, width, bottom)),
    )  # fmt: skip
    for place, edge in edges:
        if place[2] > place[0] and place[3] > place[1]:
            padded.paste(padded.crop(edge).resize((place[2] - place[0], place[3] - place[1])), place)
    return padded


def find_inside(picture: tuple[int, int], size: tuple[int, int]) -> Box:
    """Returns where a picture of that width and height stands, in the middle of a height and width, as large as can."""
    height, width = size
    grown = min(width / picture[0], height / picture[1])
    inner = max(1, round(picture[0] * grown)), max(1, round(picture[1] * grown))
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    return left, top, left + inner[0], top + inner[1]


def encode_image(image: Image.Image, text: str, form: Format, quality: int | None) -> bytes:
    """Returns an image file; a PNG holds `text`, its settings."""
    file = io.BytesIO()
    if form == "png":
        image.save(file, "png", pnginfo=build_png_info(text))
    else:
        image.save(file, form, quality=QUALITY if quality is None else quality)
    return file.getvalue()


def read_parameters(content: str, settings: ServerSettings, reader: ReadingTask) -> str:
    """Returns the settings that a PNG's text holds; empty where it holds none. Raises RefusedError."""
    with open_pictures(settings, reader, image=content) as (sent,):
        sent.decode(reader)  # within bounds, before anything of it is believed
        with Image.open(io.BytesIO(sent.content), formats=FORMATS) as image:
            return str(image.info.get("parameters", ""))
