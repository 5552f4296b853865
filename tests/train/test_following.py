"""A student that is followed in place of a teacher: guided-distill's second stage, and an any-step model's LoRA."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

import fewstep
from fewstep import assets
from fewstep.commands.combine import Combine, combine
from fewstep.commands.distill import distill, load_teacher, make_path, make_student
from fewstep.commands.export import Export, as_distillation, export
from fewstep.commands.prepare import prepare
from fewstep.diffusion.flow import Flow
from fewstep.diffusion.prediction import Prediction, to_prediction
from fewstep.errors import UserError
from fewstep.method.landing import BY_DDIM, CLEAN, solve_clean
from fewstep.method.named import METHODS
from fewstep.method.paths import StudentPath, TrainingBatch
from fewstep.method.times import jump_times
from fewstep.models.card import StudentCard, read_card
from fewstep.recipes.distill import Distill
from fewstep.recipes.prepare import Prepare
from fewstep.runs.consistency import make_task
from fewstep.runs.material import open_material
from fewstep.runs.unfinished import load_painter
from fewstep.train.checkpoint import TENSORS_FILE
from hub_cache import put_in_cache
from miniatures import save_miniature

COMMON = {
    "method": "guided-distill", "steps": 2, "batch_size": 4, "guidance_range": (2.0, 9.0), "lr": 1e-2,
    "ema_decay": 0.5, "device": "cpu", "sample_every": 0, "log_every": 1,
}  # fmt: skip
PROMPT = "a red star"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A miniature, with pictures beside it."""
    folder = tmp_path_factory.mktemp("teacher")
    (folder / "photos").mkdir()
    for i in range(4):
        Image.new("RGB", (16, 16), (60 * i, 90, 120)).save(folder / "photos" / f"{i}.png")
        (folder / "photos" / f"{i}.txt").write_text(f"a red star {i}")
    (folder / "prompts.txt").write_text("a red star\na blue ring\n")
    tokenizer = CLIPTokenizer.from_pretrained(assets.scenes_teacher() / "tokenizer")
    return save_miniature("sd15", tokenizer, folder / "sd15")


@pytest.fixture(scope="module")
def first(teacher, tmp_path_factory):
    """Run folders of students to follow, by the rank of their adapters, and of an any-step model."""
    folder = tmp_path_factory.mktemp("first")
    common = {**COMMON, "teacher": str(teacher), "data": str(teacher.parent / "photos")}
    distill(Distill(**common, out=folder / "0"))
    distill(Distill(**{**common, "guidance_range": (5.0, 5.0)}, lora_rank=2, out=folder / "2"))
    distill(Distill(**{**common, "method": "any-step", "lr": 3e-3}, skip=125, out=folder / "any"))
    return folder


def second_of(first, teacher, rank, **changes):
    guidance = (5.0, 5.0) if rank else COMMON["guidance_range"]
    settings = {**COMMON, "guidance_range": guidance, "start": str(first / str(rank)), "lora_rank": rank, "to_steps": 4}
    return Distill(**{**settings, **changes}, teacher=str(teacher), data=str(teacher.parent / "photos"))


def make(config):
    """Everything of a run up to its task."""
    teacher = load_teacher(config)
    student = make_student(config, teacher)
    path = make_path(config, student, teacher)
    return student, path, make_task(config, student, path, teacher, open_material(config, teacher).latents())


def paint(pipeline, steps, **more):
    return np.asarray(pipeline(PROMPT, steps=steps, seed=3, **more)[0], dtype=int)


def bend(schedule, kind):
    """A network that outputs sin(2·z_t) + t/1000 of its kind."""
    return lambda z, t, _cond, _omega: to_prediction(
        kind, (2 * z).sin() + t[:, None] / 1000, z, *schedule.coefficients(t, z)
    )


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize(("name", "kind"), [("sd", "epsilon"), ("zero", "v_prediction"), ("flow", "v_prediction")])
def test_one_step_to_the_clean_target_lands_where_two_steps_do(name, kind, count, sd_schedule, zero_terminal_schedule):
    schedule = {"sd": sd_schedule, "zero": zero_terminal_schedule, "flow": Flow(shift=3.0)}[name]
    network = bend(schedule, kind)
    t, e = (torch.tensor(each) for each in jump_times(schedule, count))
    halves = jump_times(schedule, 2 * count)[0]
    assert (halves[::2], halves[2::2]) == (t.tolist(), e.tolist()[:-1])
    z_t = torch.randn(count, 3, dtype=torch.float64)
    middle = torch.tensor(halves[1::2])
    there = BY_DDIM.land(schedule, network(z_t, t, {}, None), z_t, t, middle)
    there = BY_DDIM.land(schedule, network(there, middle, {}, None), there, middle, e)
    batch = TrainingBatch(z_t, {}, t, e, e, z_t, None)
    path = StudentPath(network, schedule, 2 * count, jumps=2)
    torch.testing.assert_close(path(z_t, batch), there, rtol=1e-12, atol=1e-12)
    clean = dataclasses.replace(path, clean=True)(z_t, batch)
    alpha, sigma = schedule.coefficients(t, z_t)
    again = BY_DDIM.land(schedule, Prediction(clean, (z_t - alpha * clean) / sigma), z_t, t, e)
    torch.testing.assert_close(again, there, rtol=1e-9, atol=1e-9)


def test_a_clean_target_is_the_networks_own_where_one_step_has_led(sd_schedule):
    z_t, t, e = torch.randn(2, 3, dtype=torch.float64), torch.tensor([999, 249]), torch.tensor([499, 0])
    answer = bend(sd_schedule, "v_prediction")(z_t, t, {}, None)
    led = BY_DDIM.land(sd_schedule, answer, z_t, t, e)
    torch.testing.assert_close(solve_clean(sd_schedule, z_t, led, t, e), answer.z_0, rtol=1e-9, atol=1e-9)
    assert torch.equal(CLEAN.land(sd_schedule, answer, z_t, t, e), answer.z_0)


@pytest.mark.parametrize("rank", [0, 2])
def test_it_learns_at_the_times_of_its_sampler_alone_what_two_frozen_steps_say(rank, first, teacher, tmp_path):
    config = second_of(first, teacher, rank, out=tmp_path)
    student, path, task = make(config)
    times, ends = jump_times(task.method.schedule, 4)
    batch, _ = task.draw_batch(range(64))
    assert set(zip(batch.t.tolist(), batch.e.tolist(), strict=True)) == set(zip(times, ends, strict=True))
    assert torch.equal(batch.s, batch.e)
    assert (path.phases, path.jumps, path.clean) == (8, 2, True)
    before = path(batch.z_0, batch)
    loss = task.loss(range(4)).total
    loss.backward()
    learning = [p for p in student.learner.weights.parameters() if p.requires_grad]
    assert any(p.grad is not None and p.grad.any() for p in learning)
    if rank:
        last = [p for name, p in student.model.network.named_parameters() if ".last." in name]
    else:
        last = list(path.student.parameters())
    assert last
    assert all(p.grad is None and not p.requires_grad for p in last)
    with torch.no_grad():
        for p in learning:
            p.add_(0.1)
    assert torch.equal(path(batch.z_0, batch), before)  # what is followed stays as it was
    assert task.loss(range(4)).total != loss


def test_adapters_are_hung_beside_others_without_a_word(first, teacher, tmp_path, recwarn):
    make(second_of(first, teacher, 2, out=tmp_path))
    assert not [each for each in recwarn if "peft_config" in str(each.message)]


@pytest.mark.parametrize("rank", [0, 2])
def test_it_begins_as_what_it_follows_and_paints_in_half_as_many_steps(rank, first, teacher, tmp_path):
    config = second_of(first, teacher, rank, lr=1e-12, out=tmp_path / "still")
    distill(config)
    still, was = fewstep.load(config.out, "cpu"), fewstep.load(first / str(rank), "cpu")
    assert np.abs(paint(still, 4) - paint(was, 4)).max() <= 1
    card = json.loads((config.out / "model/fewstep.json").read_text())
    assert (card["consistency"], card["phases"], card["sampling_steps"]) == ("guided-distill", [4], 4)
    assert card["followed"] == str(first / str(rank))
    assert "refined_by" not in card
    again = dataclasses.replace(config, start=str(config.out), to_steps=2, lr=1e-2, out=tmp_path / "again")
    distill(again)
    halved = fewstep.load(again.out, "cpu")
    assert (halved.method, halved.steps, halved.jumps(2)[0]) == (METHODS["guided-distill"], 2, [999, 499])
    assert not np.array_equal(paint(halved, 2), paint(was, 2))
    assert (
        "guided-distill (arXiv 2210.03142), made with fewstep: 2 steps in place of 50"
        in (again.out / "model/README.md").read_text()
    )
    with pytest.raises(UserError, match="again paints in 2 steps and to_steps is 2; half of that is --to-steps 1"):
        distill(dataclasses.replace(again, start=str(again.out), out=tmp_path / "third"))
    with pytest.raises(UserError, match="again paints in 2 steps and to_steps is 0"):
        distill(dataclasses.replace(again, start=str(again.out), to_steps=0, out=tmp_path / "fourth"))


@pytest.mark.parametrize("rank", [0, 2])
def test_stock_diffusers_paints_a_second_stage_the_same(rank, first, teacher, tmp_path):
    distill(second_of(first, teacher, rank, out=tmp_path / "run"))
    model = tmp_path / "run" / "model"
    stock = DiffusionPipeline.from_pretrained(teacher if rank else model)
    stock.set_progress_bar_config(disable=True)
    if rank:
        settings = {"timestep_spacing": "trailing", "clip_sample": False}
        stock.scheduler = DDIMScheduler.from_config(stock.scheduler.config, **settings)
        stock.load_lora_weights(model, weight_name="pytorch_lora_weights.safetensors")
    asked = {"num_inference_steps": 4, "guidance_scale": 1.0 if rank else 4.0}
    theirs = stock(PROMPT, **asked, generator=torch.Generator().manual_seed(3)).images[0]
    ours = paint(fewstep.load(model, "cpu"), 4, **({} if rank else {"guidance_scale": 4.0}))
    assert np.abs(np.asarray(theirs, dtype=int) - ours).max() <= 1


@pytest.mark.parametrize("rank", [0, 2])
def test_it_goes_on_bit_for_bit_and_paints_before_its_end(rank, first, teacher, tmp_path):
    start = shutil.copytree(first / str(rank), tmp_path / "start")
    before = second_of(first, teacher, rank, to_steps=0, steps=1, seed=1, out=tmp_path / "before")
    distill(before)  # goes on in the first stage
    assert "phases" not in json.loads((before.out / "model/fewstep.json").read_text())
    config = second_of(
        first, teacher, rank, start=str(start), steps=3, checkpoint_every=1, keep_checkpoints=3,
        out=tmp_path / "run",
    )  # fmt: skip
    distill(config)
    last = load_file(config.out / "checkpoints/step-0000003" / TENSORS_FILE)
    exported = paint(fewstep.load(config.out, "cpu"), 4)
    shutil.rmtree(config.out / "model")
    going = load_painter(config.out, "cpu")
    assert (going.steps, going.method) == (4, METHODS["guided-distill"])
    assert np.abs(paint(going, 4) - exported).max() <= 1
    for name in ("step-0000003", "step-0000002"):
        shutil.rmtree(config.out / "checkpoints" / name)
    distill(config)
    again = load_file(config.out / "checkpoints/step-0000003" / TENSORS_FILE)
    assert last.keys() == again.keys()
    assert all(torch.equal(last[key], again[key]) for key in last)
    shutil.rmtree(config.out / "model")
    shutil.rmtree(start / "model")
    shutil.copytree(tmp_path / "before" / "model", start / "model")
    with pytest.raises(UserError, match=r"the weights of .*start are not those that .*run began with"):
        distill(config)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"start": ""}, "give --method guided-distill and the model of the first with --start"),
        ({"method": "pcm"}, "to_steps is 4, which is of the second stage of guided-distill"),
        ({"to_steps": 26}, "to_steps is 26; allowed: 0 to 25"),
        ({"solver": "midpoint"}, "solver is midpoint and no teacher is followed, but a student; leave --solver out"),
        ({"skip": 25}, "leave --skip out"),
        ({"times": "any"}, "leave --times out"),
        ({"states": "trajectories"}, "equal steps|trajectories are a teacher's"),
        ({"guidance_range": (1.0, 9.0)}, "knows 2 to 9; give --guidance-range 2 9, or less"),
        ({"guided_from": 500}, "learnt what guides with 0; give --guided-from 0"),
        ({"start": "any"}, "was made by any-step and cannot go on by guided-distill"),
        ({"follow": "x"}, "follow is x, whose steps a fresh LoRA learns"),
    ],
)
def test_what_makes_no_second_stage_is_refused(settings, said, first, teacher, tmp_path):
    if settings.get("start"):
        settings = {"start": str(first / settings["start"])}
    with pytest.raises(UserError, match=said):
        distill(second_of(first, teacher, 0, **settings, out=tmp_path / "run"))


def make_export(first, **changes):
    settings = {
        "model": str(first / "any"), "lora_rank": 4, "steps": 2, "batch_size": 4, "device": "cpu",
        "data": str(Path(json.loads((first / "any/model/fewstep.json").read_text())["teacher"]).parent / "prompts.txt"),
    }  # fmt: skip
    return Export(**{**settings, **changes})


def test_a_lora_of_an_any_step_model_through_the_command_line(first, teacher, tmp_path, fewstep_command):
    out = tmp_path / "lora"
    done = fewstep_command(
        "export", "--model", first / "any", "--phases", 2, "--data", teacher.parent / "prompts.txt", "--steps", 2,
        "--lora-rank", 4, "--batch-size", 2, "--lr", 1e-3, "--device", "cpu", "--out", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    card = json.loads((out / "model/fewstep.json").read_text())
    assert (card["consistency"], card["phases"], card["teacher"]) == ("pcm", [2], str(teacher))
    assert (card["followed"], card["guidance_scale"], card["lora_rank"]) == (str(first / "any"), 5.0, 4)
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


def test_a_lora_learns_to_paint_as_the_model_does(first, tmp_path):
    model = fewstep.load(first / "any", "cpu")

    def distance(updates, lr):
        config = make_export(
            first,
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


def test_walkers_of_a_followed_model_go_its_own_steps(first, teacher, tmp_path):
    config = as_distillation(
        make_export(first, phases=2, out=tmp_path),
        StudentCard(teacher=str(teacher), guidance_scale=4.0),
    )
    assert (config.method, config.guidance_range, config.reads_captions_alone) == ("pcm", (4.0, 4.0), True)
    _, path, task = make(dataclasses.replace(config))
    batch, _ = task.draw_batch(range(4))
    assert set(batch.t.tolist()) <= {999, 499}
    assert torch.equal(batch.s, batch.e)
    model = fewstep.load(first / "any", "cpu")
    f = model.consistency_function(batch.cond, batch.omega)
    assert torch.equal(path(batch.z_t, batch), f(batch.z_t, batch.t, batch.e))
    task.loss(range(4)).total.backward()
    assert all(p.grad is None for p in path.student.parameters())
    noisy = make(dataclasses.replace(config, states="data", data=str(teacher.parent / "photos")))[2]
    assert set(noisy.draw_batch(range(64))[0].t.tolist()) == {999, 499}


def test_a_merged_model_is_followed_at_the_guidance_that_is_in_it(first, teacher, tmp_path):
    lora = {**COMMON, "method": "any-step", "guidance_range": (5.0, 5.0), "skip": 125, "lora_rank": 2, "steps": 1}
    prompts = str(teacher.parent / "prompts.txt")
    distill(Distill(**lora, teacher=str(teacher), data=prompts, out=tmp_path / "lora"))
    combine(Combine(lora=(str(tmp_path / "lora"),), base=str(teacher), merged=True, out=tmp_path / "merged"))
    config = make_export(first, model=str(tmp_path / "merged"), base=str(teacher), out=tmp_path / "run")
    with pytest.raises(UserError, match=r"guidance_scale is 7 and .*merged was made for 5 to 5"):
        export(dataclasses.replace(config, guidance_scale=7.0, out=tmp_path / "other"))
    export(config)
    assert fewstep.load(tmp_path / "run", "cpu").guidance_scale == 5.0


def test_no_trajectories_are_taken_for_what_a_followed_model_does(first, teacher, tmp_path):
    kept = tmp_path / "kept"
    prompts = str(teacher.parent / "prompts.txt")
    walk = {"skip": 20, "guidance_range": (5.0, 5.0), "phases": (4,), "device": "cpu", "trajectories": 2}
    prepare(Prepare(model=str(teacher), data=prompts, out=kept, **walk))
    config = make_export(first, data=str(kept), out=tmp_path / "run")
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
def test_what_is_no_lora_of_an_any_step_model_is_refused(changes, said, first, tmp_path):
    if changes.get("model") in ("0", "2"):
        changes = {**changes, "model": str(first / changes["model"])}
    with pytest.raises(UserError, match=said):
        export(make_export(first, **changes, out=tmp_path / "run"))


@pytest.mark.parametrize("name", ["0", "2"])
def test_a_model_that_cannot_be_followed_leaves_no_run_folder_in_the_way(name, first, tmp_path):
    with pytest.raises(UserError, match="by any-step"):
        export(make_export(first, model=str(first / name), out=tmp_path / "run"))
    meant = as_distillation(make_export(first, out=tmp_path / "run"), read_card(first / "any" / "model"))
    with pytest.raises(UserError, match="by any-step"):
        distill(dataclasses.replace(meant, follow=str(first / name)))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_weights_that_are_no_numbers_are_named_before_anything_is_learnt(part, first, teacher, tmp_path):
    broken = {}
    for model in (teacher, first / "0" / "model"):
        folder = broken[model] = shutil.copytree(model, tmp_path / model.parent.name)
        (file,) = (folder / part).glob("*.safetensors")
        tensors = load_file(file)
        name = next(name for name in tensors if name.endswith(("conv_in.weight", "final_layer_norm.weight")))
        tensors[name].view(-1)[-1] = float("nan")
        save_file(tensors, file, {"format": "pt"})
    run = dataclasses.replace(second_of(first, teacher, 0), dry_run=True, out=tmp_path / "run")
    for changes in ({"teacher": str(broken[teacher])}, {"start": str(broken[first / "0" / "model"])}):
        with pytest.raises(
            UserError, match=rf"is broken: NaN or infinity in {part}.*(conv_in|final_layer_norm)\.weight"
        ):
            distill(dataclasses.replace(run, **changes))
    assert not (tmp_path / "run").exists()


def test_a_student_in_the_hubs_cache_is_gone_on_from_and_followed(first, teacher, tmp_path):
    base, begun, adapters, any_step = (
        put_in_cache(model, tmp_path, f"models--org--{name}")
        for name, model in (
            ("base", teacher), ("begun", first / "0/model"), ("lora", first / "2/model"), ("any", first / "any/model"),
        )
    )  # fmt: skip
    meant = as_distillation(
        make_export(first, model=str(any_step), base=str(base), out=tmp_path / "run"),
        read_card(first / "any" / "model"),
    )
    student, path, _ = make(meant)
    assert (path.told_end, student.card.followed) == (True, str(any_step))
    for rank, start in ((0, begun), (2, adapters)):
        again = dataclasses.replace(second_of(first, teacher, rank, start=str(start)), teacher=str(base))
        assert make(again)[0].card.phases == (4,)
    for refused, said in ((begun, "was made by guided-distill; give a model by any"), (adapters, "LoRA; give a whole")):
        with pytest.raises(UserError, match=said):
            distill(dataclasses.replace(meant, follow=str(refused)))
    with pytest.raises(UserError, match="models--org--lora is a LoRA, which goes on as one; give its --lora-rank"):
        make(second_of(first, teacher, 0, start=str(adapters)))


@pytest.mark.parametrize(
    ("card", "said"),
    [
        (StudentCard(guidance_scale=5.0), "does not say which base it was made from; give it with --base"),
        (StudentCard(teacher="scenes"), "learnt from None; give captions to make the LoRA by, with --data"),
        (StudentCard(teacher="scenes", data="scenes"), "at which guidance it paints; give --guidance-scale"),
        (StudentCard(teacher="some/one", data="scenes", guidance_scale=5.0), "would be fetched; name it yourself"),
    ],
)
def test_what_a_record_leaves_open_is_asked_for(card, said, first):
    with pytest.raises(UserError, match=said):
        as_distillation(make_export(first, data=""), card)


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
