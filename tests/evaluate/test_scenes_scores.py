"""What a row of the table depends on, and what it does not."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from fewstep import assets
from fewstep.evaluate.reader import load_reader
from fewstep.evaluate.scenes_scores import ScenesScores, fresh_prompts
from fewstep.models.latent_model import load_latent_model
from fewstep.recipes import demo as demo_recipe


@pytest.fixture(scope="module")
def teacher():
    return load_latent_model(assets.scenes_teacher(), torch.device("cpu"))


def pixels(teacher, *, omega=2.0, seed=0, unseen=1, steps=1):
    scores = ScenesScores(
        load_reader(assets.scenes_reader()), teacher, fresh_prompts(128, unseen), omega=omega, seed=seed
    )
    return scores.baseline_row("ddim", steps)


def test_the_same_again_and_other_with_another_seed_or_guidance(teacher):
    first, same = pixels(teacher), pixels(teacher)
    assert torch.equal(first.pixels, same.pixels)
    assert {**first.row, "seconds_per_image": 0} == {**same.row, "seconds_per_image": 0}
    for other in (pixels(teacher, seed=1), pixels(teacher, omega=4.0)):
        assert (other.pixels - first.pixels).abs().mean() > 0.01
        assert other.row["fd"] != first.row["fd"]


def test_unseen_pairs_count_apart(teacher):
    without, with_more = pixels(teacher, unseen=0, steps=4), pixels(teacher, unseen=3, steps=4)
    assert without.row["prompt_accuracy_unseen"] is None
    assert with_more.row["prompt_accuracy"] == without.row["prompt_accuracy"] > 0.5
    assert with_more.row["fd"] == pytest.approx(without.row["fd"], rel=0.01)
    assert len(with_more.read) == len(without.read) + 3


def test_the_demos_options_reach_its_scores(monkeypatch, tmp_path):
    class Stop(Exception):
        pass

    seen = {}

    def record(_reader, _teacher, prompts, *, omega, seed):
        seen.update(n=len(prompts.texts), unseen=prompts.unseen, omega=omega, seed=seed)
        raise Stop

    monkeypatch.setattr(demo_recipe, "load_pipeline", lambda *_: SimpleNamespace(grid_size=50))
    monkeypatch.setattr(demo_recipe, "ScenesScores", record)
    config = dataclasses.replace(
        demo_recipe.default_demo(), n=130, n_unseen=5, score_seed=11, guidance_scale=4.0, device="cpu"
    )
    with pytest.raises(Stop):
        demo_recipe.score(config, tmp_path)
    assert seen == {"n": 135, "unseen": 5, "omega": 3.0, "seed": 11}
