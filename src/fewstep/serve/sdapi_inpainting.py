"""A picture to start from as A1111's img2img takes it: resized, under a mask, or the masked part of it alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageOps

from fewstep.data.masks import Fill, feather, lay_over, read_mask
from fewstep.serve.acceptance import check_between
from fewstep.serve.client_pictures import Box, check_mask, find_inside, fit, flatten, open_pictures
from fewstep.serve.errors import RefusedError
from fewstep.serve.reading import ReadingTask
from fewstep.serve.sdapi_fields import ImageToImage
from fewstep.serve.settings import ServerSettings

_FILLS: Sequence[Fill] = ("surroundings", "original", "noise", "nothing")
_HOW: Sequence[Literal["stretch", "cover", "inside"]] = ("stretch", "cover", "inside", "stretch")
_MOST_BLUR = 256


@dataclass(frozen=True)
class Beginning:
    """What painting starts from, in the size that is painted, and how the painted part returns into the picture."""

    image: Image.Image
    mask: Image.Image | None = None
    fill: Fill = "original"
    whole: Image.Image | None = None
    """The client's picture, where only a part of it is painted."""
    whole_mask: Image.Image | None = None
    part: Box = (0, 0, 0, 0)
    """Bounds that part."""
    inner: Box = (0, 0, 0, 0)
    """Where it stands in what is painted."""

    def finish(self, painted: Image.Image) -> Image.Image:
        """Sets what was painted into the client's picture."""
        if self.whole is None or self.whole_mask is None:
            return painted
        size = (self.part[2] - self.part[0], self.part[3] - self.part[1])
        canvas = self.whole.copy()
        canvas.paste(painted.crop(self.inner).resize(size, Image.Resampling.LANCZOS), self.part)
        return lay_over(canvas, self.whole, self.whole_mask)


def read_beginning(
    asked: ImageToImage, size: tuple[int, int], settings: ServerSettings, reader: ReadingTask
) -> Beginning:  # fmt: skip
    """Reads the pictures of a request that is painted in `size`, a height and width. Raises RefusedError."""
    if len(asked.init_images) != 1:
        raise RefusedError(f"init_images: {len(asked.init_images)} pictures were sent; send one", param="init_images")
    with open_pictures(settings, reader, init_images=asked.init_images[0], mask=asked.mask) as (sent, *masks):
        image = flatten(sent.decode(reader, transparency=True))
        if not masks:
            return Beginning(fit(image, size, _HOW[asked.resize_mode]))
        _check_blurs(asked)
        return _choose_beginning(
            asked, size, image, _read_mask(asked, image, masks[0].decode(reader, transparency=True))
        )


def _choose_beginning(asked: ImageToImage, size: tuple[int, int], image: Image.Image, mask: Image.Image) -> Beginning:
    """Returns what painting under a mask starts from: the whole picture, or the masked part of it."""
    how = _HOW[asked.resize_mode]
    fill = _FILLS[asked.inpainting_fill]
    if not asked.inpaint_full_res:
        return Beginning(fit(image, size, how), fit(mask, size, how), fill)
    part = _choose_part(mask, size, asked.inpaint_full_res_padding)
    cut = image.crop(part)
    inner = find_inside(cut.size, size)
    # Sharp here: the blurred edge is laid over the whole picture, once.
    sharp = fit(mask.crop(part).point(lambda level: 255 if level else 0), size, "inside")
    return Beginning(fit(cut, size, "inside"), sharp, fill, image, mask, part, inner)


def _choose_blurs(asked: ImageToImage) -> tuple[int, int]:
    return (asked.mask_blur_x, asked.mask_blur_y) if asked.mask_blur is None else (asked.mask_blur, asked.mask_blur)


def _check_blurs(asked: ImageToImage) -> None:
    names = ("mask_blur_x", "mask_blur_y") if asked.mask_blur is None else ("mask_blur",)
    for name in (*names, "inpaint_full_res_padding"):
        check_between(name, getattr(asked, name), 0, _MOST_BLUR)


def _read_mask(asked: ImageToImage, image: Image.Image, given: Image.Image) -> Image.Image:
    """Returns the mask of the picture's size, inverted and blurred as is asked for."""
    mask = read_mask(given)
    if asked.inpainting_mask_invert:
        mask = ImageOps.invert(mask)
    mask = fit(mask, (image.height, image.width), "stretch")
    return feather(check_mask(mask), *_choose_blurs(asked))


def _choose_part(mask: Image.Image, size: tuple[int, int], padding: int) -> Box:
    """Returns the box around what is painted, with `padding` pixels more, grown to the shape of `size` if it can."""
    height, width = size
    left, top, right, bottom = mask.getbbox() or (0, 0, *mask.size)
    left, top = max(0, left - padding), max(0, top - padding)
    right, bottom = min(mask.width, right + padding), min(mask.height, bottom + padding)
    wanted = max(right - left, round((bottom - top) * width / height))
    left, right = _grow(left, right, wanted, mask.width)
    wanted = max(bottom - top, round((right - left) * height / width))
    top, bottom = _grow(top, bottom, wanted, mask.height)
    return left, top, right, bottom


def _grow(begin: int, end: int, wanted: int, most: int) -> tuple[int, int]:
    """Returns a span of that length, or of the whole, about the same middle."""
    wanted = min(wanted, most)
    begin = min(max(0, begin - (wanted - (end - begin)) // 2), most - wanted)
    return begin, begin + wanted
