"""Conversions between pictures and tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""Pillow's names of what is read of a person's pictures; for some others it starts programs."""


def to_pixels(images: Sequence[Image.Image]) -> Tensor:
    """Converts RGB pictures of one size to `[b, 3, h, w]` fp32 in [−1, 1]."""
    return from_levels(torch.from_numpy(np.stack([np.asarray(image) for image in images])))


def from_levels(levels: Tensor) -> Tensor:
    """Converts uint8 `[b, h, w, 3]` to `[b, 3, h, w]` fp32 in [−1, 1]."""
    return levels.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_levels(pixels: Tensor) -> Tensor:
    """Converts `[b, 3, h, w]` in [−1, 1] to uint8 `[b, h, w, 3]` on the CPU; clips, then rounds as diffusers does."""
    levels = (pixels.detach().float().cpu() / 2 + 0.5).clamp(0, 1).mul(255).round().byte()
    return levels.permute(0, 2, 3, 1).contiguous()


def to_images(pixels: Tensor) -> list[Image.Image]:
    """Converts `[b, 3, h, w]` in [−1, 1] to RGB pictures."""
    return [Image.fromarray(level.numpy()) for level in to_levels(pixels)]
