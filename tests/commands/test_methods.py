"""`distill --method`: every method trains, exports, paints by its own sampler, and opens in stock diffusers."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline
from PIL import Image
from safetensors import safe_open
from transformers import CLIPTokenizer

import fewstep
from fewstep import assets
from fewstep.commands.combine import Combine, combine
from fewstep.commands.distill import distill
from fewstep.commands.finetune import finetune
from fewstep.commands.generate import Generate, generate
from fewstep.data.pictures import to_images
from fewstep.errors import UserError
from fewstep.method.named import METHODS
from fewstep.models.families import find_family
from fewstep.models.loading import load_latent_model, pick_device
from fewstep.models.pipeline import seeded_noise
from fewstep.recipes.distill import Distill
from fewstep.recipes.finetune import Finetune
from fewstep.runs.unfinished import load_painter
from fewstep.serve.engine import Engine
from fewstep.serve.jobs import EngineLimits, PictureSpec
from miniatures import save_miniature

PROMPT = "a red star"
NEW = [name for name in METHODS if name not in ("lcm", "ect")]


@pytest.fixture(scope="module")
def runs(random_teacher, tmp_path_factory):
    """The run folder of each method, after two updates at a rate that moves everything."""
    made = {}

    def make(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("methods") / name
            distill(
                Distill(
                    teacher=str(random_teacher), method=name, steps=2, batch_size=4, pictures=8, lr=1e-2, skip=25,
                    ema_decay=0.5, sample_every=2, out=made[name], device="cpu",
                    guidance_range=(5.0, 5.0) if METHODS[name].states == "own" else (2.0, 9.0),
                )
            )  # fmt: skip
        return made[name]

    return make


def paint(pipeline, steps, **more):
    return np.asarray(pipeline(PROMPT, steps=steps, seed=3, **more)[0], dtype=int)


@pytest.mark.parametrize("name", NEW)
def test_it_paints_at_any_number_of_steps_alone_and_from_a_picture(name, runs):
    pipeline = fewstep.load(runs(name), "cpu")
    assert pipeline.method is METHODS[name]
    assert json.loads((runs(name) / "model" / "fewstep.json").read_text())["consistency"] == name
    start = Image.new("RGB", (pipeline.model.resolution,) * 2, "teal")
    mask = Image.new("L", start.size, 255)
    mask.paste(0, (0, 0, start.width // 2, start.height))
    few = paint(pipeline, 1, init_image=start, strength=0.6)
    for steps in (1, 2, 3, 8, 50 if METHODS[name].gamma < 1 else 20):
        assert paint(pipeline, steps).shape == few.shape
    inpainted = paint(pipeline, 2, init_image=start, strength=0.6, mask=mask, mask_blur=0.0)
    half = start.width // 2
    assert np.array_equal(inpainted[:, :half], np.asarray(start, dtype=int)[:, :half])
    assert not np.array_equal(inpainted[:, half:], np.asarray(start, dtype=int)[:, half:])


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_stock_diffusers_asks_where_tcd_does(steps, runs):
    stock = DiffusionPipeline.from_pretrained(runs("tcd") / "model")
    stock.scheduler.set_timesteps(steps)
    assert stock.scheduler.timesteps.tolist() == fewstep.load(runs("tcd"), "cpu").jumps(steps)[0]
    assert "eta=0.3" in (runs("tcd") / "model" / "README.md").read_text()


@pytest.mark.parametrize("name", ["pcm", "guided-distill", "any-step"])
def test_stock_diffusers_paints_the_same(name, runs):
    folder = runs(name) / "model"
    own = {"custom_pipeline": str(folder), "trust_remote_code": True} if name == "any-step" else {}
    stock = DiffusionPipeline.from_pretrained(folder, **own)
    stock.set_progress_bar_config(disable=True)
    assert isinstance(stock, StableDiffusionPipeline)
    assert isinstance(stock.scheduler, DDIMScheduler)
    assert (stock.scheduler.config.timestep_spacing, stock.scheduler.config.clip_sample) == ("trailing", False)
    ours = fewstep.load(folder, "cpu")
    for steps in (1, 2, 4, 5):
        theirs = stock(
            PROMPT, num_inference_steps=steps, guidance_scale=4.0, generator=torch.Generator().manual_seed(3)
        ).images[0]
        assert np.abs(np.asarray(theirs, dtype=int) - paint(ours, steps, guidance_scale=4.0)).max() <= 1


def test_a_network_is_told_the_end_and_its_teacher_is_not(runs, random_teacher):
    network = fewstep.load(runs("any-step"), "cpu").model.network
    teacher = load_latent_model(random_teacher, pick_device("cpu")).network
    assert (network.takes_end, teacher.takes_end) == (True, False)
    student = teacher.to_student(4, told_end=True)
    t, omega = torch.tensor([999, 500]), torch.tensor([3.0, 4.0])
    z = torch.randn(2, teacher.backbone.config.in_channels, 4, 4)
    cond = {"text": torch.randn(2, 77, teacher.backbone.config.cross_attention_dim)}
    answers = [one(z, t, cond | {"end": torch.full((2,), e)}, omega).z_0 for one in (network, student, teacher)
               for e in (0, 400)]  # fmt: skip
    assert not torch.equal(answers[0], answers[1])
    assert torch.equal(answers[2], answers[3])  # which is what it begins as
    torch.testing.assert_close(answers[2], answers[4])
    assert torch.equal(answers[4], answers[5])


@pytest.mark.parametrize("name", ["pcm", "any-step"])
def test_a_run_that_has_not_ended_paints_by_its_method(name, runs, tmp_path):
    going = shutil.copytree(runs(name), tmp_path / "run", ignore=shutil.ignore_patterns("model"))
    pipeline = load_painter(going, "cpu")
    assert pipeline.method is METHODS[name]
    ended = fewstep.load(runs(name), "cpu")
    going_on, weights = (each.model.network.backbone.state_dict() for each in (pipeline, ended))
    assert all(torch.equal(weights[key], going_on[key]) for key in weights)
    # Weights that lie elsewhere in memory, as those of a mapped file do, may be multiplied in another order.
    assert abs(paint(pipeline, 3) - paint(ended, 3)).max() <= 1


def test_a_student_goes_on_by_the_method_that_made_it(runs, tmp_path):
    settings = {
        "model": str(runs("any-step") / "model"), "data": "scenes-leaning", "pictures": 8, "steps": 1, "batch_size": 2,
        "skip": 25, "sample_every": 0, "guidance_range": (2.0, 9.0), "guidance_scale": 5.0, "device": "cpu",
    }  # fmt: skip
    for name in ("any-step", "pcm", "tcd"):
        made = settings | {"model": str(runs(name) / "model")}
        with pytest.raises(UserError, match=f"was made by {name} and cannot go on by lcm; give --method {name}"):
            finetune(Finetune(**made, out=tmp_path / name))
    finetune(Finetune(**settings, method="any-step", out=tmp_path / "run"))
    assert fewstep.load(tmp_path / "run", "cpu").method is METHODS["any-step"]


def test_adapters_learn_what_needs_no_input(random_teacher, tmp_path):
    lora = Distill(
        teacher=str(random_teacher), method="pcm", phases=(2,), steps=1, batch_size=2, pictures=4, lora_rank=2,
        guidance_range=(5.0, 5.0), sample_every=0, out=tmp_path / "run", device="cpu",
    )  # fmt: skip
    distill(lora)
    ours = fewstep.load(tmp_path / "run", "cpu")
    assert (ours.method, ours.steps) == (METHODS["pcm"], 2)
    with safe_open(tmp_path / "run" / "model" / "pytorch_lora_weights.safetensors", "pt") as file:
        header = file.metadata()
    assert (header["fewstep.scheduler"], header["fewstep.steps"]) == ("DDIMScheduler", "2")
    assert header["fewstep.phases"] == "2"  # which a second stage goes on for
    assert header["modelspec.usage_hint"].startswith("Euler with the schedule Simple, or DDIM with trailing spacing, 2")
    combine(Combine(lora=(f"{tmp_path / 'run'}",), base=str(random_teacher), merged=True, out=tmp_path / "merged"))
    for folder in (random_teacher, tmp_path / "merged"):
        stock = DiffusionPipeline.from_pretrained(folder)
        stock.set_progress_bar_config(disable=True)
        if folder == random_teacher:
            settings = {"timestep_spacing": "trailing", "clip_sample": False}
            stock.scheduler = DDIMScheduler.from_config(stock.scheduler.config, **settings)
            stock.load_lora_weights(tmp_path / "run" / "model", weight_name="pytorch_lora_weights.safetensors")
        theirs = stock(PROMPT, num_inference_steps=2, guidance_scale=1, generator=torch.Generator().manual_seed(3))
        assert np.abs(np.asarray(theirs.images[0], dtype=int) - paint(ours, 2)).max() <= 1
    assert fewstep.load(tmp_path / "merged", "cpu").method is METHODS["pcm"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"phases": (4,)}, "lcm has none"),
        ({"method": "pcm", "phases": (2, 4)}, "pcm takes one number; give --method any-step"),
        ({"method": "any-step", "phases": (0,)}, "expected numbers from 1"),
        ({"method": "magic"}, "allowed:"),
        ({"method": "ect"}, "has no teacher, nor guidance: give it to `fewstep finetune`"),
        ({"method": "guided-distill", "shrink": 0.5}, "has a distance of its own; give --shrink 0"),
        ({"target": "average", "ema_decay": 0.0}, "give --ema-decay, or --target itself"),
        ({"method": "guided-distill", "target": "itself"}, "guided-distill has none; give --target auto"),
        ({"method": "guided-distill", "target_decay": 0.9}, "guided-distill has no target; leave --target-decay out"),
        ({"target": "itself", "target_decay": 0.9}, "has the student itself for a target; leave --target-decay out"),
        ({"target_decay": 0.0}, "above 0 and below 1; without an average give --target itself"),
        ({"target_decay": 1.0}, "above 0 and below 1"),
        ({"target_decay": float("nan")}, "finite"),
        ({"method": "any-step", "shrink": 0.5}, "equal steps, and --shrink wants others; give --states data"),
        ({"method": "any-step", "times": "any"}, "equal steps, and --times any wants others"),
        ({"method": "guided-distill", "states": "walkers"}, "equal steps, and --method guided-distill wants others"),
    ],
)
def test_phases_that_no_method_has_are_refused(settings, said):
    with pytest.raises(UserError, match=said):
        Distill(**settings)


def test_a_card_and_a_network_that_disagree_are_refused(runs, tmp_path):
    folder = shutil.copytree(runs("any-step") / "model", tmp_path / "model")
    card = json.loads((folder / "fewstep.json").read_text())
    (folder / "fewstep.json").write_text(json.dumps(card | {"consistency": "pcm"}))
    with pytest.raises(UserError, match="an input for where to land"):
        fewstep.load(folder, "cpu")
    (folder / "fewstep.json").write_text(json.dumps(card | {"consistency": "next-year"}))
    with pytest.raises(UserError, match="made by the method next-year, which this version does not know"):
        fewstep.load(folder, "cpu")


def test_xl_has_a_pipeline_of_its_own():
    family = find_family("sdxl")
    assert "StableDiffusionXLPipeline" in family.write_any_step_pipeline(None)
    assert "(StableDiffusionPipeline)" not in family.write_any_step_pipeline(None)


def test_pictures_alone_do_not_teach_what_needs_a_teacher_or_a_last_time_that_is_not_noise_alone(tmp_path):
    with pytest.raises(UserError, match="a fine-tuning has none; give another --method"):
        Finetune(model="scenes", method="guided-distill")
    config = Finetune(
        model="scenes", data="scenes-leaning", pictures=4, steps=1, batch_size=2, sample_every=0, method="ect",
        guidance_range=(2.0, 9.0), guidance_scale=5.0, device="cpu", out=tmp_path / "run",
    )  # fmt: skip
    with pytest.raises(UserError, match="is noise alone, which ect never reaches"):
        finetune(config)


def test_pictures_alone_teach_ect(tmp_path):
    tokenizer = CLIPTokenizer.from_pretrained(assets.scenes_teacher() / "tokenizer")
    teacher = save_miniature("sd15", tokenizer, tmp_path / "sd15")
    (tmp_path / "photos").mkdir()
    for i in range(4):
        Image.new("RGB", (16, 16), (60 * i, 90, 120)).save(tmp_path / "photos" / f"{i}.png")
        (tmp_path / "photos" / f"{i}.txt").write_text("a star")
    finetune(
        Finetune(
            model=str(teacher), data=str(tmp_path / "photos"), steps=1, batch_size=2, sample_every=0, method="ect",
            guidance_range=(2.0, 9.0), guidance_scale=5.0, device="cpu", out=tmp_path / "run",
        )
    )  # fmt: skip
    assert fewstep.load(tmp_path / "run", "cpu").method is METHODS["ect"]


def test_numbers_of_phases_are_kept(random_teacher, tmp_path):
    """In the card, in a run that has not ended, and by what goes on from the model."""
    settings = {"steps": 1, "batch_size": 2, "pictures": 4, "sample_every": 0, "guidance_range": (2.0, 9.0)}
    out = tmp_path / "run"
    distill(Distill(teacher=str(random_teacher), method="pcm", phases=(8,), out=out, device="cpu", **settings))
    going = shutil.copytree(out, tmp_path / "going", ignore=shutil.ignore_patterns("model"))
    assert load_painter(going, "cpu").steps == fewstep.load(out, "cpu").steps == 8
    more = settings | {"data": "scenes-leaning", "guidance_scale": 5.0, "device": "cpu"}
    finetune(Finetune(model=str(out / "model"), method="pcm", out=tmp_path / "more", **more))
    assert fewstep.load(tmp_path / "more", "cpu").model.card.phases == (8,)
    text = (out / "model" / "README.md").read_text()
    assert "A few-step model by pcm (arXiv 2405.18407), made with fewstep: 8 steps in place of 50." in text


def test_a_run_of_before_there_were_methods_goes_on(random_teacher, tmp_path, capsys):
    config = Distill(
        teacher=str(random_teacher), steps=1, batch_size=2, pictures=4, sample_every=0, out=tmp_path / "run",
        device="cpu",
    )  # fmt: skip
    distill(config)
    file = config.out / "config.yaml"
    held = file.read_text().replace("distance: auto", "distance: huber")
    held = held.replace("loss_weight: auto", "loss_weight: constant").splitlines(True)
    file.write_text("".join(line for line in held if not line.startswith(("method:", "phases:"))))
    distill(config)
    assert "is finished" in capsys.readouterr().out


def test_what_is_shown_on_the_way_is_clean(runs):
    """A picture that stands at a later time's noise is shown without it."""
    pipeline = fewstep.load(runs("any-step"), "cpu")
    model, shown = pipeline.model, []
    engine = Engine(pipeline, {}, EngineLimits())
    engine.start()
    spec = PictureSpec(prompt=PROMPT, seed=3, steps=4, omega=2.0, size=(model.resolution,) * 2, previews=True)
    (job,) = engine.submit([spec], lambda _, image: shown.append(np.asarray(image, dtype=int)))
    final = np.asarray(job.future.result(60), dtype=int)
    assert engine.close(30)
    assert np.abs(final - paint(pipeline, 4, guidance_scale=3.0)).max() <= 1
    times, ends = (torch.tensor(each[:1]) for each in pipeline.jumps(4))
    noise = seeded_noise([3], model.codec.shape(model.resolution), torch.device("cpu"))()
    with torch.no_grad():
        cond = model.conditioner.encode([PROMPT]) | {"end": ends}
        clean = model.network(noise, times, cond, torch.tensor([2.0])).z_0
        first = np.asarray(to_images(model.codec.decode(clean))[0], dtype=int)
    assert len(shown) == 3
    assert np.abs(shown[0] - first).max() <= 1


@pytest.mark.parametrize("name", ["lcm", "any-step"])
def test_the_sampler_that_is_asked_for_paints_and_is_recorded(name, runs, tmp_path):
    painted = {}
    for sampler in ("auto", "deterministic", "consistency", "0.3", "0", "1"):
        pipeline = fewstep.load(runs(name), "cpu", sampler=sampler)
        painted[sampler] = paint(pipeline, 3)
        times, ends = pipeline.jumps(3)
        assert (ends == [0, 0, 0]) == (pipeline.method.gamma == 1)
        assert (ends[0] == times[1]) == (pipeline.method.gamma == 0)
    own = "consistency" if name == "lcm" else "deterministic"
    for same, other in (("auto", own), ("deterministic", "0"), ("consistency", "1")):
        assert np.array_equal(painted[same], painted[other])
    assert len({each.tobytes() for each in painted.values()}) == 3
    generate(Generate(model=str(runs(name)), sampler="0.3", prompt=(PROMPT,), steps=3, seed=3, out=tmp_path))
    (file,) = tmp_path.iterdir()
    with Image.open(file) as image:
        assert np.array_equal(np.asarray(image, dtype=int), painted["0.3"])
        assert "Sampler: TCD" in image.text["parameters"]
    for odd in ("euler", "2", "-1", "nan", ""):
        with pytest.raises(UserError, match="known: auto, deterministic, consistency, and numbers from 0 to 1"):
            pipeline.use_sampler(odd)


def test_where_an_update_learns_is_a_value(random_teacher, tmp_path):
    """Each on walkers and on pictures with noise, as whatever learns; a fine-tuning follows nobody."""
    common = {
        "teacher": str(random_teacher), "steps": 2, "batch_size": 4, "pictures": 8, "skip": 125, "ema_decay": 0.5,
        "guidance_range": (5.0, 5.0), "device": "cpu", "sample_every": 0, "log_every": 1,
    }  # fmt: skip
    losses = {}
    for method, states, rank in (
        ("any-step", "auto", 0), ("any-step", "walkers", 0), ("any-step", "data", 0), ("lcm", "walkers", 0),
        ("lcm", "auto", 0), ("pcm", "walkers", 2), ("pcm", "data", 2),
    ):  # fmt: skip
        out = tmp_path / f"{method}-{states}-{rank}"
        distill(Distill(**common, method=method, states=states, lora_rank=rank, out=out))
        lines = [json.loads(line) for line in (out / "metrics.jsonl").open()]
        losses[method, states] = [line["loss"] for line in lines]
    assert losses["any-step", "auto"] == losses["any-step", "walkers"] != losses["any-step", "data"]
    assert losses["lcm", "auto"] != losses["lcm", "walkers"]
    assert losses["pcm", "walkers"] != losses["pcm", "data"]
    with pytest.raises(UserError, match="a fine-tuning has none; give --states data"):
        Finetune(states="walkers")
    assert not Finetune(method="any-step", shrink=0.5).has_walkers


def test_who_answers_at_the_earlier_time_is_a_value(random_teacher, tmp_path):
    losses, exported = {}, {}
    for target in ("auto", "average", "itself"):
        config = Distill(
            teacher=str(random_teacher), steps=3, batch_size=4, pictures=8, ema_decay=0.9, lr=1e-2, device="cpu",
            sample_every=0, log_every=1, target=target, out=tmp_path / target,
        )  # fmt: skip
        distill(config)
        losses[target] = [json.loads(line)["loss"] for line in (config.out / "metrics.jsonl").open()]
        (weights,) = (config.out / "model" / "unet").glob("*.safetensors")
        exported[target] = weights.read_bytes()
    assert losses["auto"] == losses["average"] != losses["itself"]
    assert losses["auto"][0] == losses["itself"][0]  # until the first update they are one
    assert exported["auto"] == exported["average"] != exported["itself"]
