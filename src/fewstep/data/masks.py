"""Masks: grey pictures that are white where another picture may be painted anew."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torch.nn import functional as F

Fill = Literal["surroundings", "original", "noise", "nothing"]
"""What painting begins from under a mask: the colours around it, the picture itself, or latents of noise or zeros."""
_LEAST_LEVEL = 2
"""Grey levels up to this are black: resizing a mask leaves traces."""


def feather(mask: Image.Image, radius_x: float, radius_y: float) -> Image.Image:
    """Blurs a mask's edges by Gaussians of these standard deviations, in pixels."""
    return mask.filter(ImageFilter.GaussianBlur((radius_x, radius_y))) if radius_x > 0 or radius_y > 0 else mask


def read_mask(image: Image.Image) -> Image.Image:
    """Returns a picture's mask: where it is white or, if any of it is transparent, more than half opaque."""
    if image.mode == "RGBA" and image.getchannel("A").getextrema() != (255, 255):
        return image.getchannel("A").point(lambda level: 255 if level > 128 else 0)
    return image.convert("L")


def read_holes(image: Image.Image) -> Image.Image | None:
    """Returns the mask of what is transparent in a picture; None where nothing is."""
    if image.mode != "RGBA" or image.getchannel("A").getextrema()[0] == 255:
        return None
    return ImageOps.invert(image.getchannel("A"))


def mark_free(mask: Image.Image, multiple: int) -> Tensor:
    """Returns `[1, 1, h, w]`, true for latents of `multiple` pixels a side of which any pixel may be painted."""
    levels = torch.from_numpy(np.array(mask.convert("L"))).float()[None, None]
    free: Tensor = F.max_pool2d(levels, multiple) > _LEAST_LEVEL
    return free


def lay_over(painted: Image.Image, picture: Image.Image, mask: Image.Image) -> Image.Image:
    """Returns `painted` under the mask and `picture` elsewhere, blended where the mask is grey."""
    return Image.composite(painted, picture, mask)


def fill_from_around(image: Image.Image, mask: Image.Image) -> Image.Image:
    """Fills what may be painted with the colours around it, smoothly.

    Halves the picture again and again, averaging known pixels alone, and on the way back takes what is not known from
    the smaller one.
    """
    levels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float()[None]
    known = (torch.from_numpy(np.array(mask.convert("L")))[None, None] <= _LEAST_LEVEL).float()
    if not known.any():
        return image.convert("RGB")
    filled = _fill(levels * known, known).round().clamp(0, 255).byte()[0].permute(1, 2, 0)
    return Image.fromarray(filled.numpy())


def _fill(colours: Tensor, known: Tensor) -> Tensor:
    """Returns colours `[1, 3, h, w]` everywhere, of those that are known with weight `known` `[1, 1, h, w]`."""
    height, width = colours.shape[2:]
    if known.min() > 0 or max(height, width) == 1:
        return colours / known.clamp(min=1e-6)
    halved = [F.avg_pool2d(each, 2, ceil_mode=True, count_include_pad=False) for each in (colours, known)]
    around = F.interpolate(_fill(*halved), size=(height, width), mode="bilinear", align_corners=False)
    return torch.where(known > 0, colours / known.clamp(min=1e-6), around)
