"""What the gallery's autoencoder learns from: the gallery in both hands, scenes, photographs and drawn textures."""

from __future__ import annotations

import colorsys
import functools
import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from fewstep.data.pictures import to_pixels
from fewstep.data.worlds.gallery import Gallery
from fewstep.data.worlds.scenes import Scenes

SIDE = 64
SHARES = {"noto": 0.58, "twemoji": 0.2, "scenes": 0.07, "photographs": 0.1, "textures": 0.05}
"""How often a picture is of each sort."""
PHOTOGRAPHS = (
    "astronaut.png", "brick.png", "camera.png", "china.jpg", "clock_motion.png", "coffee.png", "coins.png", "grass.png",
    "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip
"""Those of scikit-image (skimage/data) and scikit-learn (sklearn/datasets/images) that are learnt from."""
HELD_OUT = ("chelsea.png", "flower.jpg")
_LARGEST = 640


class Mixture:
    """Picture i is a pure function of (seed, i)."""

    def __init__(self, seed: int, photographs: Path) -> None:
        self._seed = seed
        self._photographs = load_photographs(photographs, PHOTOGRAPHS)
        self._noto, self._twemoji = Gallery(seed=seed), Gallery(seed=seed, hand="twemoji")
        self._scenes = Scenes(seed=seed, split="all")

    def __call__(self, counters: range) -> Tensor:
        """Returns pixels `[b, 3, 64, 64]` in [−1, 1]."""
        return to_pixels([self.draw(i) for i in counters])

    def draw(self, index: int) -> Image.Image:
        rng = random.Random(f"gallery mixture {self._seed} {index}")
        sort = rng.choices(list(SHARES), list(SHARES.values()))[0]
        if sort == "photographs":
            return crop(rng.choice(self._photographs), rng)
        if sort == "textures":
            return draw_texture(rng)
        return {"noto": self._noto, "twemoji": self._twemoji, "scenes": self._scenes}[sort][index].image


@functools.cache
def load_photographs(folder: Path, names: tuple[str, ...]) -> tuple[Image.Image, ...]:
    """These pictures of a folder, none larger than needed."""
    if missing := [name for name in names if not (folder / name).exists()]:
        raise SystemExit(f"{folder} lacks {', '.join(missing)}; docs/gallery.md says where they come from")
    photographs = []
    for name in names:
        with Image.open(folder / name) as opened:
            photograph = opened.convert("RGB")
        photograph.thumbnail((_LARGEST, _LARGEST))
        photographs.append(photograph)
    return tuple(photographs)


def crop(photograph: Image.Image, rng: random.Random) -> Image.Image:
    """A square part of any size and place, as it is or mirrored."""
    least = min(photograph.size)
    side = round(SIDE * (least / SIDE) ** rng.random())
    left, top = rng.randint(0, photograph.width - side), rng.randint(0, photograph.height - side)
    box = (left, top, left + side, top + side)
    part = photograph.resize((SIDE, SIDE), Image.Resampling.LANCZOS, box, reducing_gap=2.0)
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else part


def draw_texture(rng: random.Random) -> Image.Image:
    """Clouds of three octaves between two colours, half of them with shapes and lines of other colours on top."""
    noise = np.random.default_rng(rng.getrandbits(64))
    total = np.zeros((SIDE, SIDE), np.float32)
    for side, weight in ((4, 0.6), (12, 0.3), (40, rng.uniform(0, 0.3))):
        cloud = Image.fromarray(noise.random((side, side), np.float32)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        total += weight * np.asarray(cloud)
    mask = Image.fromarray((255 * np.clip(total * 1.4 - 0.15, 0, 1)).astype(np.uint8))
    first, last = (Image.new("RGB", (SIDE, SIDE), _colour(rng)) for _ in range(2))
    image = Image.composite(first, last, mask)
    if rng.random() < 0.5:
        image = image.resize((4 * SIDE, 4 * SIDE))
        draw = ImageDraw.Draw(image)
        for _ in range(rng.randint(3, 12)):
            points = [(rng.uniform(0, 4 * SIDE), rng.uniform(0, 4 * SIDE)) for _ in range(rng.randint(2, 5))]
            if len(points) > 2:
                draw.polygon(points, fill=_colour(rng), outline=_colour(rng), width=rng.randint(1, 8))
            else:
                draw.line(points, fill=_colour(rng), width=rng.randint(2, 16))
        image = image.reduce(4)
    return image


def _colour(rng: random.Random) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(rng.random(), rng.random(), rng.random() ** 0.5)
    return round(255 * red), round(255 * green), round(255 * blue)
