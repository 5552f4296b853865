"""Draws a scene with Pillow at four times its size, and reduces it."""

from __future__ import annotations

import math
import random

from PIL import Image, ImageDraw

from fewstep.data.worlds.scene import Look, Scene

SIDE = 64
"""Side of a picture in pixels."""
_SCALE = 4
_REACH = 1.15  # no shape extends further than this many radii from its centre (but the heart, by a thousandth)

RGB = tuple[int, int, int]
COLOUR_RGB: dict[str, RGB] = {
    "red": (216, 38, 38),
    "orange": (244, 134, 24),
    "yellow": (248, 218, 40),
    "green": (40, 152, 62),
    "cyan": (60, 205, 215),
    "blue": (36, 72, 210),
    "purple": (122, 48, 170),
    "pink": (250, 140, 190),
}
BACKGROUND_RGB: dict[str, RGB] = {"white": (246, 246, 246), "grey": (128, 128, 128), "black": (14, 14, 14)}
_RADII = {"small": (6.5, 8.0), "large": (11.0, 13.0)}

_STRAY = 3.0

Placement = tuple[float, float, float]
"""Centre x, centre y and radius, in pixels of the finished picture."""


def draw_scene(scene: Scene, rng: random.Random, look: Look = "plain") -> Image.Image:
    """Draws an RGB picture of `scene`, whose attributes must all be set; position, angle and shade are random."""
    background = _vary_colour(BACKGROUND_RGB[str(scene.background)], rng, 5)
    places = _draw_placements(scene, rng, look)
    canvas = Image.new("RGB", (SIDE * _SCALE, SIDE * _SCALE), background)
    for thing, place in zip(scene.things, places, strict=True):
        draw_shape(canvas, thing.shape, _vary_colour(COLOUR_RGB[thing.colour], rng, 10), background, place, rng)
    return canvas.reduce(_SCALE)


def _draw_placements(scene: Scene, rng: random.Random, look: Look) -> list[Placement]:
    """Places one thing in the middle, two in the middle of their halves, each up to `_STRAY` pixels off."""
    places = []
    for i, thing in enumerate(scene.things):
        radius = rng.uniform(*_RADII[str(thing.size)])
        across = SIDE / 2 + rng.uniform(-_STRAY, _STRAY)
        if look == "leaning":
            across += SIDE / 2 - _STRAY - 1 - radius * _REACH  # leaves one pixel to the edge at the largest stray
        if scene.relation is None:
            along = SIDE / 2 + rng.uniform(-_STRAY, _STRAY)
        else:
            stray = min(_STRAY, SIDE / 4 - 1 - radius * _REACH)  # a pixel from the edge, two between the things
            along = SIDE * (1 + 2 * i) / 4 + rng.uniform(-stray, stray)
        places.append((across, along, radius) if scene.relation == "above" else (along, across, radius))
    return places


def draw_shape(
    canvas: Image.Image, shape: str, colour: RGB, background: RGB, place: Placement, rng: random.Random
) -> None:
    """Draws one filled shape on the enlarged canvas, turned by up to 10 degrees."""
    x, y, radius = (value * _SCALE for value in place)
    angle = math.radians(rng.uniform(-10, 10))
    draw = ImageDraw.Draw(canvas)
    if shape in ("circle", "ring"):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
        if shape == "ring":
            hole = 0.52 * radius
            draw.ellipse((x - hole, y - hole, x + hole, y + hole), fill=background)
        return
    turned = [
        (
            x + radius * (u * math.cos(angle) - v * math.sin(angle)),
            y + radius * (u * math.sin(angle) + v * math.cos(angle)),
        )
        for u, v in _OUTLINES[shape]
    ]
    draw.polygon(turned, fill=colour)


def _radial(*radii_and_degrees: tuple[float, float]) -> list[tuple[float, float]]:
    return [(r * math.sin(math.radians(d)), -r * math.cos(math.radians(d))) for r, d in radii_and_degrees]


def _heart() -> list[tuple[float, float]]:
    turns = [2 * math.pi * i / 48 for i in range(48)]
    return [
        (
            1.05 * math.sin(p) ** 3,
            -(13 * math.cos(p) - 5 * math.cos(2 * p) - 2 * math.cos(3 * p) - math.cos(4 * p)) / 15.5 - 0.1,
        )
        for p in turns
    ]


# Corners in units of the radius, y pointing down.
_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
    "triangle": _radial((1.1, 0), (1.1, 120), (1.1, 240)),
    "star": _radial(*[(1.15 if i % 2 == 0 else 0.45, 36.0 * i) for i in range(10)]),
    "diamond": [(0.0, -1.15), (0.7, 0.0), (0.0, 1.15), (-0.7, 0.0)],
    "cross": [
        (-0.34, -1.0), (0.34, -1.0), (0.34, -0.34), (1.0, -0.34), (1.0, 0.34), (0.34, 0.34),
        (0.34, 1.0), (-0.34, 1.0), (-0.34, 0.34), (-1.0, 0.34), (-1.0, -0.34), (-0.34, -0.34),
    ],
    "heart": _heart(),
}  # fmt: skip


def _vary_colour(colour: RGB, rng: random.Random, spread: int) -> RGB:
    red, green, blue = (min(255, max(0, c + rng.randint(-spread, spread))) for c in colour)
    return red, green, blue
