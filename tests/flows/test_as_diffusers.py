"""A flow transformer and what is made of it are painted by stock pipelines as by us, from the same noise."""

import importlib
import inspect
import json
import unittest.mock

import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

from fewstep.commands.distill import distill
from fewstep.data.pictures import to_pixels
from fewstep.diffusion.flow import Flow
from fewstep.diffusion.schedule import sampling_times
from fewstep.errors import UserError
from fewstep.evaluate.cell import Cell, painter_of
from fewstep.method.paths import TeacherPath
from fewstep.models.loading import load_latent_model
from fewstep.models.lora.file import DIFFUSERS_FILE
from fewstep.models.pipeline import seeded_noise
from fewstep.models.pipeline_loading import load_pipeline
from fewstep.recipes.distill import Distill
from flow_loading import copy_model, copy_stock
from flow_runs import make_run
from flow_stock import STOCK

CPU, PROMPT, SEED = torch.device("cpu"), "a red star", 5


def settings(flow, pictures, out, **changes):
    return Distill(**{
        "teacher": str(flow), "data": str(pictures), "out": out, "steps": 2, "batch_size": 2, "lr": 3e-3,
        "ema_decay": 0.5, "sample_every": 0, "device": "cpu", "guidance_range": (4.0, 4.0), "guidance_scale": 4.0,
        **changes,
    })  # fmt: skip


def paint_by_stock(pipe, sigmas, scale):
    """Paints latents with a stock pipeline, whose noise between steps is torch's own: it is made to be ours."""
    pipe.set_progress_bar_config(disable=True)
    kind = type(pipe).__base__ if type(pipe).__name__ == "AnyStepPipeline" else type(pipe)
    stock = STOCK[kind.__name__]
    shape, pack_noise = (1, *stock.shape), stock.pack_noise or stock.pack
    generator = torch.Generator().manual_seed(SEED)
    latents = torch.randn(shape, generator=generator)
    torch.set_rng_state(generator.get_state())
    noise = "diffusers.schedulers.scheduling_flow_match_lcm.randn_tensor"
    with unittest.mock.patch(noise, side_effect=lambda *_, **__: pack_noise(pipe, torch.randn(shape))):
        painted = pipe(
            prompt=PROMPT, sigmas=sigmas, height=64, width=64, latents=stock.pack(pipe, latents), output_type="latent",
            **stock.guide(scale),
        ).images  # fmt: skip
    return stock.unpack(pipe, painted)


def load_stock(flow, model):
    """Loads the stock pipeline, at the shift that is pinned here where its own depends on the number of its steps."""
    pipe = copy_stock(flow)
    if STOCK[type(pipe).__name__].shifts_by_steps:
        pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=model.schedule.shift)
    return pipe


def off(flow):
    """The scale by which a stock pipeline guides nothing, which is not 1 for all."""
    return copy_model(flow).family.guidance_of(0.0)


def paint_by_us(pipe, steps):
    return pipe.latents(pipe.model.conditioner.encode([PROMPT]), [SEED], steps, 0.0)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_one_step_from_noise_is_the_stock_pipelines(flow, scale):
    """Sign, time and guidance of the field."""
    model = copy_model(flow)
    z = seeded_noise([SEED], model.codec.shape(64), CPU)()
    t = torch.tensor([model.schedule.last])
    with torch.no_grad():
        path = TeacherPath(model.network, model.schedule, model.null(), rescale=model.rescale)
        omega = torch.tensor([model.family.omega_of(scale)])
        answer = path.field(model.conditioner.encode([PROMPT]), omega)(z, t).z_0
    theirs = paint_by_stock(load_stock(flow, model), [1.0], scale)
    assert (answer - theirs).abs().max() < 1e-4
    assert (answer - z).abs().max() > 0.1


def test_many_steps_of_the_teacher_are_the_stock_pipelines(flow):
    """Euler is DDIM on a flow; its default shift and times, given rightly."""
    model = copy_model(flow)
    solvers = importlib.import_module("fewstep.diffusion.sampling")
    z, count = seeded_noise([SEED], model.codec.shape(64), CPU)(), 5  # whose times are whole
    cond = model.conditioner.encode([PROMPT])
    times = sampling_times(model.schedule, count, "trailing")
    with torch.no_grad():
        mine = solvers.sample_ode(model.schedule, lambda z, t: model.network(z, t, cond, None), z, times)
    theirs = paint_by_stock(load_stock(flow, model), [1 - i / count for i in range(count)], off(flow))
    assert (mine - theirs).abs().max() < 1e-4


@pytest.mark.parametrize("method", ["lcm", "pcm"])
@pytest.mark.parametrize("kind", ["whole", "lora"])
def test_a_student_is_painted_alike_by_the_stock_pipeline(flow, kind, method, flow_pictures, tmp_path):
    lora = {"lora_rank": 3, "lora_alpha": 6.0} if kind == "lora" else {}
    if method == "lcm":
        exported = make_run(flow, flow_pictures, kind).model
    else:
        distill(settings(flow, flow_pictures, tmp_path / "run", method=method, **lora))
        exported = tmp_path / "run" / "model"
    card = json.loads((exported / "fewstep.json").read_text())
    mine = load_pipeline(exported, "cpu")
    assert isinstance(mine.model.schedule, Flow)
    assert card["shift"] == mine.model.schedule.shift
    if kind == "whole":
        theirs = DiffusionPipeline.from_pretrained(exported)
    else:
        theirs = copy_stock(flow)
        scheduler = getattr(importlib.import_module("diffusers"), mine.method.flow_scheduler)
        theirs.scheduler = scheduler(shift=card["shift"])
        plain = paint_by_stock(theirs, card["sigmas"]["4"], off(flow))
        theirs.load_lora_weights(exported, weight_name=DIFFUSERS_FILE)
        hung = {name for name, module in theirs.transformer.named_modules() if isinstance(module, LoraLayer)}
        held = list(load_file(exported / DIFFUSERS_FILE))
        assert {f"transformer.{name}" for name in hung} == {key.partition(".lora_")[0] for key in held}
        assert len(held) == 2 * len(hung)
        # ComfyUI maps such keys by the same table, module by module: one that is not in it would be dropped.
        modules = [name for name, _ in mine.model.network.backbone.named_modules()]
        known = mine.model.family.original.list_modules(name.replace(".base_layer", "") for name in modules)
        assert hung <= {name for names in known.values() for name in names}
    for steps in (4,) if method == "pcm" else (1, 2, 4, 8):
        painted = paint_by_stock(theirs, card["sigmas"][str(steps)], off(flow))
        assert (paint_by_us(mine, steps) - painted).abs().max() < 1e-4
        assert len(card["sigmas"][str(steps)]) == steps
    if kind == "lora":
        assert (paint_by_us(mine, 4) - plain).abs().max() > 3e-4


def test_a_whole_any_step_student_is_painted_alike_by_its_own_pipeline(flow, flow_pictures):
    """In any number of steps, by diffusers with the code that lies beside the weights, and told each time."""
    made = make_run(flow, flow_pictures, "whole-any-step").model
    exported = str(made)
    mine = load_pipeline(exported, "cpu")
    theirs = DiffusionPipeline.from_pretrained(exported, custom_pipeline=exported, trust_remote_code=True)
    plain = DiffusionPipeline.from_pretrained(exported)
    sigmas = json.loads((made / "fewstep.json").read_text())["sigmas"]
    for steps in (1, 2, 4, 8):
        painted = paint_by_stock(theirs, sigmas[str(steps)], off(flow))
        assert (paint_by_us(mine, steps) - painted).abs().max() < 1e-4
    assert (painted - paint_by_stock(plain, sigmas["8"], off(flow))).abs().max() > 1e-3


@pytest.mark.parametrize("sampler", ["euler", "midpoint", "dpm++", "unipc"])
def test_a_baseline_asks_the_teacher_as_often_as_its_table_says(sampler, flow):
    model, steps = copy_model(flow), 4
    asked = []
    hook = model.network.register_forward_pre_hook(lambda _module, given: asked.append(len(given[0])))
    cell = Cell(sampler, steps, "trailing", 4.0, 1 if model.family.guided_inside else 2)
    z_0 = painter_of(cell, model, None).latents(model.conditioner.encode([PROMPT]), [SEED])
    hook.remove()
    assert z_0.isfinite().all()
    assert sum(asked) == cell.network_evaluations


@pytest.mark.parametrize("kind", ["whole", "any-step", "lora"])
def test_the_lines_of_the_card_paint_at_its_size_and_guidance(kind, flow, flow_pictures):
    exported = make_run(flow, flow_pictures, f"small-{kind}").model
    lines = (exported / "README.md").read_text().split("```")[1].removeprefix("python")
    held = {}
    exec(lines.replace("this folder", str(exported)), held)
    model = copy_model(flow)
    small = kind != "lora" or not model.network.says_side
    assert held["image"].size == ((32, 32) if small else (64, 64))
    scale = 4 if model.family.guided_inside else model.family.guidance_of(0.0)
    assert f"{model.family.guidance_argument}={scale:g})" in lines


def test_the_exported_scheduler_says_every_setting(flow, flow_pictures):
    """What a file leaves out, `from_config` would take from elsewhere."""
    exported = make_run(flow, flow_pictures, "whole").model
    said = json.loads((exported / "scheduler" / "scheduler_config.json").read_text())
    assert said["_class_name"] == "FlowMatchLCMScheduler"
    assert (said["use_dynamic_shifting"], said["shift_terminal"]) == (False, None)
    assert said["shift"] == copy_model(flow).schedule.shift
    assert "_use_default_values" not in said


def test_conditions_are_those_of_the_stock_pipeline(flow):
    """A teacher's prediction is; with several prompts at once too."""
    model, pipe = copy_model(flow), copy_stock(flow)
    prompts = [PROMPT, "", "a very long prompt " * 40]
    together = model.conditioner.encode(prompts)
    for i, prompt in enumerate(prompts):
        alone = model.conditioner.encode([prompt])
        for name, value in together.items():
            assert (value[i] - alone[name][0]).abs().max() < 1e-4
    takes = inspect.signature(pipe.encode_prompt).parameters
    wanted = {"prompt": prompts, "prompt_2": None, "prompt_3": None, "do_classifier_free_guidance": False}
    instruction = inspect.signature(type(pipe).__call__).parameters.get("complex_human_instruction")
    wanted |= {} if instruction is None else {instruction.name: instruction.default}
    text, *rest = pipe.encode_prompt(**{name: value for name, value in wanted.items() if name in takes})
    if isinstance(text, list):  # one of each length
        for mine, mask, theirs in zip(together["text"], together["mask"], text, strict=True):
            assert (mine[: int(mask.sum())] - theirs).abs().max() < 1e-4
        return
    if "mask" in together:  # a stock pipeline pads to the longest, and cuts as it paints
        for mine, mask, theirs, held in zip(together["text"], together["mask"], text, rest[0], strict=True):
            count = min(int(held.sum()), mask.numel())
            assert int(mask.sum()) == count
            assert (mine[:count] - theirs[:count]).abs().max() < 1e-4
        return
    assert (text - together["text"]).abs().max() < 1e-4
    if "pooled" not in together:
        return
    pooled = next(each for each in rest if each is not None and each.shape == together["pooled"].shape)
    assert (pooled - together["pooled"]).abs().max() < 1e-4


def test_text_encoders_are_asked_as_wholes_and_say_next_to_nothing(flow):
    """Hooks on them bring them to a card that has no room for all parts; what they would say next is gigabytes."""
    model, asked = copy_model(flow), set()
    hooks = [
        encoder.register_forward_hook(lambda _module, _given, output, name=name: asked.add((name, _words(output))))
        for name, encoder in model.conditioner.encoders.items()
    ]
    model.conditioner.encode([PROMPT])
    for hook in hooks:
        hook.remove()
    assert {name for name, _ in asked} == set(model.conditioner.encoders)
    assert all(words <= 1 for _, words in asked)


def _words(output):
    logits = getattr(output, "logits", None)
    return 0 if logits is None else logits.shape[1]


def test_pictures_go_through_the_autoencoder_as_they_would_alone(flow, flow_pictures):
    """Scale and shift are undone: forgetting the shift is a constant in every latent; and are the stock pipeline's."""
    from PIL import Image

    model = copy_model(flow)
    pixels = to_pixels([Image.open(flow_pictures / "0.png").resize((64, 64))])
    mean, _ = model.codec.encode(pixels)
    pipe = copy_stock(flow)
    stock = STOCK[type(pipe).__name__]
    with torch.no_grad():
        own = stock.encode(pipe, pixels)
        alone = stock.decode(pipe, own)
    assert mean.shape[1:] == model.codec.shape(64)
    assert torch.allclose(mean, stock.scale(pipe, own), atol=1e-5)
    assert (mean - own.reshape(mean.shape)).abs().max() > 1e-3
    assert torch.allclose(model.codec.decode(mean), alone, atol=1e-4)


def test_schnell_is_no_teacher(copy_flow, edit_json):
    folder = copy_flow("flux", "schnell")
    edit_json(folder / "transformer" / "config.json", guidance_embeds=False)
    with pytest.raises(UserError, match="paints in 4 steps already and cannot be a teacher"):
        load_latent_model(folder, CPU)
