"""A picture that painting starts from, whole or under a mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from fewstep.data.masks import Fill, fill_from_around, lay_over, mark_free
from fewstep.data.pictures import to_pixels
from fewstep.method.sampling import Kept
from fewstep.models.codec import Codec


@dataclass(frozen=True)
class Start:
    """A picture of the size that is painted, and what of it may be painted anew."""

    image: Image.Image
    """Is RGB."""
    mask: Image.Image | None = None
    """White where it is painted, of the picture's size; without one everywhere."""
    fill: Fill = "original"
    """What stands under the mask before it is painted."""

    def encode(self, codec: Codec, draw: Callable[[], Tensor]) -> tuple[Tensor, Kept | None]:
        """Returns latents `[b, c, h, w]` of `b` pictures, and what of them stays.

        `draw` gives standard normal noise of that shape: the posterior's first, as in diffusers, then that of `fill`.
        """
        filled = self.mask is not None and self.fill == "surroundings"
        image = fill_from_around(self.image, self.mask) if filled and self.mask is not None else self.image
        mean, std = codec.encode(to_pixels([image]))
        z = mean + std * draw()
        if self.mask is None:
            return z, None
        free = mark_free(self.mask, codec.multiple).to(z.device)
        kept = Kept(z, free)
        if self.fill in ("noise", "nothing"):
            z = torch.where(free, draw() if self.fill == "noise" else torch.zeros_like(z), z)
        return z, kept

    def lay_over(self, painted: Image.Image) -> Image.Image:
        """Returns a painted picture with what was to stay as it was, pixel by pixel."""
        return painted if self.mask is None else lay_over(painted, self.image, self.mask)
