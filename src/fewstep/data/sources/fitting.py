"""The limits on one picture, and the resizing and cropping to the size that is wanted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MAX_PIXELS = 64_000_000
"""Most pixels of a picture, unless the caller sets another limit."""
MAX_BYTES = 64 << 20
"""Most bytes of a file, unless the caller sets another limit."""


@dataclass(frozen=True, kw_only=True)
class PictureLimits:
    """Limits on one picture; anything above them is dropped as too large."""

    max_bytes: int = MAX_BYTES
    """Bounds the bytes of the file."""
    max_pixels: int = MAX_PIXELS
    side: int = 0
    """Length in pixels to which the shorter side will be resized, 0 if unknown: a very narrow picture would grow
    past any bound."""

    def allows(self, width: int, height: int) -> bool:
        return bool(self.allow(np.array([width]), np.array([height]))[0])

    def allow(self, widths: NDArray[np.int64], heights: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tells of which pictures the sides are within the limits."""
        sides = np.stack([widths, heights]).astype(np.float64)  # a header may claim more than integers can multiply
        short, long = sides.min(axis=0), sides.max(axis=0)
        grown = long * self.side**2 // np.maximum(1, short)
        fits: NDArray[np.bool_] = (short * long <= self.max_pixels) & (grown <= max(MAX_PIXELS, self.side**2))
        return fits


def fit_cover(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resizes a picture until it just covers a height and width, and crops the middle."""
    height, width = size
    grown = max(height / image.height, width / image.width)
    whole = max(width, round(image.width * grown)), max(height, round(image.height * grown))
    left, top = (whole[0] - width) // 2, (whole[1] - height) // 2
    resized = image.resize(whole, Image.Resampling.BICUBIC, reducing_gap=None)
    return resized.crop((left, top, left + width, top + height))


def find_covering(size: tuple[int, int], wanted: tuple[int, int]) -> tuple[int, int]:
    """Returns the least width and height of that aspect which cover a `wanted` width and height, to a pixel."""
    (width, height), (wide, high) = size, wanted
    if width * high <= height * wide:  # it is the width that fits exactly
        return wide, round(height * wide / width)
    return round(width * high / height), high


def fit_sides(image: Image.Image, wanted: tuple[int, int], corner: tuple[int, int] | None = None) -> Image.Image:
    """Resizes by Pillow's antialiased bicubic filter until a `wanted` width and height are just covered, and crops.

    `corner` is left and top of what is kept; without it that is the middle.
    """
    width, height = find_covering(image.size, wanted)
    resized = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=None)
    left, top = corner or ((width - wanted[0]) // 2, (height - wanted[1]) // 2)
    return resized.crop((left, top, left + wanted[0], top + wanted[1]))


def fit_square(image: Image.Image, resolution: int) -> Image.Image:
    """Resizes the shorter side to `resolution`, as `fit_sides` does, and crops the square in the middle."""
    return fit_sides(image, (resolution, resolution))
