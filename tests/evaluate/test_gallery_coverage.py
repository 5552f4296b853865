"""Coverage: exact by hand, near its floor for the world's own pictures, and far from it where a model collapses."""

from __future__ import annotations

import random

import pytest

from fewstep.data.worlds.gallery import draw_agreeing_scene
from fewstep.data.worlds.gallery_scene import Asked, GalleryPrompt, GalleryScene, GalleryThing
from fewstep.evaluate.gallery_coverage import measure_coverage

CAT_ON_SAND = GalleryPrompt((Asked("cat"),), "left", "sand")


def cat(size, ground="sand"):
    return GalleryScene((GalleryThing("cat", size),), "left", ground)


def test_by_hand():
    """Only the size is open, small or big; painted are two small ones, a big one, and one on the wrong ground."""
    found = [cat("small"), cat("small"), cat("big"), cat("big", "night")]
    coverage = measure_coverage([CAT_ON_SAND], [found])
    assert coverage.accuracy == 0.75
    assert coverage.distances["size"] == pytest.approx(0.25)  # a quarter of the mass lies where none should
    assert coverage.mean == coverage.distances["size"]
    assert coverage.repeats == pytest.approx(1 / 6)


def test_unreadable_pictures_count_as_wrong():
    coverage = measure_coverage([CAT_ON_SAND], [[cat("small"), cat("big"), None, None]])
    assert coverage.accuracy == 0.5
    assert coverage.distances["size"] == pytest.approx(0.5)
    assert coverage.repeats == 0


PROMPTS = [
    GalleryPrompt((Asked(kind="animal"), Asked(kind="meal")), "next to", None),
    GalleryPrompt((Asked("cat"), Asked("pizza")), None, None),
]


def draw(seed, count=400):
    rng = random.Random(seed)
    return [[draw_agreeing_scene(rng, prompt) for _ in range(count)] for prompt in PROMPTS]


def test_real_pictures_are_near_the_truth_and_every_collapse_is_caught():
    real = measure_coverage(PROMPTS, draw(0))
    assert real.accuracy == 1
    again = measure_coverage(PROMPTS, draw(1))
    assert again.mean < 1.5 * real.mean

    one_ground = [[shown for shown in scenes if shown.ground != "night"] for scenes in draw(2, 480)]
    assert measure_coverage(PROMPTS, one_ground).distances["ground"] == pytest.approx(1 / 6, abs=0.04)
    same_order = [[shown for shown in scenes if shown.things[0].name == "cat"] for scenes in draw(3, 800)[1:]]
    assert measure_coverage(PROMPTS[1:], same_order).distances["place"] == pytest.approx(0.5, abs=0.03)
    few = [scenes[:20] * 20 for scenes in draw(4)]
    repeating = measure_coverage(PROMPTS, few)
    assert repeating.distances["thing"] > 1.5 * real.distances["thing"]
    assert repeating.repeats > 0.04 > real.repeats
