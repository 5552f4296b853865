"""From teacher to student to a folder that diffusers loads."""

import json
import warnings

import numpy as np
import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    LatentConsistencyModelImg2ImgPipeline,
    LatentConsistencyModelPipeline,
    LCMScheduler,
)

import fewstep
from fewstep.data.worlds.scenes import Scenes
from fewstep.errors import UserError
from fewstep.models.loading import load_latent_model

CPU = torch.device("cpu")


def test_the_student_starts_as_its_teacher_whatever_omega(random_teacher):
    teacher = load_latent_model(random_teacher, CPU)
    student = teacher.network.to_student(8)
    z, t = torch.randn(3, 12, 8, 8), torch.tensor([19, 499, 999])
    cond = teacher.conditioner.encode(["a red star", "", "a blue ring"])
    for omega in (torch.zeros(3), torch.tensor([1.0, 7.5, 13.0])):
        for mine, theirs in zip(student(z, t, cond, omega), teacher.network(z, t, cond, None), strict=True):
            assert torch.equal(mine, theirs)
    assert not any(p.requires_grad for p in teacher.network.parameters())
    assert all(p.requires_grad for p in student.parameters())


def test_omega_reaches_the_student(random_teacher):
    student = load_latent_model(random_teacher, CPU).network.to_student(8)
    torch.nn.init.normal_(student.unet.time_embedding.cond_proj.weight)
    z, t, cond = torch.randn(1, 12, 8, 8), torch.tensor([499]), {"text": torch.randn(1, 32, 64)}
    outputs = [student(z, t, cond, torch.tensor([omega])).epsilon for omega in (1.0, 2.0)]
    assert not torch.equal(*outputs)


@pytest.mark.parametrize("steps", [1, 4])
def test_diffusers_paints_the_same_picture(random_student, steps):
    folder = random_student / "model"
    theirs = DiffusionPipeline.from_pretrained(folder)
    assert isinstance(theirs, LatentConsistencyModelPipeline)
    assert isinstance(theirs.scheduler, LCMScheduler)
    theirs.set_progress_bar_config(disable=True)
    prompts = ["a small red star above a blue ring on a white background", "a cyan heart"]
    expected = theirs(
        prompts, num_inference_steps=steps, guidance_scale=5.0, height=64, width=64,
        generator=[torch.Generator().manual_seed(seed) for seed in (7, 8)],
    ).images  # fmt: skip
    mine = fewstep.load(folder)(prompts, steps=steps, seed=7, guidance_scale=5.0)
    for one, other in zip(mine, expected, strict=True):
        difference = np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max()
        assert difference <= 2
    assert np.asarray(mine[0]).std() > 1  # not two blank pictures


@pytest.mark.parametrize(("steps", "strength"), [(1, 1.0), (4, 0.8), (3, 0.3)])
def test_diffusers_paints_the_same_picture_from_a_picture(random_student, steps, strength):
    folder = random_student / "model"
    theirs = LatentConsistencyModelImg2ImgPipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    start = Scenes(seed=3)[0].image
    expected = theirs(
        "a cyan heart", image=start, num_inference_steps=steps, strength=strength, guidance_scale=5.0,
        generator=torch.Generator().manual_seed(7),
    ).images[0]  # fmt: skip
    pipe = fewstep.load(folder)
    mine = pipe("a cyan heart", steps=steps, seed=7, guidance_scale=5.0, init_image=start, strength=strength)[0]
    assert np.abs(np.asarray(mine, dtype=int) - np.asarray(expected, dtype=int)).max() <= 2
    without = pipe("a cyan heart", steps=steps, seed=7, guidance_scale=5.0)[0]
    assert np.abs(np.asarray(mine, dtype=int) - np.asarray(without, dtype=int)).max() > 2
    with pytest.raises(UserError, match=r"allows 1 to 10 at strength 0\.2"):
        pipe("a cyan heart", steps=11, init_image=start, strength=0.2)


def test_the_export_says_what_it_is(random_student):
    folder = random_student / "model"
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["_class_name"] == "LCMScheduler"
    assert scheduler["original_inference_steps"] == 50
    assert json.loads((folder / "unet" / "config.json").read_text())["time_cond_proj_dim"] == 256
    assert not list(folder.rglob("*.bin"))
    card = (folder / "README.md").read_text()
    for said in ("random-teacher", "3 steps of 4", "2 to 9", "ddim"):
        assert said in card


def test_the_average_is_what_is_exported(random_student):
    from safetensors.torch import load_file

    state = load_file(random_student / "checkpoints" / "step-0000003" / "state.safetensors")
    unet = load_file(random_student / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    name = "time_embedding.cond_proj.weight"
    assert torch.equal(unet[name], state[f"averaged.unet.{name}"])
    assert not torch.equal(unet[name], state[f"student.unet.{name}"])


def test_a_picture_does_not_depend_on_its_batch(random_student):
    pipe = fewstep.load(random_student / "model")
    prompts = ["a red star", "a blue ring", "a green cross", "a pink heart", "a cyan square"]
    together, alone = pipe(prompts, steps=2, seed=3), pipe(prompts, steps=2, seed=3, batch_size=1)
    for i, (one, other) in enumerate(zip(together, alone, strict=True)):
        assert np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max() <= 1, i
    by_seed = pipe("a green cross", steps=2, seed=5)[0]
    assert np.abs(np.asarray(by_seed, dtype=int) - np.asarray(together[2], dtype=int)).max() <= 1


def test_options_of_a_call_change_the_picture(random_student):
    pipe = fewstep.load(random_student / "model")
    torch.nn.init.normal_(pipe.model.network.backbone.time_embedding.cond_proj.weight)
    paint = lambda **options: np.asarray(pipe(**{"prompt": "a red star", "steps": 2, "seed": 1} | options)[0])  # noqa: E731
    plain = paint()
    assert np.array_equal(plain, paint(guidance_scale=5.0))  # what the model recorded
    for change in ({"prompt": "a blue ring"}, {"steps": 3}, {"seed": 2}, {"guidance_scale": 8.0}):
        assert not np.array_equal(plain, paint(**change)), change
    assert len(pipe("a red star", count=3)) == 3


def test_what_the_model_cannot_do_is_warned_about(random_student):
    pipe = fewstep.load(random_student / "model")
    with pytest.warns(UserWarning, match="ignores the negative prompt"):
        painted = pipe("a red star", steps=1, seed=1, negative_prompt="blurry")
    assert painted[0] == pipe("a red star", steps=1, seed=1)[0]
    with pytest.warns(UserWarning, match="first 30 tokens"):
        painted = pipe("a red star " * 20, steps=1, seed=1)
    assert painted[0] == pipe("a red star " * 10, steps=1, seed=1)[0]
    with pytest.warns(UserWarning, match="trained for 2 to 9"):
        pipe("a red star", steps=1, guidance_scale=12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe("a red star", steps=1)


@pytest.mark.parametrize("steps", [0, -1, 51])
def test_steps_outside_the_grid_are_refused(random_student, steps):
    with pytest.raises(UserError, match="allows 1 to 50"):
        fewstep.load(random_student / "model")("a red star", steps=steps)


def test_a_teacher_is_not_a_few_step_model(random_teacher):
    with pytest.raises(UserError, match="is a teacher"):
        fewstep.load(random_teacher)
