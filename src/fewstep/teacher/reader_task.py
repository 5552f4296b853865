"""The reader's training task: it reads scenes, and recognises pictures that hold none."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence

import torch
from PIL import Image, ImageChops, ImageFilter
from torch import Tensor
from torch.nn import functional

from fewstep.data.pictures import to_pixels
from fewstep.data.worlds.drawing import BACKGROUND_RGB, COLOUR_RGB, SIDE, draw_shape
from fewstep.data.worlds.scene import BACKGROUNDS, COLOURS, SHAPES, SIZES, Look, Scene
from fewstep.data.worlds.scenes import Scenes
from fewstep.evaluate.reader import LAYOUTS, Reader
from fewstep.train.task import Loss, StudentTask

_IGNORED = -100  # cross_entropy ignores this target
UNREADABLE_RATE = 0.3


class ReaderTask(StudentTask):
    """Trains by the cross entropy of every answer that the picture determines."""

    def __init__(self, reader: Reader, seed: int, looks: Sequence[Look] = ("plain",)) -> None:
        self.student = reader
        self.averaged = copy.deepcopy(reader)
        self._seed, self._looks = seed, looks

    def loss(self, counters: range) -> Loss:
        pixels, answers = draw_reader_batch(self._seed, counters, self._looks)
        total = torch.zeros(())
        for logits, answer in zip(self.student(pixels), answers.T, strict=True):
            if (answer != _IGNORED).any():
                total = total + functional.cross_entropy(logits.float(), answer, label_smoothing=0.02)
        return Loss.from_mean(total, counters)


def draw_reader_batch(seed: int, counters: range, looks: Sequence[Look] = ("plain",)) -> tuple[Tensor, Tensor]:
    """Draws pixels `[b, 3, 64, 64]`, 30 % of them unreadable, and answers `[b, 8]`; the looks alternate."""
    worlds = [Scenes(seed=seed, split="all", look=look) for look in looks]
    pictures, answers = [], []
    for i in counters:
        scenes = worlds[i % len(worlds)]
        rng = random.Random(f"reader {seed} {i}")
        if rng.random() < UNREADABLE_RATE:
            pictures.append(spoil(scenes, 2 * i, rng))
            answers.append([LAYOUTS.index("unreadable")] + [_IGNORED] * 7)
        else:
            picture = scenes[2 * i]
            blur = max(0.0, rng.uniform(-0.5, 0.8))
            pictures.append(add_noise(picture.image.filter(ImageFilter.GaussianBlur(blur)), rng, rng.uniform(0, 10)))
            answers.append(_list_answers(picture.scene))
    return to_pixels(pictures), torch.tensor(answers)


def _list_answers(scene: Scene) -> list[int]:
    answers = [LAYOUTS.index(scene.relation or "single")]
    for thing in (*scene.things, None)[:2]:
        if thing is None:
            answers += [_IGNORED] * 3
        else:
            answers += [SHAPES.index(thing.shape), COLOURS.index(thing.colour), SIZES.index(str(thing.size))]
    return [*answers, BACKGROUNDS.index(str(scene.background))]


def spoil(scenes: Scenes, index: int, rng: random.Random) -> Image.Image:
    """Returns a picture without a readable scene: blurred, noisy, mixed, patched, crowded, empty or recoloured."""
    image, other = scenes[index].image, scenes[index + 1].image
    kind = rng.choice(("blur", "noise", "mix", "patch", "crowd", "empty", "colours"))
    if kind == "blur":
        return image.filter(ImageFilter.GaussianBlur(rng.uniform(3, 8)))
    if kind == "noise":
        return add_noise(image, rng, rng.uniform(70, 140))
    if kind == "mix":
        return Image.blend(image, other, rng.uniform(0.35, 0.65))
    if kind == "patch":
        return paste_quarters(image, other)
    background = BACKGROUND_RGB[rng.choice(BACKGROUNDS)]
    if kind == "empty":
        return add_noise(Image.new("RGB", (SIDE, SIDE), background), rng, rng.uniform(0, 20))
    if kind == "colours":  # a scene whose colours drift across it
        ramp = Image.linear_gradient("L").resize((SIDE, SIDE)).rotate(rng.choice((0, 90, 180, 270)))
        return Image.composite(ImageChops.invert(image), image, ramp)
    canvas = Image.new("RGB", (4 * SIDE, 4 * SIDE), background)
    for _ in range(rng.randint(3, 5)):
        placement = (rng.uniform(10, 54), rng.uniform(10, 54), rng.uniform(6, 11))
        draw_shape(canvas, rng.choice(SHAPES), COLOUR_RGB[rng.choice(COLOURS)], background, placement, rng)
    return canvas.reduce(4)


def paste_quarters(image: Image.Image, other: Image.Image) -> Image.Image:
    """Puts the upper quarters of another picture of its size over the lower ones, crosswise."""
    side = image.width
    half = side // 2
    image.paste(other.crop((0, 0, half, half)), (half, half))
    image.paste(other.crop((half, 0, side, half)), (0, half))
    return image


def add_noise(image: Image.Image, rng: random.Random, strength: float) -> Image.Image:
    """Adds noise of that deviation, in levels of 255."""
    generator = torch.Generator().manual_seed(rng.getrandbits(60))
    noise = torch.randn(3, image.height, image.width, generator=generator) * strength
    pixels = (to_pixels([image])[0] + 1) * 127.5 + noise
    return Image.fromarray(pixels.clamp(0, 255).byte().permute(1, 2, 0).numpy())
