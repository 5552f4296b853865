"""Latents as a sequence, two by two of them an entry, as several families have them."""

from __future__ import annotations

from torch import Tensor


def pack(z: Tensor) -> Tensor:
    """Makes a sequence `[b, h·w/4, 4c]` of latents `[b, c, h, w]`, two by two of them an entry."""
    b, c, h, w = z.shape
    return z.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Undoes `pack`."""
    b, _, c = tokens.shape
    parts = tokens.view(b, height // 2, width // 2, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return parts.reshape(b, c // 4, height, width)
