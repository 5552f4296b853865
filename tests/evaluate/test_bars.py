"""Bars that the bundled teacher, and the demo that the README publishes, have to reach."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from fewstep import assets
from fewstep.data.pictures import to_pixels
from fewstep.data.scenes import Scenes
from fewstep.evaluate.reader import load_reader, read

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def rows():
    return {
        (row["sampler"], row["steps"]): row for row in json.loads((DOCS / "demo" / "scores.json").read_text())["rows"]
    }


def test_the_teacher_obeys_in_stable_diffusion_pipeline():
    pipe = StableDiffusionPipeline.from_pretrained(assets.scenes_teacher())
    pipe.set_progress_bar_config(disable=True)
    pairs = [Scenes(seed=6, split="seen").prompt(i) for i in range(8)]
    generators = [torch.Generator().manual_seed(i) for i in range(8)]
    images = pipe([text for text, _ in pairs], num_inference_steps=25, guidance_scale=3.0, generator=generators).images
    found, _ = read(load_reader(assets.scenes_reader()), to_pixels(images))
    assert sum(s is not None and s.agrees_with(p) for s, (_, p) in zip(found, pairs, strict=True)) >= 6


def test_the_teacher_reaches_its_bar():
    row = json.loads((DOCS / "teacher" / "scores.json").read_text())["rows"][0]
    assert (row["n"], row["steps"]) == (1000, 50)
    assert row["prompt_accuracy"] >= 0.97


def test_the_published_demo_reaches_its_bar(rows):
    whole = rows["teacher", 50]["prompt_accuracy"]
    assert rows["lcm", 4]["prompt_accuracy"] >= 0.93 * whole
    assert rows["lcm", 2]["prompt_accuracy"] >= 0.88 * whole
    for steps in (1, 2, 4):
        for other in ("ddim", "dpm++"):
            assert rows["lcm", steps]["prompt_accuracy"] > rows[other, steps]["prompt_accuracy"]
            assert rows["lcm", steps]["fd"] < rows[other, steps]["fd"]


def test_the_baselines_of_the_published_demo_stand_at_their_best_spacing(rows):
    tried = json.loads((DOCS / "demo" / "spacing.json").read_text())["rows"]
    for row in tried:
        assert row["prompt_accuracy"] <= rows[row["sampler"], row["steps"]]["prompt_accuracy"]
        if row["steps"] <= 4:
            assert row["prompt_accuracy"] < rows["lcm", row["steps"]]["prompt_accuracy"]
            assert row["fd"] > rows["lcm", row["steps"]]["fd"]


def test_the_longer_run_reaches_its_bar():
    scores = json.loads((DOCS / "scenes-long" / "scores.json").read_text())
    accuracy = {(row["sampler"], row["steps"]): row["prompt_accuracy"] for row in scores["rows"]}
    for steps, share in ((1, 0.80), (2, 0.95), (4, 0.96)):
        assert accuracy["lcm", steps] >= share * accuracy["teacher", 50]
