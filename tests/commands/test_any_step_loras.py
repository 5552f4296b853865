"""LoRAs by any-step: trained, gone on with, painted with alone and with a style, merged, served, described."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

import fewstep
from fewstep import assets
from fewstep.commands.combine import Combine, combine
from fewstep.commands.distill import distill
from fewstep.commands.inspect import describe
from fewstep.data.draws import generator
from fewstep.errors import UserError
from fewstep.files import read_safetensors_header
from fewstep.method.named import METHODS
from fewstep.models.card import LORA_FILE
from fewstep.models.loading import load_latent_model
from fewstep.models.lora.comfyui import WORKFLOW_FILE
from fewstep.models.lora.file import KOHYA_FILE, Pair, write_lora
from fewstep.models.pipeline_loading import load_pipeline
from fewstep.recipes.distill import Distill
from fewstep.runs.unfinished import load_painter
from fewstep.serve.engine import Engine
from fewstep.serve.jobs import EngineLimits, PictureSpec
from fewstep.train.checkpoint import TENSORS_FILE
from miniatures import save_miniature

PROMPT = "a red star"
STYLED = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q"
"""A module that few-step LoRAs adapt too; the next they do not."""
TIME = "time_embedding.linear_1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A miniature of each family, prompts, and what is made of them."""
    folder = tmp_path_factory.mktemp("any-step")
    tokenizer = CLIPTokenizer.from_pretrained(assets.scenes_teacher() / "tokenizer")
    for family in ("sd15", "sd21", "sdxl"):
        save_miniature(family, tokenizer, folder / family)
    (folder / "prompts.txt").write_text("a red star\na blue ring\na green heart\na pink star\n")
    return folder


def settings(folder, family="sd15", **more):
    return {
        "teacher": str(folder / family), "data": str(folder / "prompts.txt"), "method": "any-step", "lora_rank": 2,
        "steps": 3, "batch_size": 2, "lr": 3e-2, "skip": 125, "ema_decay": 0.5, "guidance_range": (5.0, 5.0),
        "sample_every": 0, "checkpoint_every": 1, "keep_checkpoints": 3, "device": "cpu", **more,
    }  # fmt: skip


@pytest.fixture(scope="module")
def runs(folder):
    """The finished run of a family."""

    def make(family="sd15"):
        out = folder / f"run-{family}"
        if not out.exists():
            distill(Distill(**settings(folder, family), out=out))
        return out

    return make


@pytest.fixture(scope="module")
def style(folder):
    """A style on the first family, on the network's time as well."""
    model = load_latent_model(folder / "sd15", torch.device("cpu"))
    pairs = {}
    for i, name in enumerate((STYLED, TIME)):
        weight, drawn = model.network.backbone.get_submodule(name).weight, generator(0, "style", i)
        down = torch.randn((2, weight.shape[1]), generator=drawn)
        pairs[f"unet.{name}"] = Pair(down, torch.randn((len(weight), 2), generator=drawn), 2.0)
    write_lora(folder / "style", pairs, {"fewstep.method": "style"}, model.parts, model.family.lora)
    return folder / "style" / LORA_FILE


def paint(pipeline, steps=3, **more):
    return np.asarray(pipeline(PROMPT, steps=steps, seed=3, **more)[0], dtype=int)


def differ(one, other):
    return int(np.abs(one - other).max())


@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl"])
def test_it_paints_and_merged_it_does_too_here_and_in_stock_diffusers(family, runs, folder, tmp_path):
    run = runs(family)
    ours = fewstep.load(run, "cpu")
    assert ours.method is METHODS["any-step"]
    assert ours.model.card.phases == (1, 2, 4, 8)
    assert not (run / "model" / KOHYA_FILE).exists()
    given = load_pipeline(folder / family, "cpu", [(run / "model" / LORA_FILE, 1.0)])
    assert np.array_equal(paint(given), paint(ours))
    combine(Combine(lora=(f"{run}:0.5",), base=str(folder / family), merged=True, out=tmp_path / "merged"))
    weaker = load_pipeline(folder / family, "cpu", [(run / "model" / LORA_FILE, 0.5)])
    assert differ(paint(weaker), paint(given)) > 1
    merged = fewstep.load(tmp_path / "merged", "cpu")
    assert (merged.method, merged.takes_guidance, merged.guidance_scale) == (METHODS["any-step"], False, 5.0)
    for steps in (1, 4):
        assert differ(paint(merged, steps), paint(weaker, steps)) <= 1
    if family == "sd21":  # whose pipeline is that of sd15
        return
    stock = DiffusionPipeline.from_pretrained(
        tmp_path / "merged", custom_pipeline=str(tmp_path / "merged"), trust_remote_code=True
    )
    stock.set_progress_bar_config(disable=True)
    asked = {"num_inference_steps": 4, "generator": torch.Generator().manual_seed(3)}
    asked |= {"height": 16, "width": 16} if family == "sdxl" else {}
    assert differ(np.asarray(stock(PROMPT, **asked).images[0], dtype=int), paint(merged, 4)) <= 1


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_the_loader_of_diffusers_takes_the_adapters_and_leaves_the_rest(family, runs, folder, caplog):
    stock = DiffusionPipeline.from_pretrained(folder / family)
    before = {name for name, _ in stock.unet.named_parameters() if "lora_" not in name}
    stock.load_lora_weights(runs(family) / "model", weight_name=LORA_FILE)
    held = load_file(runs(family) / "model" / LORA_FILE)
    own = {name.removesuffix(".weight"): value for name, value in stock.unet.named_parameters() if "lora_" in name}
    adapted = [key for key in held if key.startswith("unet.")]
    assert len(own) == len(adapted)
    for key in adapted:
        name = key.removeprefix("unet.").removesuffix(".weight")
        assert torch.equal(own[f"{name}.default_0"], held[key])
    assert {n.replace(".base_layer", "") for n, _ in stock.unet.named_parameters() if "lora_" not in n} == before
    assert not [message for message in caplog.messages if "fewstep" in message or "unexpected" in message.lower()]


def test_the_end_is_heeded_and_written_is_the_average(runs):
    pipeline = fewstep.load(runs(), "cpu")
    held = load_file(runs() / "model" / LORA_FILE)
    assert not (runs() / "model" / WORKFLOW_FILE).exists()  # ComfyUI cannot tell a network where to land
    last = load_file(runs() / "checkpoints/step-0000003" / TENSORS_FILE)
    for layer in (1, 2):
        own = held[f"fewstep_lora_end.linear_{layer}.weight"]
        assert torch.equal(own, last[f"averaged.unet/class_embedding/linear_{layer}/weight"])
        assert not torch.equal(own, last[f"student.unet/class_embedding/linear_{layer}/weight"])
    z, t = torch.randn(1, 4, 8, 8), torch.tensor([999])
    cond = pipeline.model.conditioner.encode([PROMPT])
    near, far = (pipeline.model.network(z, t, cond | {"end": torch.tensor([e])}, None).z_0 for e in (0, 900))
    assert not torch.equal(near, far)


@pytest.mark.parametrize("method", ["any-step", "tdm"])
def test_it_goes_on_bit_for_bit_and_paints_from_a_checkpoint(method, runs, folder, tmp_path):
    """Cut off after two updates of three; tdm goes on from the LoRA by any-step."""
    given = settings(folder) if method == "any-step" else settings(folder, method="tdm", start=str(runs()), fake_rank=2)
    config = Distill(**given, out=tmp_path / "run")
    distill(config)
    last = load_file(config.out / "checkpoints/step-0000003" / TENSORS_FILE)
    painted, card = paint(fewstep.load(config.out, "cpu")), json.loads((config.out / "model/fewstep.json").read_text())
    assert (card["consistency"], card["phases"]) == ("any-step", [1, 2, 4, 8])
    assert card.get("refined_by") == (None if method == "any-step" else "tdm")
    shutil.rmtree(config.out / "model")
    going = load_painter(config.out, "cpu")
    assert going.method is METHODS["any-step"]
    assert differ(painted, paint(fewstep.load(runs(), "cpu"))) > 1 or method == "any-step"
    assert np.array_equal(paint(going), painted)
    shutil.rmtree(config.out / "checkpoints/step-0000003")
    distill(config)
    again = load_file(config.out / "checkpoints/step-0000003" / TENSORS_FILE)
    assert last.keys() == again.keys()
    assert all(torch.equal(last[key], again[key]) for key in last)
    assert np.array_equal(paint(fewstep.load(config.out, "cpu")), painted)


def test_tdm_begins_as_the_lora_that_it_starts_from(runs, folder, tmp_path):
    common = settings(folder, method="tdm", start=str(runs()), fake_rank=2, steps=1, gradient_checkpointing=True)
    distill(Distill(**{**common, "lr": 1e-12, "fake_lr": 1e-3}, out=tmp_path / "still"))
    assert differ(paint(fewstep.load(tmp_path / "still", "cpu")), paint(fewstep.load(runs(), "cpu"))) <= 1


def test_a_style_goes_with_it_hung_on_combined_and_merged(runs, style, folder, tmp_path):
    lora = runs() / "model" / LORA_FILE
    alone = paint(fewstep.load(runs(), "cpu"))
    both = paint(load_pipeline(folder / "sd15", "cpu", [(style, 0.5), (lora, 1.0)]))
    assert differ(both, alone) > 1
    assert differ(paint(load_pipeline(runs(), "cpu", [(style, 0.5)])), both) <= 1
    given = {"lora": (f"{style}:0.5", str(lora)), "base": str(folder / "sd15")}
    combine(Combine(**given, out=tmp_path / "combined"))
    assert [file.name for file in (tmp_path / "combined").glob("*.safetensors")] == [LORA_FILE]
    combine(Combine(**given, merged=True, out=tmp_path / "merged"))
    for made in ("combined", "merged"):
        assert differ(paint(fewstep.load(tmp_path / made, "cpu")), both) <= 1


def test_two_of_them_or_a_base_that_is_few_step_already_are_refused(runs, folder, tmp_path):
    lora = runs() / "model" / LORA_FILE
    with pytest.raises(UserError, match="beside which no second few-step LoRA can be"):
        load_pipeline(folder / "sd15", "cpu", [(lora, 1.0), (lora, 0.5)])
    with pytest.raises(UserError, match="beside which no second few-step LoRA can be"):
        combine(Combine(lora=(str(lora), str(lora)), base=str(folder / "sd15"), out=tmp_path / "two"))
    combine(Combine(lora=(str(lora),), base=str(folder / "sd15"), merged=True, out=tmp_path / "merged"))
    with pytest.raises(UserError, match=r"is few-step already, and .* tells its base where to land"):
        load_pipeline(tmp_path / "merged", "cpu", [(lora, 1.0)])
    card = json.loads((tmp_path / "merged/fewstep.json").read_text())
    (tmp_path / "merged/fewstep.json").write_text(json.dumps({**card, "method": None}))
    with pytest.raises(UserError, match="class_embed_type timestep, which is told more than a prompt"):
        load_latent_model(tmp_path / "merged", torch.device("cpu"))


def test_a_file_whose_header_and_tensors_disagree_is_refused(runs, folder, tmp_path):
    lora = runs() / "model" / LORA_FILE
    header, tensors = read_safetensors_header(lora).metadata, load_file(lora)
    odd = {
        "without": ({key: value for key, value in tensors.items() if key.startswith("unet.")}, header),
        "other": (tensors, {**header, "fewstep.consistency": "pcm"}),
        "phases": (tensors, {**header, "fewstep.phases": "1,x"}),
    }
    said = {"without": "is by any-step as its header says, and carries no input", "other": "is by pcm .* carries an",
            "phases": "expected whole numbers, as 1,2,4,8"}  # fmt: skip
    for name, (held, metadata) in odd.items():
        save_file(held, tmp_path / f"{name}.safetensors", metadata)
        with pytest.raises(UserError, match=said[name]):
            load_pipeline(folder / "sd15", "cpu", [(tmp_path / f"{name}.safetensors", 1.0)])
        start = Distill(**settings(folder, start=str(tmp_path / f"{name}.safetensors")), out=tmp_path / name)
        with pytest.raises(UserError, match=said[name]):
            distill(start)


def test_requests_have_scales_of_their_own(runs, style, folder):
    """Each request's picture is that of a model that was loaded with its scales."""
    lora = runs() / "model" / LORA_FILE
    pipeline = load_pipeline(folder / "sd15", "cpu", [(style, 1.0), (lora, 1.0)])
    engine = Engine(pipeline, {"style": "lora0", "few": "lora1"}, EngineLimits())
    engine.start()
    kinds = [(("style", a), ("few", b)) for a, b in ((0.0, 1.0), (0.5, 0.7), (0.0, 0.0))]
    specs = [PictureSpec(prompt=PROMPT, seed=3, steps=3, omega=4.0, size=(16, 16), loras=kind) for kind in kinds]
    found = [np.asarray(job.future.result(60), dtype=int) for job in engine.submit(specs)]
    assert engine.close(30)
    for picture, ((_, a), (_, b)) in zip(found, kinds, strict=True):
        wanted = paint(load_pipeline(folder / "sd15", "cpu", [(style, a), (lora, b)]))
        assert differ(picture, wanted) <= 1
    assert min(differ(found[0], each) for each in found[1:]) > 1


def test_half_precision_paints_nearly_the_same(runs):
    wanted, found = (paint(fewstep.load(runs(), "cpu", precision=each)) for each in ("fp32", "bf16"))
    assert np.abs(found - wanted).mean() < 4


def test_it_is_described_as_what_it_is(runs):
    header = read_safetensors_header(runs() / "model" / LORA_FILE).metadata
    assert header["modelspec.usage_hint"].startswith("fewstep alone, 1 to 8 steps")
    lines = [*describe(runs() / "model" / LORA_FILE)]
    assert "tells its base where to land: 1,344 of the parameters; paints with fewstep alone" in lines
    assert any(line.startswith("paint with it: fewstep generate --model") for line in lines)
    text = (runs() / "model/README.md").read_text()
    assert 'pipe = fewstep.load("this folder")' in text
    assert "diffusers import" not in text


def test_what_is_trained_is_what_a_dry_run_says(folder, tmp_path, capsys):
    distill(Distill(**settings(folder, "sd15", gradient_checkpointing=True), dry_run=True, out=tmp_path / "run"))
    said = capsys.readouterr().out
    assert "LoRA written without kohya's spelling, whose readers have no place for the end" in said
    assert "saved and loaded again" in said
