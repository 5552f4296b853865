"""A world of captioned 64×64 pictures whose attributes are all known, so that prompt adherence can be measured."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Literal

from PIL import Image

from fewstep.data.kind import SourceKind, SourceRequest
from fewstep.data.worlds.drawing import SIDE, draw_scene
from fewstep.data.worlds.examples import WorldExamples, check_request
from fewstep.data.worlds.scene import BACKGROUNDS, COLOURS, LOOKS, RELATIONS, SHAPES, SIZES, Look, Scene, Thing

# 13 of the 64 pairs (20 %), each shape and each colour at least once: never drawn in training.
HELD_OUT_PAIRS = frozenset(
    [(shape, COLOURS[(3 * i + 2) % 8]) for i, shape in enumerate(SHAPES)]
    + [(shape, COLOURS[(3 * i + 6) % 8]) for i, shape in enumerate(SHAPES[:5])]
)

Split = Literal["train", "seen", "unseen", "all"]
"""`train` and `seen` are disjoint streams without held-out pairs; every picture of `unseen` has one at least; `all`
draws any pair."""


@dataclass(frozen=True)
class ScenePicture:
    """A picture with its caption, its full scene, and the part of the scene that the caption states."""

    image: Image.Image
    caption: str
    scene: Scene
    prompt: Scene


@dataclass(frozen=True)
class Scenes:
    """An endless sequence: `Scenes(seed=s, split=p)[i]` is a pure function of (s, p, i) for every i ≥ 0.

    In another `look`, the same (s, p, i) gives the same scene with the same caption.
    """

    seed: int = 0
    split: Split = "train"
    look: Look = "plain"

    def __getitem__(self, index: int) -> ScenePicture:
        rng = self._rng(index)
        scene = draw_attributes(rng, self.split)
        prompt, caption = write_caption(rng, scene)
        return ScenePicture(draw_scene(scene, rng, self.look), caption, scene, prompt)

    def prompt(self, index: int) -> tuple[str, Scene]:
        """Returns the caption of picture `index` and what it states, without drawing the picture."""
        rng = self._rng(index)
        prompt, caption = write_caption(rng, draw_attributes(rng, self.split))
        return caption, prompt

    def _rng(self, index: int) -> random.Random:
        return random.Random(f"scenes {self.split} {self.seed} {index}")


def draw_attributes(rng: random.Random, split: Split) -> Scene:
    """Draws a scene with every attribute set, uniformly over what `split` allows."""
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


def write_caption(rng: random.Random, scene: Scene) -> tuple[Scene, str]:
    """Returns what a random caption of `scene` states, and the caption; it may leave sizes and background open."""
    things = tuple(replace(thing, size=thing.size if rng.random() < 0.7 else None) for thing in scene.things)
    background = scene.background if rng.random() < 0.9 else None
    words = [_describe_thing(rng, thing) for thing in things]
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


def _describe_thing(rng: random.Random, thing: Thing) -> str:
    words = [rng.choice(_SIZE_WORDS[thing.size])] if thing.size else []
    words += [thing.colour, thing.shape]
    article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([article, *words])


class SceneExamples(WorldExamples):
    """Scenes."""

    noun = "scene"


def open_scenes(request: SourceRequest) -> SceneExamples:
    """Opens the first scenes of a look. Raises UserError for filters, caption fields or another resolution."""
    check_request(request, "scenes", SIDE)
    return SceneExamples(Scenes(seed=request.seed, look=LOOKS[request.data]), request.count)


KIND = SourceKind(recognises=LOOKS.__contains__, open=open_scenes)
