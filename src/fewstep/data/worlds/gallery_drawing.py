"""Draws a scene of the gallery with Pillow at twice its size, and reduces it."""

from __future__ import annotations

import colorsys
import math
import random

from PIL import Image, ImageDraw

from fewstep.data.worlds.gallery_art import CELL, Hand, load_drawings
from fewstep.data.worlds.gallery_scene import GalleryScene

SIDE = 64
"""Side of a picture in pixels."""
_SCALE = 2
_WIDE = SIDE * _SCALE
_TURN = 10.0
_SPREAD = math.cos(math.radians(_TURN)) + math.sin(math.radians(_TURN))  # of a square that is turned so far

_LENGTHS = {
    1: {"small": (24.0, 28.0), "big": (42.0, 47.0)},
    2: {"small": (19.0, 22.0), "big": (27.5, 30.0)},
    3: {"small": (18.0, 20.0), "big": (26.0, 28.0)},
}
"""A thing's longer side in pixels, by the number of things."""
_SPOTS = {
    "middle": [(0.5, 0.5)],
    "left": [(0.0, 0.5)],
    "right": [(1.0, 0.5)],
    "top": [(0.5, 0.0)],
    "bottom": [(0.5, 1.0)],
    "side by side": [(0.25, 0.5), (0.75, 0.5)],
    "above": [(0.5, 0.25), (0.5, 0.75)],
    "one above two": [(0.5, 0.25), (0.25, 0.75), (0.75, 0.75)],
    "two above one": [(0.25, 0.25), (0.75, 0.25), (0.5, 0.75)],
}
"""Where things stand, in parts of the side; 0 and 1 are as far out as a thing can go."""

Placement = tuple[float, float, float]
"""Centre x, centre y and longer side, in pixels of the finished picture."""
RGB = tuple[int, int, int]


def draw_gallery_scene(
    scene: GalleryScene, rng: random.Random, hand: Hand = "noto"
) -> tuple[Image.Image, tuple[Placement, ...]]:
    """Draws an RGB picture of `scene` and tells where its things are; angle, mirroring, stray and colours are random.

    The same draws give the same places, angles and ground in another hand.
    """
    canvas = _GROUNDS[scene.ground](rng)
    drawings = load_drawings(hand)
    placements: list[Placement] = []
    for thing, spot in zip(scene.things, _SPOTS[scene.arrangement], strict=True):
        length = rng.uniform(*_LENGTHS[len(scene.things)][thing.size])
        x, y = (_stray(at, length, len(scene.things), rng) for at in spot)
        place = (x, y, length)
        angle, mirrored = math.radians(rng.uniform(-_TURN, _TURN)), rng.random() < 0.5
        _paste(canvas, drawings[thing.name], place, angle, mirrored)
        placements.append(place)
    return canvas.reduce(_SCALE), tuple(placements)


def _stray(at: float, length: float, count: int, rng: random.Random) -> float:
    """Draws one coordinate of a centre around `at`, so that the thing stays in the picture, and in its own part of it.

    A single thing's place is told by how far out it is: at least two thirds of the way to an edge, or at most a sixth.
    """
    room = SIDE / 2 - length * _SPREAD / 2
    if count == 1:
        share = rng.uniform(-1 / 6, 1 / 6) if at == 0.5 else rng.uniform(2 / 3, 1) * (2 * at - 1)
        return SIDE / 2 + share * room
    stray = min(3.0, max(0.0, SIDE / 4 - length * _SPREAD / 2))
    return SIDE * at + rng.uniform(-stray, stray)


def expect_placement(arrangement: str, number: int, size: str) -> Placement:
    """Returns the mean placement of the thing of that number and size in an arrangement."""
    spots = _SPOTS[arrangement]
    low, high = _LENGTHS[len(spots)][size]
    length = (low + high) / 2
    if len(spots) > 1:
        x, y = (SIDE * at for at in spots[number])
    else:
        room = SIDE / 2 - length * _SPREAD / 2
        x, y = (SIDE / 2 + 5 / 6 * (2 * at - 1) * room for at in spots[number])
    return x, y, length


def _paste(canvas: Image.Image, drawing: Image.Image, place: Placement, angle: float, mirrored: bool) -> None:
    """Pastes a drawing, scaled and turned around its middle, on the enlarged canvas."""
    x, y, length = (value * _SCALE for value in place)
    half = math.ceil(length * _SPREAD / 2) + 1
    left, top = math.floor(x) - half, math.floor(y) - half
    # From a pixel (u, v) of the patch back to the drawing, whose middle lies at (x − left, y − top) of the patch.
    zoom = CELL / length
    flip = -1 if mirrored else 1
    a, b = flip * zoom * math.cos(angle), flip * zoom * math.sin(angle)
    d, e = -zoom * math.sin(angle), zoom * math.cos(angle)
    c, f = CELL / 2 - a * (x - left) - b * (y - top), CELL / 2 - d * (x - left) - e * (y - top)
    patch = drawing.transform(
        (2 * half + 1, 2 * half + 1), Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BICUBIC
    ).convert("RGBA")
    canvas.paste(patch, (left, top), patch)


def _colour(rng: random.Random, saturation: tuple[float, float], value: tuple[float, float]) -> RGB:
    return _to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value))


def _to_rgb(hue: float, saturation: float, value: float) -> RGB:
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue % 1, saturation, value))
    return red, green, blue


def _ramp(first: RGB, last: RGB, degrees: int) -> Image.Image:
    mask = Image.linear_gradient("L").resize((_WIDE, _WIDE)).rotate(degrees)
    return Image.composite(Image.new("RGB", mask.size, last), Image.new("RGB", mask.size, first), mask)


def _draw_plain(rng: random.Random) -> Image.Image:
    return Image.new("RGB", (_WIDE, _WIDE), _colour(rng, (0.05, 0.5), (0.7, 1.0)))


def _draw_gradient(rng: random.Random) -> Image.Image:
    hue = rng.random()
    first = _to_rgb(hue, rng.uniform(0.3, 0.6), rng.uniform(0.85, 1.0))
    last = _to_rgb(hue + rng.choice((-1, 1)) * rng.uniform(0.15, 0.35), rng.uniform(0.5, 0.8), rng.uniform(0.5, 0.75))
    return _ramp(first, last, rng.choice((0, 90, 180, 270)))


def _draw_meadow(rng: random.Random) -> Image.Image:
    hue = rng.uniform(0.53, 0.6)
    canvas = _ramp(_to_rgb(hue, rng.uniform(0.4, 0.6), 0.98), _to_rgb(hue, rng.uniform(0.1, 0.25), 1.0), 0)
    draw = ImageDraw.Draw(canvas)
    horizon, green = rng.uniform(0.5, 0.68) * _WIDE, rng.uniform(0.25, 0.34)
    for drop, value in ((0.0, 0.72), (0.1, 0.62)):  # a hill behind another
        middle, wide = rng.uniform(0.1, 0.9) * _WIDE, rng.uniform(1.2, 2.0) * _WIDE
        top = horizon + drop * _WIDE
        draw.ellipse((middle - wide, top, middle + wide, top + 2 * wide), fill=_to_rgb(green, 0.65, value))
    return canvas


def _draw_night(rng: random.Random) -> Image.Image:
    hue = rng.uniform(0.6, 0.72)
    canvas = _ramp(_to_rgb(hue, 0.8, rng.uniform(0.1, 0.2)), _to_rgb(hue, 0.65, rng.uniform(0.3, 0.42)), 0)
    draw = ImageDraw.Draw(canvas)
    for _ in range(rng.randint(14, 22)):
        x, y, radius = rng.uniform(0, _WIDE), rng.uniform(0, _WIDE), rng.uniform(0.6, 1.7)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_to_rgb(0.15, rng.uniform(0, 0.3), 1.0))
    return canvas


def _draw_checks(rng: random.Random) -> Image.Image:
    hue, saturation = rng.random(), rng.uniform(0.15, 0.5)
    canvas = Image.new("RGB", (_WIDE, _WIDE), _to_rgb(hue, saturation / 4, 1.0))
    draw, side, dark = ImageDraw.Draw(canvas), 16 * rng.uniform(0.9, 1.3), _to_rgb(hue, saturation, 0.8)
    across, down = (rng.uniform(-2, -1) * side for _ in "xy")
    for row in range(12):
        for column in range(row % 2, 12, 2):
            x, y = across + column * side, down + row * side
            draw.rectangle((round(x), round(y), round(x + side) - 1, round(y + side) - 1), fill=dark)
    return canvas


def _draw_sand(rng: random.Random) -> Image.Image:
    hue, value = rng.uniform(0.09, 0.125), rng.uniform(0.86, 0.96)
    canvas = _ramp(_to_rgb(hue, 0.35, value), _to_rgb(hue, 0.45, value - 0.08), 0)
    draw = ImageDraw.Draw(canvas)
    start, gap = rng.uniform(0, 20), rng.uniform(17, 23)
    for line in range(8):  # ripples
        phase, tall = rng.uniform(0, 7), rng.uniform(2, 4)
        points = [(x, start + line * gap + tall * math.sin(x / 14 + phase)) for x in range(-4, _WIDE + 8, 6)]
        draw.line(points, fill=_to_rgb(hue, 0.5, value - 0.13), width=2, joint="curve")
    for _ in range(rng.randint(40, 60)):  # grains
        x, y = rng.uniform(0, _WIDE), rng.uniform(0, _WIDE)
        draw.rectangle((x, y, x + 1, y + 1), fill=_to_rgb(hue, 0.5, value - rng.uniform(0.1, 0.3)))
    return canvas


_GROUNDS = {
    "plain": _draw_plain,
    "gradient": _draw_gradient,
    "meadow": _draw_meadow,
    "night": _draw_night,
    "checks": _draw_checks,
    "sand": _draw_sand,
}
