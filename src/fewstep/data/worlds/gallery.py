"""The gallery: real artwork on procedural grounds, with captions from exact to vague; 64×64, every attribute known."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from fewstep.data.worlds.gallery_art import Hand, find_kind, group_by_kind, list_artworks, list_names
from fewstep.data.worlds.gallery_drawing import Placement, draw_gallery_scene
from fewstep.data.worlds.gallery_scene import (
    ARRANGEMENTS,
    GROUNDS,
    NEXT_TO,
    SIZES,
    Asked,
    GalleryPrompt,
    GalleryScene,
    GalleryThing,
    list_layouts,
)

Split = Literal["train", "test", "held-out"]
"""`train` and `test` are disjoint streams; `held-out` shows the things that neither shows, and captions name them."""
Level = Literal["exact", "partial", "kind", "open"]
LEVELS: dict[Level, float] = {"exact": 0.4, "partial": 0.25, "kind": 0.2, "open": 0.15}
"""How much a caption states, and how often captions are of that level."""
_STATED = 0.3
"""How often a caption that is not exact states a size, the arrangement or the ground, each by itself."""
_EMPTY = 0.2
"""How often an open caption says nothing at all."""


@dataclass(frozen=True)
class GalleryPicture:
    """A picture with its caption, its scene and where its things are, and what the caption states."""

    image: Image.Image
    caption: str
    scene: GalleryScene
    placements: tuple[Placement, ...]
    prompt: GalleryPrompt


@dataclass(frozen=True)
class Gallery:
    """An endless sequence: `Gallery(seed=s, split=p)[i]` is a pure function of (s, p, i) for every i ≥ 0.

    In another `hand`, the same (s, p, i) gives the same scene, caption, ground and places. `level` fixes the level of
    all captions.
    """

    seed: int = 0
    split: Split = "train"
    hand: Hand = "noto"
    level: Level | None = None

    def __getitem__(self, index: int) -> GalleryPicture:
        rng = self._rng(index)
        scene, prompt, caption = self._describe(rng)
        image, placements = draw_gallery_scene(scene, rng, self.hand)
        return GalleryPicture(image, caption, scene, placements, prompt)

    def prompt(self, index: int) -> tuple[str, GalleryPrompt]:
        """Returns the caption of picture `index` and what it states, without drawing the picture."""
        _, prompt, caption = self._describe(self._rng(index))
        return caption, prompt

    def _describe(self, rng: random.Random) -> tuple[GalleryScene, GalleryPrompt, str]:
        scene = draw_scene_attributes(rng, self.split)
        level = self.level or rng.choices(list(LEVELS), list(LEVELS.values()))[0]
        prompt = _ask(rng, scene, "partial" if self.split == "held-out" and level in ("kind", "open") else level)
        return scene, prompt, write_gallery_caption(rng, prompt)

    def _rng(self, index: int) -> random.Random:
        return random.Random(f"gallery {self.split} {self.seed} {index}")


def draw_scene_attributes(rng: random.Random, split: Split) -> GalleryScene:
    """Draws a scene: number, things (all different), sizes, arrangement and ground, uniformly and independently."""
    names = [artwork.name for artwork in list_artworks(held_out=True)] if split == "held-out" else list_names()
    count = rng.choice(list(ARRANGEMENTS))
    things = tuple(GalleryThing(name, rng.choice(SIZES)) for name in rng.sample(names, count))
    return GalleryScene(things, rng.choice(ARRANGEMENTS[count]), rng.choice(GROUNDS))


def draw_agreeing_scene(rng: random.Random, prompt: GalleryPrompt) -> GalleryScene:
    """Draws one of the scenes that agree with `prompt`, all equally likely but for the number of things, if open."""
    asked = prompt.things if prompt.things is not None else (Asked(),) * rng.choice(list(ARRANGEMENTS))
    layouts = list_layouts(GalleryPrompt(asked, prompt.arrangement, prompt.ground))
    arrangement, order = rng.choice(layouts)
    while True:
        names = [each.name or rng.choice(group_by_kind().get(each.kind or "", list_names())) for each in asked]
        if len(set(names)) == len(names):
            break
    things = [GalleryThing(name, each.size or rng.choice(SIZES)) for name, each in zip(names, asked, strict=True)]
    return GalleryScene(tuple(things[i] for i in order), arrangement, prompt.ground or rng.choice(GROUNDS))


def _ask(rng: random.Random, scene: GalleryScene, level: Level) -> GalleryPrompt:
    """Draws what a caption of that level states of the scene; which attributes it states never hangs on their values.

    Things whose order is not stated are asked for in a random one.
    """
    if level == "open" and rng.random() < _EMPTY:
        return GalleryPrompt(None, None, None)
    exact = level == "exact"
    order = list(range(len(scene.things)))
    arrangement: str | None = scene.arrangement
    if not exact and (level == "open" or rng.random() >= _STATED):
        arrangement = None
        rng.shuffle(order)
    elif arrangement == "side by side" and not exact and rng.random() < 0.5:
        arrangement = NEXT_TO
        rng.shuffle(order)
    elif arrangement in _ROWS and rng.random() < 0.5:
        order = [order[i] for i in _ROWS[arrangement]]
    asked = []
    for thing in (scene.things[i] for i in order):
        size = thing.size if exact or (level == "partial" and rng.random() < _STATED) else None
        named = level in ("exact", "partial")
        kind = find_kind(thing.name) if level == "kind" else None
        asked.append(Asked(thing.name if named else None, kind, size))
    ground = scene.ground if exact or rng.random() < _STATED else None
    return GalleryPrompt(tuple(asked), arrangement, ground)


_ROWS = {"one above two": (0, 2, 1), "two above one": (1, 0, 2)}  # the row the other way round
_NUMBERS = {1: "one", 2: "two", 3: "three"}
_SIZE_WORDS = {"small": ("small", "little", "tiny"), "big": ("big", "large", "huge")}
_GROUND_WORDS = {
    "plain": ("on a plain background", "on a plain ground"),
    "gradient": ("on a gradient", "on a fading background"),
    "meadow": ("in a meadow", "on grass under a blue sky"),
    "night": ("at night", "on a night sky", "under the stars"),
    "checks": ("on checks", "on a checkered cloth"),
    "sand": ("on sand", "on the beach"),
}
_PLACE_WORDS = {
    "middle": ("in the middle", "in the centre"),
    "left": ("on the left",),
    "right": ("on the right",),
    "top": ("at the top",),
    "bottom": ("at the bottom",),
}
# The first half of the phrases names things in the order of the arrangement, the second half the other way round.
_PAIR_WORDS = {
    "side by side": (("left of", "to the left of"), ("right of", "to the right of")),
    "above": (("above", "over"), ("below", "under")),
    NEXT_TO: (("next to", "beside"), ("next to", "beside")),
}


def write_gallery_caption(rng: random.Random, prompt: GalleryPrompt) -> str:
    """Writes a caption that states the prompt and nothing else; which words it takes is random."""
    if prompt.things is None:
        return ""
    words = [*_join_things(rng, prompt.things, prompt.arrangement)]
    if prompt.ground is not None:
        words.append(rng.choice(_GROUND_WORDS[prompt.ground]))
    return " ".join(words)


def _join_things(rng: random.Random, things: tuple[Asked, ...], arrangement: str | None) -> list[str]:
    if arrangement in _PAIR_WORDS:
        first, second = (_describe(rng, thing) for thing in things)
        forwards, backwards = _PAIR_WORDS[arrangement]
        if rng.random() < 0.7:
            return [first, rng.choice(forwards), second]
        return [second, rng.choice(backwards), first]
    if arrangement in _ROWS:
        upper, lower = (things[:1], things[1:]) if arrangement == "one above two" else (things[:2], things[2:])
        above, below = _list_things(rng, upper), _list_things(rng, lower)
        return [above, "above", below] if rng.random() < 0.7 else [below, "below", above]
    words = [_list_things(rng, things)]
    return [*words, rng.choice(_PLACE_WORDS[arrangement])] if arrangement in _PLACE_WORDS else words


def _list_things(rng: random.Random, things: tuple[Asked, ...]) -> str:
    """Lists things: "a cat, a dog and a small tree"; "two animals", "three things" where nothing tells them apart."""
    if len(set(things)) == 1 and things[0].name is None and things[0].size is None:
        noun = things[0].kind or "thing"
        if len(things) == 1 and things[0].kind:
            return _describe(rng, things[0])
        plural = noun if len(things) == 1 else _to_plural(noun)
        return f"{_NUMBERS[len(things)]} {plural}"
    words = [_describe(rng, thing) for thing in things]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _to_plural(noun: str) -> str:
    head, of, rest = noun.partition(" of ")
    return f"{head}s{of}{rest}"


def _describe(rng: random.Random, thing: Asked) -> str:
    size = [rng.choice(_SIZE_WORDS[thing.size])] if thing.size else []
    words = [*size, thing.name or thing.kind or "thing"]
    article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([article, *words])
