"""The things of the gallery world as artists drew them: names, kinds and pictures, from the bundled atlases."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from fewstep import assets

FOLDER = assets.GALLERY_ART
CELL = 64
"""Side in pixels of a thing in an atlas, which its longer side fills."""
COLUMNS = 16

Hand = Literal["noto", "twemoji"]
"""Says whose drawing it is: Noto's, which the world shows, or Twemoji's, a style to learn."""
ATLASES: dict[str, Path] = {name: FOLDER / f"{name}.webp" for name in ("noto", "twemoji", "held-out")}


@dataclass(frozen=True)
class Artwork:
    """One thing by its plain name ("pair of glasses") and its kind ("piece of clothing")."""

    name: str
    kind: str
    held_out: bool


@functools.cache
def list_artworks(*, held_out: bool = False) -> tuple[Artwork, ...]:
    """Returns the things that the world draws, or those that it keeps back, in the order of their atlas."""
    listed = json.loads((FOLDER / "things.json").read_text())
    artworks = (Artwork(each["name"], each["kind"], each.get("held_out", False)) for each in listed)
    return tuple(artwork for artwork in artworks if artwork.held_out == held_out)


@functools.cache
def list_names() -> tuple[str, ...]:
    """Returns the names of the things that the world draws."""
    return tuple(artwork.name for artwork in list_artworks())


@functools.cache
def group_by_kind() -> dict[str, tuple[str, ...]]:
    """Returns the names of the things of each kind."""
    kinds: dict[str, tuple[str, ...]] = {}
    for artwork in list_artworks():
        kinds[artwork.kind] = (*kinds.get(artwork.kind, ()), artwork.name)
    return kinds


@functools.cache
def find_kind(name: str) -> str:
    """Returns the kind of the thing of that name."""
    return next(kind for kind, names in group_by_kind().items() if name in names)


@functools.cache
def load_drawings(hand: Hand) -> dict[str, Image.Image]:
    """Returns every thing's drawing by its name, 64×64 with premultiplied alpha (RGBa); held-out ones in Noto's hand.

    Scaling premultiplied colours keeps what is transparent from staining the edges.
    """
    drawings = _cut_atlas(hand, list_artworks())
    return drawings | _cut_atlas("held-out", list_artworks(held_out=True)) if hand == "noto" else drawings


def _cut_atlas(name: str, artworks: tuple[Artwork, ...]) -> dict[str, Image.Image]:
    with Image.open(ATLASES[name]) as file:
        sheet = file.convert("RGBA").convert("RGBa")
    corners = [(i % COLUMNS * CELL, i // COLUMNS * CELL) for i in range(len(artworks))]
    return {
        artwork.name: sheet.crop((x, y, x + CELL, y + CELL)) for artwork, (x, y) in zip(artworks, corners, strict=True)
    }
