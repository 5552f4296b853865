"""The second stage of guided-distill: a student learns in one step what two of another say, which it follows."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from safetensors.torch import load_file, save_file

import fewstep
from fewstep.commands.distill import distill
from fewstep.diffusion.flow import Flow
from fewstep.diffusion.prediction import Prediction, to_prediction
from fewstep.errors import UserError
from fewstep.method.landing import BY_DDIM, CLEAN, solve_clean
from fewstep.method.named import METHODS
from fewstep.method.paths import StudentPath, TrainingBatch
from fewstep.method.times import jump_times
from fewstep.runs.learning import load_base
from fewstep.runs.unfinished import load_painter
from fewstep.train.checkpoint import TENSORS_FILE
from followed import PROMPT, make, paint, second_of


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
def test_it_learns_at_the_times_of_its_sampler_alone_what_two_frozen_steps_say(rank, followed, teacher, tmp_path):
    config = second_of(followed, teacher, rank, out=tmp_path)
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


def test_adapters_are_hung_beside_others_without_a_word(followed, teacher, tmp_path, recwarn):
    make(second_of(followed, teacher, 2, out=tmp_path))
    assert not [each for each in recwarn if "peft_config" in str(each.message)]


@pytest.mark.parametrize("rank", [0, 2])
def test_it_begins_as_what_it_follows_and_paints_in_half_as_many_steps(rank, followed, teacher, tmp_path):
    config = second_of(followed, teacher, rank, lr=1e-12, out=tmp_path / "still")
    distill(config)
    still, was = fewstep.load(config.out, "cpu"), fewstep.load(followed / str(rank), "cpu")
    assert np.abs(paint(still, 4) - paint(was, 4)).max() <= 1
    card = json.loads((config.out / "model/fewstep.json").read_text())
    assert (card["consistency"], card["phases"], card["sampling_steps"]) == ("guided-distill", [4], 4)
    assert card["followed"] == str(followed / str(rank))
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
def test_stock_diffusers_paints_a_second_stage_the_same(rank, followed, teacher, tmp_path):
    distill(second_of(followed, teacher, rank, out=tmp_path / "run"))
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
def test_it_goes_on_bit_for_bit_and_paints_before_its_end(rank, followed, teacher, tmp_path):
    start = shutil.copytree(followed / str(rank), tmp_path / "start")
    before = second_of(followed, teacher, rank, to_steps=0, steps=1, seed=1, out=tmp_path / "before")
    distill(before)  # goes on in the first stage
    assert "phases" not in json.loads((before.out / "model/fewstep.json").read_text())
    config = second_of(
        followed, teacher, rank, start=str(start), steps=3, checkpoint_every=1, keep_checkpoints=3,
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
def test_what_makes_no_second_stage_is_refused(settings, said, followed, teacher, tmp_path):
    if settings.get("start"):
        settings = {"start": str(followed / settings["start"])}
    with pytest.raises(UserError, match=said):
        distill(second_of(followed, teacher, 0, **settings, out=tmp_path / "run"))


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_weights_that_are_no_numbers_are_named_before_anything_is_learnt(part, followed, teacher, tmp_path):
    broken = {}
    for model in (teacher, followed / "0" / "model"):
        folder = broken[model] = shutil.copytree(model, tmp_path / model.parent.name)
        (file,) = (folder / part).glob("*.safetensors")
        tensors = load_file(file)
        name = next(name for name in tensors if name.endswith(("conv_in.weight", "final_layer_norm.weight")))
        tensors[name].view(-1)[-1] = float("nan")
        save_file(tensors, file, {"format": "pt"})
    run = dataclasses.replace(second_of(followed, teacher, 0), dry_run=True, out=tmp_path / "run")
    for changes in ({"teacher": str(broken[teacher])}, {"start": str(broken[followed / "0" / "model"])}):
        with pytest.raises(
            UserError, match=rf"is broken: NaN or infinity in {part}.*(conv_in|final_layer_norm)\.weight"
        ):
            distill(dataclasses.replace(run, **changes))
    assert not (tmp_path / "run").exists()
    if part == "unet":
        apart = str(broken[teacher] / part)
        with pytest.raises(UserError, match=f"^{re.escape(apart)} is broken: NaN or infinity in unet"):
            load_base(dataclasses.replace(run, unet=apart), str(teacher))
