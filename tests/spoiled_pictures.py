"""Pictures of many kinds, and ways to spoil them at random."""

from __future__ import annotations

import io
import random

import numpy as np
from PIL import Image


def seeds() -> list[bytes]:
    """Pictures of every format and many kinds of each."""
    ramp = Image.linear_gradient("L").resize((48, 32))
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8))
    frames = [Image.new("RGB", (48, 32), colour) for colour in ("red", "blue")]
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(np.linspace(0, 65535, 1536).reshape(32, 48).astype(np.uint16))
    saved: list[tuple[Image.Image, str, dict[str, object]]] = [
        (noise, "JPEG", {"exif": exif}), (noise, "JPEG", {"progressive": True}), (ramp, "JPEG", {}),
        (noise.convert("CMYK"), "JPEG", {}), (noise, "PNG", {"exif": exif}), (noise.quantize(8), "PNG", {}),
        (deep, "PNG", {}), (noise.convert("RGBA"), "PNG", {}), (ramp.convert("1"), "PNG", {}),
        (frames[0], "PNG", {"save_all": True, "append_images": frames}), (noise, "WEBP", {"exif": exif}),
        (noise.convert("RGBA"), "WEBP", {"lossless": True}),
        (frames[0], "WEBP", {"save_all": True, "append_images": frames}),
    ]  # fmt: skip
    contents = []
    for image, kind, options in saved:
        file = io.BytesIO()
        image.save(file, kind, **options)
        contents.append(file.getvalue())
    return contents


def spoil(content: bytes, rng: random.Random) -> bytes:
    """One to four of: bits flipped, an end cut off, bytes put in, bytes set to zero, a part doubled."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place, length = rng.randrange(len(data) + 1), rng.randint(1, 64)
        match rng.randrange(5):
            case 0:
                for _ in range(rng.randint(1, 8)):
                    if data:
                        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            case 1:
                del data[place:]
            case 2:
                data[place:place] = rng.randbytes(length)
            case 3:
                data[place : place + length] = bytes(len(data[place : place + length]))
            case 4:
                data[place:place] = data[place : place + length]
    return bytes(data)
