"""The scenes world: pure functions of their index, splits that hold apart, captions that mean what they state."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from fewstep.data.worlds.drawing import BACKGROUND_RGB, COLOUR_RGB
from fewstep.data.worlds.scene import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, SIZES, Scene, Thing
from fewstep.data.worlds.scenes import HELD_OUT_PAIRS, SceneExamples, Scenes

SPLITS = ("train", "seen", "unseen", "all")


def pairs(scene: Scene) -> set[tuple[str, str]]:
    return {(thing.shape, thing.colour) for thing in scene.things}


@pytest.mark.parametrize("split", SPLITS)
def test_a_picture_is_a_pure_function_of_seed_split_and_index(split):
    scenes = Scenes(seed=3, split=split)
    backwards = {i: scenes[i] for i in reversed(range(20))}
    for i in range(20):
        again = Scenes(seed=3, split=split)[i]
        assert again.image.tobytes() == backwards[i].image.tobytes()
        assert (again.caption, again.scene, again.prompt) == (
            backwards[i].caption,
            backwards[i].scene,
            backwards[i].prompt,
        )
        assert scenes.prompt(i) == (again.caption, again.prompt)


def test_another_seed_split_or_index_gives_other_pictures():
    streams = [Scenes(seed=seed, split=split) for seed in (0, 1) for split in SPLITS]
    pictures = [stream[i].image.tobytes() for stream in streams for i in range(60)]
    assert len(set(pictures)) == len(pictures)


def test_the_captions_that_trained_models_were_given_stay_the_same():
    assert {split: [Scenes(seed=7, split=split).prompt(i)[0] for i in (0, 3)] for split in SPLITS} == {
        "train": ["a large orange triangle on black", "a pink circle against a black background"],
        "seen": [
            "a tiny purple heart against a grey background",
            "a large red circle above a tiny red cross against a grey background",
        ],
        "unseen": [
            "a large pink star below a big yellow triangle on a black background",
            "a red cross to the left of a pink star",
        ],
        "all": [
            "a red square to the left of a small cyan ring against a white background",
            "a tiny yellow ring to the left of an orange circle on grey",
        ],
    }


def test_a_fifth_of_the_pairs_is_held_out_with_every_shape_and_colour_among_them():
    every = {(shape, colour) for shape in SHAPES for colour in COLOURS}
    assert every >= HELD_OUT_PAIRS
    assert len(every) == 64
    assert len(HELD_OUT_PAIRS) == 13
    assert abs(len(HELD_OUT_PAIRS) / len(every) - 0.20) < 0.01
    assert {shape for shape, _ in HELD_OUT_PAIRS} == set(SHAPES)
    assert {colour for _, colour in HELD_OUT_PAIRS} == set(COLOURS)


def drawn(split: str, count: int = 3000) -> list[Scene]:
    """What the captions state; every shape and colour is always among it."""
    scenes = Scenes(seed=11, split=split)
    return [scenes.prompt(i)[1] for i in range(count)]


@pytest.mark.parametrize("split", ["train", "seen"])
def test_training_pictures_hold_no_held_out_pair_and_all_others(split):
    met = set().union(*map(pairs, drawn(split)))
    assert not met & HELD_OUT_PAIRS
    assert len(met) == 64 - 13


def test_unseen_pictures_hold_a_held_out_pair_each():
    scenes = drawn("unseen")
    assert all(pairs(scene) & HELD_OUT_PAIRS for scene in scenes)
    assert set().union(*map(pairs, scenes)) >= HELD_OUT_PAIRS


def test_all_draws_every_pair_and_every_other_attribute_about_equally_often():
    scenes = [Scenes(seed=2, split="all")[i].scene for i in range(400)]
    for counts, kinds in (
        (Counter(len(scene.things) for scene in scenes), 2),
        (Counter(scene.background for scene in scenes), len(BACKGROUNDS)),
        (Counter(scene.relation for scene in scenes if scene.relation), len(RELATIONS)),
        (Counter(thing.size for scene in scenes for thing in scene.things), len(SIZES)),
        (Counter(thing.shape for scene in scenes for thing in scene.things), len(SHAPES)),
        (Counter(thing.colour for scene in scenes for thing in scene.things), len(COLOURS)),
    ):
        total = sum(counts.values())
        assert len(counts) == kinds
        spread = 5 * (total * (1 / kinds) * (1 - 1 / kinds)) ** 0.5  # five standard deviations
        assert all(abs(count - total / kinds) < spread for count in counts.values())
    assert set().union(*map(pairs, drawn("all"))) == {(shape, colour) for shape in SHAPES for colour in COLOURS}


SIZE_OF = {"small": "small", "little": "small", "tiny": "small", "large": "large", "big": "large"}
# What stands first in the words, and whether that is the scene's first thing.
RELATION_OF = {
    "left of": ("left of", True),
    "to the left of": ("left of", True),
    "right of": ("left of", False),
    "to the right of": ("left of", False),
    "above": ("above", True),
    "over": ("above", True),
    "below": ("above", False),
    "under": ("above", False),
}
THING = r"an? (?:(?:small|little|tiny|large|big) )?[a-z]+ [a-z]+"
CAPTION = re.compile(
    rf"(?P<one>{THING})(?: (?P<relation>{'|'.join(RELATION_OF)}) (?P<two>{THING}))?"
    r"(?: on (?P<bare>white|grey|black)| (?:on|against) a (?P<ground>white|grey|black) background)?"
)


def read_caption(caption: str) -> Scene:
    """What a caption says, read from its words alone."""
    match = CAPTION.fullmatch(caption)
    assert match, caption
    things = [read_thing(match[name]) for name in ("one", "two") if match[name]]
    relation = None
    if match["relation"]:
        relation, in_order = RELATION_OF[match["relation"]]
        things = things if in_order else things[::-1]
    return Scene(tuple(things), relation, match["bare"] or match["ground"])


def read_thing(words: str) -> Thing:
    article, *attributes = words.split()
    assert article == ("an" if attributes[0][0] in "aeiou" else "a"), words
    size = SIZE_OF[attributes.pop(0)] if attributes[0] in SIZE_OF else None
    colour, shape = attributes
    assert colour in COLOURS
    assert shape in SHAPES
    return Thing(shape, colour, size)


def test_a_caption_states_what_its_prompt_says_in_every_wording():
    wordings = Counter()
    for split in SPLITS:
        scenes = Scenes(seed=5, split=split)
        for i in range(500):
            caption, prompt = scenes.prompt(i)
            assert read_caption(caption) == prompt, caption
            match = CAPTION.fullmatch(caption)
            wordings.update([match["relation"], *(word for word in caption.split() if word in SIZE_OF)])
    assert set(RELATION_OF) | set(SIZE_OF) <= set(wordings)


def test_a_caption_leaves_out_but_never_lies():
    pictures = [Scenes(seed=6, split="all")[i] for i in range(300)]
    for picture in pictures:
        assert picture.scene.agrees_with(picture.prompt)
        assert picture.scene.background
        assert all(thing.size for thing in picture.scene.things)
    stated = [thing.size is not None for picture in pictures for thing in picture.prompt.things]
    assert 0.6 < sum(stated) / len(stated) < 0.8
    assert 0.85 < sum(picture.prompt.background is not None for picture in pictures) / 300 < 0.95


def test_a_scene_agrees_with_what_a_prompt_states_and_leaves_open():
    star, ring = Thing("star", "red", "small"), Thing("ring", "blue", "large")
    scene = Scene((star, ring), "left of", "black")
    open_star, open_ring = replace(star, size=None), replace(ring, size=None)
    agreed = [
        scene,
        replace(scene, background=None),
        replace(scene, things=(open_star, ring)),
        Scene((open_star, open_ring), "left of", None),
    ]
    denied = [
        replace(scene, background="white"),
        replace(scene, relation="above"),
        replace(scene, relation=None),
        replace(scene, things=(ring, star)),
        replace(scene, things=(replace(star, size="large"), ring)),
        replace(scene, things=(open_star, replace(open_ring, colour="red"))),
        replace(scene, things=(open_star, replace(open_ring, shape="star"))),
        Scene((star,), None, None),
    ]
    assert all(scene.agrees_with(prompt) for prompt in agreed)
    assert not any(scene.agrees_with(prompt) for prompt in denied)
    assert Scene((star,), None, "black").agrees_with(Scene((open_star,), None, None))
    assert not Scene((star,), None, "black").agrees_with(scene)


def shown(image: Image.Image, background: str) -> np.ndarray:
    """Which pixels `[64, 64]` are clearly not background."""
    pixels = np.asarray(image).astype(int)
    return np.abs(pixels - BACKGROUND_RGB[background]).max(axis=-1) > 45


def runs(filled: np.ndarray) -> list[tuple[int, int]]:
    """Where a row of truth values is true: first and one past the last, for every run."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], filled.astype(int), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def nearest(pixels: np.ndarray, colours: dict[str, tuple[int, int, int]]) -> str:
    middle = np.median(pixels.reshape(-1, 3), axis=0)
    return min(colours, key=lambda name: np.abs(middle - colours[name]).sum())


def test_a_picture_shows_its_things_in_their_colours_and_places():
    extents: dict[tuple[str, str], list[int]] = {}
    scenes = Scenes(seed=9, split="all")
    for i in range(400):
        picture = scenes[i]
        scene, image = picture.scene, picture.image
        assert (image.mode, image.size) == ("RGB", (64, 64))
        pixels = np.asarray(image)
        corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1]]
        assert nearest(corners, BACKGROUND_RGB) == scene.background
        filled = shown(image, str(scene.background))
        if scene.relation == "above":  # turned, so that the things stand side by side in every case
            filled, pixels = filled.T, pixels.transpose(1, 0, 2)
        columns = runs(filled.any(axis=0))
        assert len(columns) == len(scene.things), picture.caption
        assert all(left[1] < right[0] for left, right in pairwise(columns))
        for thing, (start, end) in zip(scene.things, columns, strict=True):
            assert nearest(pixels[:, start:end][filled[:, start:end]], COLOUR_RGB) == thing.colour, picture.caption
            (top, bottom), *others = runs(filled[:, start:end].any(axis=1))
            assert not others
            extents.setdefault((thing.shape, str(thing.size)), []).append(max(end - start, bottom - top))
    for shape in SHAPES:
        assert max(extents[shape, "small"]) < min(extents[shape, "large"])


def test_scene_examples_are_the_first_so_many_scenes():
    scenes = Scenes(seed=4)
    examples = SceneExamples(scenes, 5)
    assert len(examples) == 5
    assert [examples.read(i).caption for i in range(5)] == [scenes[i].caption for i in range(5)]
    for index in (-1, 5):
        with pytest.raises(IndexError):
            examples.read(index)
