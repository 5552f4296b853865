"""A LoRA of an any-step model, whose steps it learns."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from safetensors import safe_open

import fewstep
from fewstep.commands.combine import Combine, combine
from fewstep.commands.distill import distill
from fewstep.commands.export import Export, as_distillation, export
from fewstep.commands.prepare import prepare
from fewstep.errors import UserError
from fewstep.models.card import StudentCard, read_card
from fewstep.recipes.distill import Distill
from fewstep.recipes.prepare import Prepare
from followed import COMMON, PROMPT, make, paint, second_of
from hub_cache import put_in_cache


def make_export(followed, **changes):
    teacher = Path(json.loads((followed / "any/model/fewstep.json").read_text())["teacher"])
    settings = {
        "model": str(followed / "any"), "lora_rank": 4, "steps": 2, "batch_size": 4, "device": "cpu",
        "data": str(teacher.parent / "prompts.txt"),
    }  # fmt: skip
    return Export(**{**settings, **changes})


def test_a_lora_of_an_any_step_model_through_the_command_line(followed, teacher, tmp_path, fewstep_command):
    out = tmp_path / "lora"
    done = fewstep_command(
        "export", "--model", followed / "any", "--phases", 2, "--data", teacher.parent / "prompts.txt", "--steps", 2,
        "--lora-rank", 4, "--batch-size", 2, "--lr", 1e-3, "--device", "cpu", "--out", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    card = json.loads((out / "model/fewstep.json").read_text())
    assert (card["consistency"], card["phases"], card["teacher"]) == ("pcm", [2], str(teacher))
    assert (card["followed"], card["guidance_scale"], card["lora_rank"]) == (str(followed / "any"), 5.0, 4)
    with safe_open(out / "model/pytorch_lora_weights.safetensors", "pt") as file:
        assert file.metadata()["modelspec.usage_hint"].startswith("Euler with the schedule Simple, or DDIM with")
    assert len(list((out / "model").glob("*.safetensors"))) == 2  # both spellings
    nodes = {
        node["type"]: node["widgets_values"] for node in json.loads((out / "model/comfyui.json").read_text())["nodes"]
    }
    assert nodes["KSampler"][2:6] == [2, 1, "euler", "simple"]
    assert nodes["CheckpointLoaderSimple"] == [f"{teacher.name}.safetensors"]
    stock = DiffusionPipeline.from_pretrained(teacher)
    stock.set_progress_bar_config(disable=True)
    settings = {"timestep_spacing": "trailing", "clip_sample": False}
    stock.scheduler = DDIMScheduler.from_config(stock.scheduler.config, **settings)
    stock.load_lora_weights(out / "model", weight_name="pytorch_lora_weights.safetensors")
    theirs = stock(PROMPT, num_inference_steps=2, guidance_scale=1, generator=torch.Generator().manual_seed(3))
    ours = fewstep.load(out, "cpu")
    assert ours.steps == 2
    assert np.abs(np.asarray(theirs.images[0], dtype=int) - paint(ours, 2)).max() <= 1


def test_a_lora_learns_to_paint_as_the_model_does(followed, tmp_path):
    model = fewstep.load(followed / "any", "cpu")

    def distance(updates, lr):
        config = make_export(
            followed,
            steps=updates,
            lr=lr,
            batch_size=4,
            lora_rank=16,
            phases=4,
            out=tmp_path / str(updates),
        )
        export(config)
        lora, seeds = fewstep.load(config.out, "cpu"), range(8)
        cond = model.model.conditioner.encode([PROMPT, "a blue ring"] * 4)
        painted = [each.latents(cond, seeds, 4, omega=4.0) for each in (model, lora)]
        return float((painted[0] - painted[1]).square().mean().sqrt())

    assert distance(24, 1e-2) < 0.6 * distance(1, 1e-12)


def test_walkers_of_a_followed_model_go_its_own_steps(followed, teacher, tmp_path):
    config = as_distillation(
        make_export(followed, phases=2, out=tmp_path),
        StudentCard(teacher=str(teacher), guidance_scale=4.0),
    )
    assert (config.method, config.guidance_range, config.reads_captions_alone) == ("pcm", (4.0, 4.0), True)
    _, path, task = make(dataclasses.replace(config))
    batch, _ = task.draw_batch(range(4))
    assert set(batch.t.tolist()) <= {999, 499}
    assert torch.equal(batch.s, batch.e)
    model = fewstep.load(followed / "any", "cpu")
    f = model.consistency_function(batch.cond, batch.omega)
    assert torch.equal(path(batch.z_t, batch), f(batch.z_t, batch.t, batch.e))
    task.loss(range(4)).total.backward()
    assert all(p.grad is None for p in path.student.parameters())
    noisy = make(dataclasses.replace(config, states="data", data=str(teacher.parent / "photos")))[2]
    assert set(noisy.draw_batch(range(64))[0].t.tolist()) == {999, 499}


def test_a_merged_model_is_followed_at_the_guidance_that_is_in_it(followed, teacher, tmp_path):
    lora = {**COMMON, "method": "any-step", "guidance_range": (5.0, 5.0), "skip": 125, "lora_rank": 2, "steps": 1}
    prompts = str(teacher.parent / "prompts.txt")
    distill(Distill(**lora, teacher=str(teacher), data=prompts, out=tmp_path / "lora"))
    combine(Combine(lora=(str(tmp_path / "lora"),), base=str(teacher), merged=True, out=tmp_path / "merged"))
    config = make_export(followed, model=str(tmp_path / "merged"), base=str(teacher), out=tmp_path / "run")
    with pytest.raises(UserError, match=r"guidance_scale is 7 and .*merged was made for 5 to 5"):
        export(dataclasses.replace(config, guidance_scale=7.0, out=tmp_path / "other"))
    export(config)
    assert fewstep.load(tmp_path / "run", "cpu").guidance_scale == 5.0


def test_no_trajectories_are_taken_for_what_a_followed_model_does(followed, teacher, tmp_path):
    kept = tmp_path / "kept"
    prompts = str(teacher.parent / "prompts.txt")
    walk = {"skip": 20, "guidance_range": (5.0, 5.0), "phases": (4,), "device": "cpu", "trajectories": 2}
    prepare(Prepare(model=str(teacher), data=prompts, out=kept, **walk))
    config = make_export(followed, data=str(kept), out=tmp_path / "run")
    with pytest.raises(UserError, match="kept holds trajectories of a teacher, and a student is followed"):
        export(config)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "nowhere"}, "nowhere is not a folder of a run or of a model"),
        ({"model": "0"}, "was made by guided-distill; give a model by any-step"),
        ({"model": "2"}, "is a LoRA; give a whole model by any-step"),
        ({"guidance_scale": 12.0}, "guidance_scale is 12 and .* was made for 2 to 9"),
        ({"phases": 51}, "phases is 51; allowed: 1 to 50"),
        ({"lora_rank": 0}, "lora_rank is 0"),
    ],
)
def test_what_is_no_lora_of_an_any_step_model_is_refused(changes, said, followed, tmp_path):
    if changes.get("model") in ("0", "2"):
        changes = {**changes, "model": str(followed / changes["model"])}
    with pytest.raises(UserError, match=said):
        export(make_export(followed, **changes, out=tmp_path / "run"))


@pytest.mark.parametrize("name", ["0", "2"])
def test_a_model_that_cannot_be_followed_leaves_no_run_folder_in_the_way(name, followed, tmp_path):
    with pytest.raises(UserError, match="by any-step"):
        export(make_export(followed, model=str(followed / name), out=tmp_path / "run"))
    meant = as_distillation(make_export(followed, out=tmp_path / "run"), read_card(followed / "any" / "model"))
    with pytest.raises(UserError, match="by any-step"):
        distill(dataclasses.replace(meant, follow=str(followed / name)))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("card", "said"),
    [
        (StudentCard(guidance_scale=5.0), "does not say which base it was made from; give it with --base"),
        (StudentCard(teacher="scenes"), "learnt from None; give captions to make the LoRA by, with --data"),
        (StudentCard(teacher="scenes", data="scenes"), "at which guidance it paints; give --guidance-scale"),
        (StudentCard(teacher="some/one", data="scenes", guidance_scale=5.0), "would be fetched; name it yourself"),
    ],
)
def test_what_a_record_leaves_open_is_asked_for(card, said, followed):
    with pytest.raises(UserError, match=said):
        as_distillation(make_export(followed, data=""), card)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lora_rank": 0}, "give --method pcm and --lora-rank"),
        ({"start": "x"}, "neither --start nor --guided-from"),
        ({"method": "lcm"}, "give --method pcm"),
        ({"target": "itself"}, "where walkers lead is known, and no target is asked; leave --target out"),
        ({"target_decay": 0.9}, "leave --target-decay out"),
        ({"adversarial": 0.1}, "adversarial is 0.1 and no teacher is followed"),
        ({"states": "trajectories"}, "trajectories are a teacher's"),
    ],
)
def test_settings_that_do_not_go_with_a_followed_model_are_refused(settings, said):
    given = {"method": "pcm", "lora_rank": 2, "guidance_range": (5.0, 5.0), "follow": "any", "ema_decay": 0.9}
    with pytest.raises(UserError, match=said):
        Distill(**{**given, **settings})


def test_a_student_in_the_hubs_cache_is_gone_on_from_and_followed(followed, teacher, tmp_path):
    models = {"base": teacher, "begun": "0/model", "lora": "2/model", "any": "any/model"}
    base, begun, adapters, any_step = (
        put_in_cache(followed / model, tmp_path, f"models--org--{name}") for name, model in models.items()
    )
    meant = as_distillation(
        make_export(followed, model=str(any_step), base=str(base), out=tmp_path / "run"),
        read_card(followed / "any" / "model"),
    )
    student, path, _ = make(meant)
    assert (path.told_end, student.card.followed) == (True, str(any_step))
    for rank, start in ((0, begun), (2, adapters)):
        again = dataclasses.replace(second_of(followed, teacher, rank, start=str(start)), teacher=str(base))
        assert make(again)[0].card.phases == (4,)
    for refused, said in ((begun, "was made by guided-distill; give a model by any"), (adapters, "LoRA; give a whole")):
        with pytest.raises(UserError, match=said):
            distill(dataclasses.replace(meant, follow=str(refused)))
    with pytest.raises(UserError, match="models--org--lora is a LoRA, which goes on as one; give its --lora-rank"):
        make(second_of(followed, teacher, 0, start=str(adapters)))
