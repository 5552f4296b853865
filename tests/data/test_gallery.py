"""The gallery: its pictures repeat exactly, its captions state what they say, and its laws are the true ones."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

from fewstep.data.worlds.gallery import LEVELS, Gallery, draw_agreeing_scene, write_gallery_caption
from fewstep.data.worlds.gallery_art import CELL, find_kind, group_by_kind, list_artworks, list_names, load_drawings
from fewstep.data.worlds.gallery_drawing import SIDE
from fewstep.data.worlds.gallery_scene import (
    ARRANGEMENTS,
    AXES,
    GROUNDS,
    NEXT_TO,
    Asked,
    GalleryPrompt,
    GalleryScene,
    GalleryThing,
    find_law,
    sort_cells,
)

CAT, PIZZA, DOG = Asked("cat"), Asked("pizza"), Asked("dog")


def test_artwork_is_whole():
    names = list_names()
    held_out = {artwork.name for artwork in list_artworks(held_out=True)}
    assert len(names) == len(set(names)) == 277
    assert len(held_out) == 24
    assert not held_out & set(names)
    assert load_drawings("twemoji").keys() == set(names)
    for drawing in load_drawings("noto").values():
        left, top, right, bottom = drawing.convert("RGBA").getchannel("A").getbbox()
        assert max(right - left, bottom - top) >= CELL - 1


def test_picture_is_a_pure_function_of_seed_split_and_index():
    first, again = Gallery(seed=5)[7], Gallery(seed=5)[7]
    assert first.image.tobytes() == again.image.tobytes()
    assert (first.caption, first.scene, first.prompt) == (again.caption, again.scene, again.prompt)
    assert first.image.size == (SIDE, SIDE)
    assert Gallery(seed=5, split="test")[7].scene != first.scene
    assert Gallery(seed=5).prompt(7) == (first.caption, first.prompt)


def test_another_hand_draws_the_same_scene_at_the_same_places():
    mine, other = Gallery(seed=1)[3], Gallery(seed=1, hand="twemoji")[3]
    assert (mine.scene, mine.placements, mine.caption) == (other.scene, other.placements, other.caption)
    assert mine.image.tobytes() != other.image.tobytes()


@pytest.mark.parametrize("level", LEVELS)
def test_captions_are_true_of_their_pictures(level):
    gallery = Gallery(seed=2, level=level)
    for i in range(300):
        scene, prompt, _ = gallery._describe(gallery._rng(i))
        assert prompt.agrees_with(scene), (scene, prompt)


def test_things_stay_inside_and_apart():
    for i in range(200):
        picture = Gallery(seed=3)[i]
        for x, y, length in picture.placements:
            assert length / 2 <= min(x, y, SIDE - x, SIDE - y)
        for (a, b, _), (c, d, _) in itertools.combinations(picture.placements, 2):
            assert abs(a - c) + abs(b - d) > 20


def test_held_out_things_are_never_drawn_unless_asked_for():
    held_out = {artwork.name for artwork in list_artworks(held_out=True)}
    kept_back = [Gallery(seed=0, split="held-out").prompt(i)[1] for i in range(20)]
    assert {thing.name for prompt in kept_back for thing in prompt.things} <= held_out


def scene(arrangement, *names, ground="sand", size="big"):
    return GalleryScene(tuple(GalleryThing(name, size) for name in names), arrangement, ground)


@pytest.mark.parametrize(
    ("prompt", "shown", "agrees"),
    [
        (GalleryPrompt((CAT, PIZZA), "side by side", None), scene("side by side", "cat", "pizza"), True),
        (GalleryPrompt((CAT, PIZZA), "side by side", None), scene("side by side", "pizza", "cat"), False),
        (GalleryPrompt((CAT, PIZZA), NEXT_TO, None), scene("side by side", "pizza", "cat"), True),
        (GalleryPrompt((CAT, PIZZA), NEXT_TO, None), scene("above", "pizza", "cat"), False),
        (GalleryPrompt((CAT, PIZZA), None, None), scene("above", "pizza", "cat"), True),
        (GalleryPrompt((CAT, PIZZA), None, None), scene("above", "dog", "cat"), False),
        (GalleryPrompt((CAT,), None, None), scene("above", "pizza", "cat"), False),
        (GalleryPrompt((CAT, PIZZA, DOG), "one above two", None), scene("one above two", "cat", "dog", "pizza"), True),
        (GalleryPrompt((CAT, PIZZA, DOG), "one above two", None), scene("one above two", "dog", "cat", "pizza"), False),
        (GalleryPrompt((Asked("cat", size="small"),), None, None), scene("left", "cat"), False),
        (GalleryPrompt((CAT,), None, "night"), scene("left", "cat"), False),
        (GalleryPrompt((Asked(kind="animal"), Asked(kind="meal")), None, None), scene("above", "pizza", "cat"), True),
        (
            GalleryPrompt((Asked(kind="animal"), Asked(kind="animal")), None, None),
            scene("above", "pizza", "cat"),
            False,
        ),
        (GalleryPrompt((Asked(), Asked()), None, None), scene("above", "pizza", "cat"), True),
        (GalleryPrompt(None, None, None), scene("above", "pizza", "cat"), True),
    ],
)
def test_agreement(prompt, shown, agrees):
    assert prompt.agrees_with(shown) is agrees
    assert (sort_cells(prompt, shown) is not None) is agrees


def test_laws_by_hand():
    law = find_law(GalleryPrompt((Asked(kind="animal"), PIZZA), NEXT_TO, "sand"))
    assert law["ground"] == {"sand": 1.0}
    assert law["place"] == {"side by side: animal, pizza": 0.5, "side by side: pizza, animal": 0.5}
    assert law["thing"]["pizza"] == 0.5
    assert law["thing"]["cat"] == pytest.approx(0.5 / len(group_by_kind()["animal"]))
    assert law["size"] == {"small": 0.5, "big": 0.5}
    alike = find_law(GalleryPrompt((Asked(), Asked(), Asked()), None, None))
    assert alike["place"] == dict.fromkeys(
        ("one above two: thing, thing, thing", "two above one: thing, thing, thing"), 0.5
    )
    anything = find_law(GalleryPrompt(None, None, None))
    assert anything["place"]["left: thing"] == pytest.approx(1 / 15)
    assert len(anything["ground"]) == len(GROUNDS)


@pytest.mark.parametrize(
    "prompt",
    [
        GalleryPrompt((CAT, Asked("pizza", size="big")), None, None),
        GalleryPrompt((Asked(kind="bug"), Asked(kind="bug"), Asked(kind="bird")), "two above one", None),
        GalleryPrompt((Asked(kind="bug"), Asked(kind="bird")), NEXT_TO, None),
        GalleryPrompt((Asked(), Asked()), None, "night"),
        GalleryPrompt(None, None, None),
    ],
)
def test_laws_are_those_of_the_world(prompt):
    """The pictures of the world that agree, found by rejection from everything it draws, follow the law."""
    rng = random.Random(0)
    drawn = 4000
    counted = {axis: Counter() for axis in AXES}
    for _ in range(drawn):
        shown = draw_agreeing_scene(rng, prompt)
        for axis, cells in sort_cells(prompt, shown).items():
            for cell, share in cells.items():
                counted[axis][cell] += share / drawn
    for axis, law in find_law(prompt).items():
        assert counted[axis].keys() <= law.keys()
        expected = sum((2 / 3.14159 * p / drawn) ** 0.5 for p in law.values()) / 2  # of as many real pictures
        assert sum(abs(counted[axis][cell] - p) for cell, p in law.items()) / 2 <= 1.7 * expected + 1e-9


def test_drawing_under_a_prompt_is_drawing_and_rejecting():
    """What `draw_agreeing_scene` takes for granted: all scenes that agree are equally likely in the world itself."""
    gallery = Gallery(seed=9)
    prompt = GalleryPrompt((Asked(kind="animal"), Asked(kind="animal")), None, None)
    scenes = (gallery._describe(gallery._rng(i))[0] for i in range(12000))
    agreeing = [shown for shown in scenes if prompt.agrees_with(shown)]
    assert len(agreeing) / 12000 == pytest.approx(1 / 3 * 38 / 277 * 37 / 276, abs=0.003)
    places = Counter(shown.arrangement for shown in agreeing)
    assert set(places) == set(ARRANGEMENTS[2])
    assert {find_kind(thing.name) for shown in agreeing for thing in shown.things} == {"animal"}


def test_captions_read_as_people_write_them():
    rng = random.Random(1)
    exact = GalleryPrompt((Asked("cat", size="small"), Asked("pizza", size="big")), "side by side", "night")
    captions = {write_gallery_caption(rng, exact) for _ in range(2000)}
    assert "a small cat left of a big pizza on a night sky" in captions
    assert "a large pizza to the right of a tiny cat at night" in captions
    kinds = GalleryPrompt((Asked(kind="animal"), Asked(kind="meal")), NEXT_TO, None)
    assert write_gallery_caption(rng, kinds) in (
        "an animal next to a meal",
        "a meal next to an animal",
        "an animal beside a meal",
        "a meal beside an animal",
    )
    assert write_gallery_caption(rng, GalleryPrompt((Asked(),) * 3, None, None)) == "three things"
    assert write_gallery_caption(rng, GalleryPrompt((Asked(kind="piece of clothing"),) * 2, None, None)) == (
        "two pieces of clothing"
    )
    assert write_gallery_caption(rng, GalleryPrompt((CAT, PIZZA, DOG), None, None)) == "a cat, a pizza and a dog"
    assert write_gallery_caption(rng, GalleryPrompt(None, None, None)) == ""
