"""What the gallery's reader and text encoder are trained on."""

from __future__ import annotations

import copy
import functools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image, ImageChops, ImageFilter
from torch import Tensor, nn
from torch.nn import functional

from fewstep.data.pictures import to_pixels
from fewstep.data.worlds.gallery import Gallery, GalleryPicture
from fewstep.data.worlds.gallery_art import Hand, group_by_kind, list_names, load_drawings
from fewstep.data.worlds.gallery_drawing import SIDE, expect_placement
from fewstep.data.worlds.gallery_scene import (
    ARRANGEMENTS,
    GROUNDS,
    NEXT_TO,
    SIZES,
    Asked,
    GalleryPrompt,
    list_layouts,
    spread_evenly,
)
from fewstep.evaluate.gallery_reader import GRID, LAYOUTS, GalleryReader
from fewstep.teacher.reader_task import add_noise, paste_quarters
from fewstep.teacher.tasks import CaptionTask, compute_caption_loss
from fewstep.train.task import Loss, StudentTask

IGNORED = -100  # cross_entropy ignores this target
UNREADABLE_RATE = 0.25

Answers = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Layout and ground `[b]`; presence, size and name in every cell `[b, 8, 8]`."""


class GalleryReaderTask(StudentTask):
    """Trains by the cross entropy of every answer that the picture determines."""

    def __init__(
        self, reader: GalleryReader, seed: int, hands: Sequence[Hand] = ("noto", "twemoji"),
        rebuild: Callable[[Tensor], Tensor] | None = None,
    ) -> None:  # fmt: skip
        """`rebuild` maps pixels to what an autoencoder makes of them: all that is painted has come through one. Every
        other batch is rebuilt."""
        self.student = reader
        self.averaged = copy.deepcopy(reader)
        self._seed, self._hands, self._rebuild = seed, hands, rebuild

    def loss(self, counters: range) -> Loss:
        pixels, answers = draw_gallery_batch(self._seed, counters, self._hands)
        if self._rebuild and counters.start // len(counters) % 2:
            pixels = self._rebuild(pixels)
        return Loss.from_mean(compute_reader_loss(self.student(pixels), answers), counters)


def compute_reader_loss(logits: Sequence[Tensor], answers: Answers) -> Tensor:
    """Returns the scalar loss of what `GalleryReader.forward` returned."""
    _, layouts, grounds, presences, sizes, names = logits
    layout, ground, presence, size, name = answers
    # Weighed so that the cells with a thing, about one in twenty, count as much as the rest.
    weight = 1 + 19 * presence.float()
    present = functional.binary_cross_entropy_with_logits(presences[:, 0].float(), presence.float(), weight)
    total = functional.cross_entropy(layouts.float(), layout, label_smoothing=0.02) + present
    for each, answer in ((grounds, ground), (sizes, size), (names, name)):
        if (answer != IGNORED).any():
            total = total + functional.cross_entropy(each.float(), answer, ignore_index=IGNORED, label_smoothing=0.02)
    return total


def draw_gallery_batch(
    seed: int, counters: range, hands: Sequence[Hand] = ("noto", "twemoji")
) -> tuple[Tensor, Answers]:
    """Draws pixels `[b, 3, 64, 64]`, a quarter of them unreadable, and their answers; the first hand draws more."""
    galleries = [Gallery(seed=seed, hand=hand) for hand in hands]
    images, answers = [], []
    for i in counters:
        rng = random.Random(f"gallery reader {seed} {i}")
        gallery = galleries[0] if rng.random() < 0.4 else rng.choice(galleries)
        picture = gallery[2 * i]
        spoilt = rng.random() < UNREADABLE_RATE
        if spoilt:
            images.append(spoil_picture(gallery, picture, 2 * i + 1, rng))
        else:
            blurred = picture.image.filter(ImageFilter.GaussianBlur(max(0.0, rng.uniform(-0.5, 0.8))))
            images.append(add_noise(blurred, rng, rng.uniform(0, 10)))
        answers.append(_list_answers(picture, spoilt))
    layout, ground, *cells = zip(*answers, strict=True)
    presence, size, name = (torch.stack(each) for each in cells)
    return to_pixels(images), (torch.tensor(layout), torch.tensor(ground), presence, size, name)


def _list_answers(picture: GalleryPicture, spoilt: bool) -> tuple[int, int, Tensor, Tensor, Tensor]:
    presence = torch.zeros(GRID, GRID, dtype=torch.long)
    size, name = (torch.full((GRID, GRID), IGNORED) for _ in range(2))
    if spoilt:
        return LAYOUTS.index("unreadable"), IGNORED, presence, size, name
    for thing, (x, y, _) in zip(picture.scene.things, picture.placements, strict=True):
        cell = int(y * GRID / SIDE), int(x * GRID / SIDE)
        presence[cell] = 1
        size[cell], name[cell] = SIZES.index(thing.size), list_names().index(thing.name)
    return LAYOUTS.index(picture.scene.arrangement), GROUNDS.index(picture.scene.ground), presence, size, name


def spoil_picture(gallery: Gallery, picture: GalleryPicture, index: int, rng: random.Random) -> Image.Image:
    """Returns a picture without a readable scene: blurred, noisy, mixed, patched, crowded, empty, torn or melted."""
    image, other = picture.image, gallery[index].image
    kind = rng.choice(("blur", "noise", "mix", "patch", "crowd", "empty", "torn", "melt"))
    if kind == "blur":
        return image.filter(ImageFilter.GaussianBlur(rng.uniform(2.5, 8)))
    if kind == "noise":
        return add_noise(image, rng, rng.uniform(80, 150))
    if kind == "mix":
        return Image.blend(image, other, rng.uniform(0.35, 0.65))
    if kind == "patch":
        return paste_quarters(image, other)
    if kind == "crowd":  # two pictures over each other
        return ImageChops.darker(image, other) if rng.random() < 0.5 else ImageChops.lighter(image, other)
    if kind == "torn":  # strips of it, shifted
        strips, strip = image.copy(), rng.randint(3, 8)
        for top in range(0, SIDE, strip):
            strips.paste(ImageChops.offset(image, rng.randint(-20, 20), 0).crop((0, top, SIDE, top + strip)), (0, top))
        return strips
    if kind == "melt":
        return _warp(image, rng, rng.uniform(8, 16))
    return _cover_things(picture, rng)


def _warp(image: Image.Image, rng: random.Random, strength: float) -> Image.Image:
    """Moves the corners of every cell of a grid by up to `strength` pixels."""

    def move(at: int) -> float:
        return min(SIDE, max(0, at + rng.uniform(-1, 1) * strength))

    corners = {(x, y): (move(x), move(y)) for x in range(0, SIDE + 1, 8) for y in range(0, SIDE + 1, 8)}
    mesh = [
        (
            (x, y, x + 8, y + 8),
            (*corners[x, y], *corners[x, y + 8], *corners[x + 8, y + 8], *corners[x + 8, y]),
        )
        for x in range(0, SIDE, 8)
        for y in range(0, SIDE, 8)
    ]
    return image.transform(image.size, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)


def _cover_things(picture: GalleryPicture, rng: random.Random) -> Image.Image:
    """Melts every thing into its surroundings: nothing, or blobs of its own colours, are left on the ground."""
    image, melted = picture.image, picture.image.filter(ImageFilter.GaussianBlur(rng.uniform(3, 9)))
    mask = Image.new("L", image.size)
    for x, y, length in picture.placements:
        half = round(length * 0.6)
        mask.paste(255, (round(x) - half, round(y) - half, round(x) + half, round(y) + half))
    return Image.composite(melted, image, mask.filter(ImageFilter.GaussianBlur(2)))


_MOST = max(ARRANGEMENTS)


def list_statements() -> list[tuple[Any, ...]]:
    """Returns the options of each thing that a caption may state."""
    arrangements = (*(name for names in ARRANGEMENTS.values() for name in names), NEXT_TO)
    asked = (list_names(), tuple(group_by_kind()), SIZES)
    return [tuple(ARRANGEMENTS), arrangements, GROUNDS, *asked * _MOST]


def list_stated(prompt: GalleryPrompt) -> list[int]:
    """Returns, for each of `list_statements()`, the number of the stated option, counted from 1, or 0 for none."""
    things = prompt.things or ()
    words: list[Any] = [len(things) or None, prompt.arrangement, prompt.ground]
    for i in range(_MOST):
        words += [things[i].name, things[i].kind, things[i].size] if i < len(things) else [None] * 3
    pairs = zip(words, list_statements(), strict=True)
    return [0 if word is None else 1 + options.index(word) for word, options in pairs]


PATCHES = 4
"""Parts along a side in which a thing is described."""
LOOKS = 48
"""Numbers that say how a part looks."""


@functools.cache
def list_looks() -> Tensor:
    """Returns `[names, 16, 48]`, how the parts of each thing look in Noto's hand: the principal components of parts of
    its drawing at 32×32 with its outline, each divided by the root of its deviation."""
    side = 32 // PATCHES
    drawings = [load_drawings("noto")[name].resize((32, 32), Image.Resampling.BOX) for name in list_names()]
    pixels = torch.stack([torch.frombuffer(bytearray(each.tobytes()), dtype=torch.uint8) for each in drawings])
    pixels = pixels.double().reshape(-1, PATCHES, side, PATCHES, side, 4).div(255).transpose(2, 3)
    parts = pixels.reshape(-1, 4 * side**2)
    left, deviations, _ = torch.linalg.svd(parts - parts.mean(0), full_matrices=False)
    looks: Tensor = left[:, :LOOKS] * deviations[:LOOKS].sqrt()
    return looks.div(looks.square().mean().sqrt()).float().reshape(len(list_names()), -1, LOOKS)


class SlotTask(CaptionTask):
    """Trains, beside what `CaptionTask` does, the last 48 tokens to describe a part of a thing each: how it looks and
    where in the picture it lies, how large the thing is, and the ground, each as it is to be expected where the caption
    leaves it open.

    A UNet that had to learn 277 pictures by heart from names alone still paints blobs after 400,000 of them
    (docs/log.md). From how parts look and where they lie, all things together teach it to paint. These tokens come
    after a caption's end, where padding sees all of it, and a linear layer reads them, as a UNet's attention does.
    """

    WEIGHT = 30.0

    def __init__(
        self, text_encoder: nn.Module, tokens: Tensor, options: Sequence[Sequence[Any]], answers: Sequence[list[int]],
        expected: Tensor, seed: int,
    ) -> None:  # fmt: skip
        """`expected` `[n, 48, k]` is what `expect_slots` makes of every caption; the rest is as in `CaptionTask`."""
        super().__init__(text_encoder, tokens, options, answers, seed)
        config: Any = text_encoder.config
        self.student["slots"] = nn.Linear(config.hidden_size, expected.shape[-1])
        self.averaged = copy.deepcopy(self.student)
        self._expected = expected

    def loss(self, counters: range) -> Loss:
        return Loss.from_mean(self.compute(self.student, torch.tensor(self._order(counters))), counters)

    def compute(self, network: nn.ModuleDict, index: Tensor) -> Tensor:
        """Returns the mean loss on the captions of these numbers, on the network's device."""
        device = next(network.parameters()).device
        tokens, answers, expected = (x[index].to(device) for x in (self._tokens, self._answers, self._expected))
        text = network["text_encoder"](tokens)[0]
        words = tokens.shape[1] - expected.shape[1]
        stated = compute_caption_loss(self.read(network, tokens[:, :words], text[:, :words]), answers)
        error: Tensor = network["slots"](text[:, words:]).float() - expected.float()
        return stated + self.WEIGHT * error.square().mean()


_PLACES = [(name, i) for count, names in ARRANGEMENTS.items() for name in names for i in range(count)]
_WAVES = (0.5, 1.0, 2.0)


def expect_slots(prompt: GalleryPrompt) -> Tensor:
    """Returns `[48, 90]`, for each of the sixteen parts of each of three things: how it looks, where in the picture it
    lies as it is drawn and mirrored, whether the thing is small or big, at which place of which arrangement, on which
    ground and there at all: means over what is left open."""
    if prompt.things is None:
        counted = [GalleryPrompt((Asked(),) * count, None, prompt.ground) for count in ARRANGEMENTS]
        return torch.stack([expect_slots(each) for each in counted]).mean(0)
    ground = list_shares(prompt.ground, GROUNDS)
    layouts = list_layouts(prompt)
    slots = []
    for i, asked in enumerate(prompt.things):
        places = Counter((arrangement, order.index(i)) for arrangement, order in layouts)
        sizes = list_shares(asked.size, SIZES)
        stood = torch.tensor([[sizes[j] * places[place] / len(layouts) for j in range(2)] for place in _PLACES])
        told = torch.tensor([*stood.sum(0).tolist(), *stood.sum(1).tolist(), *ground, 1.0])
        waves = (list_waves() * stood[..., None, None]).sum((0, 1))
        slots.append(torch.cat([_look(asked), waves, told.expand(PATCHES**2, -1)], dim=1))
    slots += [torch.zeros_like(slots[0])] * (_MOST - len(slots))
    return torch.cat(slots)


def list_shares(stated: str | None, options: tuple[str, ...]) -> list[float]:
    """Returns how likely each of the options is."""
    law = spread_evenly(stated, options)
    return [law.get(option, 0.0) for option in options]


@functools.cache
def _look(asked: Asked) -> Tensor:
    """Returns `[16, 48]`, how a thing that is asked for looks on the whole."""
    names = [asked.name] if asked.name else group_by_kind().get(asked.kind or "", list_names())
    return list_looks()[[list_names().index(name) for name in names]].mean(0)


@functools.cache
def list_waves() -> Tensor:
    """Returns `[14, 2, 16, 18]`, for each place and size of a thing where its parts lie: sines and cosines of the
    column as drawn, of the column mirrored, and of the row."""
    offsets = (torch.arange(PATCHES) + 0.5) / PATCHES - 0.5
    rows, columns = torch.meshgrid(offsets, offsets, indexing="ij")
    waves = []
    for arrangement, i in _PLACES:
        for size in SIZES:
            x, y, length = expect_placement(arrangement, i, size)
            at = torch.stack([x + columns * length, x - columns * length, y + rows * length], dim=-1).reshape(-1, 3)
            angles = 2 * torch.pi * at[..., None] / SIDE * torch.tensor(_WAVES)
            waves.append(torch.cat([angles.sin(), angles.cos()], dim=-1).reshape(PATCHES**2, -1))
    return torch.stack(waves).reshape(len(_PLACES), len(SIZES), PATCHES**2, -1)
