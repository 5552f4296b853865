"""A world of captioned 64×64 pictures whose every attribute is known, so that obedience can be measured."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Literal

from PIL import Image

from fewstep.data.scene_drawing import Look, draw_scene

SHAPES = ("circle", "square", "triangle", "star", "ring", "diamond", "cross", "heart")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SIZES = ("small", "large")
BACKGROUNDS = ("white", "grey", "black")
RELATIONS = ("left of", "above")

# 13 of the 64 pairs (20 %), each shape and each colour at least once: never drawn in training.
HELD_OUT_PAIRS = frozenset(
    [(shape, COLOURS[(3 * i + 2) % 8]) for i, shape in enumerate(SHAPES)]
    + [(shape, COLOURS[(3 * i + 6) % 8]) for i, shape in enumerate(SHAPES[:5])]
)

Split = Literal["train", "seen", "unseen", "all"]
"""`train` and `seen` draw no held-out pair (from disjoint streams), `unseen` draws at least one in every
picture, `all` draws any pair."""


@dataclass(frozen=True)
class Thing:
    """One object; as part of a prompt, `size` is None where the words leave it open."""

    shape: str
    colour: str
    size: str | None


@dataclass(frozen=True)
class Scene:
    """One or two things; `things[0]` stands left of or above `things[1]`.

    As a prompt, `background` is None where the words leave it open; `relation` is None for one thing.
    """

    things: tuple[Thing, ...]
    relation: str | None
    background: str | None

    def agrees_with(self, prompt: Scene) -> bool:
        """Whether every attribute that `prompt` states is right in this scene."""
        return (
            len(self.things) == len(prompt.things)
            and self.relation == prompt.relation
            and prompt.background in (None, self.background)
            and all(
                (mine.shape, mine.colour) == (said.shape, said.colour) and said.size in (None, mine.size)
                for mine, said in zip(self.things, prompt.things, strict=True)
            )
        )


@dataclass(frozen=True)
class ScenePicture:
    """A picture, what a person would say of it, all that is in it, and the part of that which was said."""

    image: Image.Image
    caption: str
    scene: Scene
    prompt: Scene


@dataclass(frozen=True)
class Scenes:
    """`Scenes(seed=s, split=p)[i]` is a pure function of (s, p, i); every i ≥ 0 exists.

    In another `look` the same (s, p, i) is the same scene with the same caption.
    """

    seed: int = 0
    split: Split = "train"
    look: Look = "plain"

    def __getitem__(self, index: int) -> ScenePicture:
        rng = self._rng(index)
        scene = draw_attributes(rng, self.split)
        prompt, caption = say(rng, scene)
        return ScenePicture(draw_scene(scene, rng, self.look), caption, scene, prompt)

    def prompt(self, index: int) -> tuple[str, Scene]:
        """The caption of picture `index` and what it states, without drawing the picture."""
        rng = self._rng(index)
        prompt, caption = say(rng, draw_attributes(rng, self.split))
        return caption, prompt

    def _rng(self, index: int) -> random.Random:
        return random.Random(f"scenes {self.split} {self.seed} {index}")


def draw_attributes(rng: random.Random, split: Split) -> Scene:
    """A scene with every attribute set, uniform over what `split` allows."""
    while True:
        count = rng.choice((1, 2))
        things = tuple(Thing(rng.choice(SHAPES), rng.choice(COLOURS), rng.choice(SIZES)) for _ in range(count))
        relation = rng.choice(RELATIONS) if count == 2 else None
        background = rng.choice(BACKGROUNDS)
        held_out = any((thing.shape, thing.colour) in HELD_OUT_PAIRS for thing in things)
        if split == "all" or held_out == (split == "unseen"):
            return Scene(things, relation, background)


_SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big")}
_RELATION_WORDS = {
    "left of": (("left of", "to the left of"), ("right of", "to the right of")),
    "above": (("above", "over"), ("below", "under")),
}
_BACKGROUND_WORDS = ("on a {} background", "against a {} background", "on {}")


def say(rng: random.Random, scene: Scene) -> tuple[Scene, str]:
    """A caption for `scene`, which may leave sizes and background open, and exactly what it states."""
    things = tuple(replace(thing, size=thing.size if rng.random() < 0.7 else None) for thing in scene.things)
    background = scene.background if rng.random() < 0.9 else None
    words = [_say_thing(rng, thing) for thing in things]
    caption = words[0]
    if scene.relation:
        forwards, backwards = _RELATION_WORDS[scene.relation]
        if rng.random() < 0.7:
            caption = f"{words[0]} {rng.choice(forwards)} {words[1]}"
        else:
            caption = f"{words[1]} {rng.choice(backwards)} {words[0]}"
    if background:
        caption += " " + rng.choice(_BACKGROUND_WORDS).format(background)
    return Scene(things, scene.relation, background), caption


def _say_thing(rng: random.Random, thing: Thing) -> str:
    words = [rng.choice(_SIZE_WORDS[thing.size])] if thing.size else []
    words += [thing.colour, thing.shape]
    article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([article, *words])


@dataclass(frozen=True)
class SceneExamples:
    """The first `count` scenes, as a training set."""

    scenes: Scenes
    count: int

    def __len__(self) -> int:
        return self.count

    @property
    def shard_sizes(self) -> tuple[int]:
        return (self.count,)

    def __getitem__(self, index: int) -> ScenePicture:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return self.scenes[index]

    def read(self, index: int) -> ScenePicture:
        return self[index]

    def key(self, index: int) -> str:
        return f"scene {index}"

    def caption(self, index: int) -> str:
        return self.scenes.prompt(index)[0]
