"""What is loaded is what was meant: weights, tokenizers, variants, and models that are few-step already."""

import itertools
import json
import logging
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import DiffusionPipeline, LCMScheduler, UNet2DConditionModel
from loading_refused import refusal

from fewstep import assets
from fewstep.commands.distill import distill
from fewstep.commands.finetune import finetune
from fewstep.errors import UserError
from fewstep.models.extractors import load_extractor
from fewstep.models.loading import load_latent_model
from fewstep.models.pipeline_loading import load_pipeline
from fewstep.models.tiny_decoder import load_tiny_decoder
from fewstep.models.weight_files import choose_weights
from fewstep.recipes.distill import Distill
from fewstep.recipes.finetune import Finetune

CPU = torch.device("cpu")
PROMPT = "a red star"
WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


def change_tensors(file, change):
    tensors = safetensors.torch.load_file(file)
    change(tensors)
    safetensors.torch.save_file(tensors, file, {"format": "pt"})


# Weights


def drop(count):
    return lambda tensors: [tensors.pop(name) for name in sorted(tensors)[:count]]


def add(tensors):
    tensors["surplus.weight"] = torch.zeros(3)


def reshape(tensors):
    name = max(tensors, key=lambda each: tensors[each].ndim)
    tensors[name] = torch.zeros(5, *tensors[name].shape[1:])


@pytest.mark.parametrize(
    ("change", "said"),
    [(drop(1), "it lacks "), (drop(7), "it lacks 7 tensors"), (add, "left over surplus.weight"), (reshape, "shape")],
)
@pytest.mark.parametrize("part", WEIGHTS)
def test_weights_that_are_not_the_parts_are_named(part, change, said, copy):
    folder = copy()
    change_tensors(folder / part / f"{WEIGHTS[part]}.safetensors", change)
    message = refusal(folder)
    assert str(folder / part) in message
    assert said in message
    assert "If you want" not in message  # advice for whoever writes code with diffusers


@pytest.mark.parametrize("part", WEIGHTS)
def test_weights_that_are_not_finite_paint_no_black_picture(part):
    pipeline = load_pipeline(assets.SCENES_LCM, "cpu")
    parts = {**pipeline.model.parts, "vae": pipeline.model.codec.autoencoder}
    *_, (name, value) = parts[part].named_parameters()
    value.data.fill_(float("nan"))
    with pytest.raises(UserError, match=rf"scenes-lcm paints no picture but NaN .* infinity in {part}\.{name}; fetch"):
        pipeline(PROMPT, steps=1)


def test_numbers_that_overflow_are_no_black_picture_either():
    with pytest.raises(UserError, match=r"overflow in fp32; give --precision .* smaller scales"):
        load_pipeline(assets.SCENES_LCM, "cpu").to_images(torch.full((1, 3, 8, 8), float("inf")))


@pytest.mark.parametrize("name", ["text_model.embeddings.position_ids", "text_projection.weight"])
def test_what_a_text_encoder_is_used_without_may_be_left_over(name, copy, miniatures):
    folder, (plain, _) = copy(), miniatures["sd15"]
    change_tensors(
        folder / "text_encoder" / "model.safetensors", lambda tensors: tensors.update({name: torch.zeros(1, 4)})
    )
    found, wanted = (load_latent_model(each, CPU).parts["text_encoder"].state_dict() for each in (folder, plain))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[each], value) for each, value in wanted.items())


@pytest.mark.parametrize(
    ("family", "begin"),
    [
        ("sd15", "model.diffusion_model.input_blocks.1"), ("sd15", "first_stage_model.decoder"),
        ("sd15", "cond_stage_model.transformer.text_model"), ("sd21", "cond_stage_model.model.transformer"),
        ("sdxl", "conditioner.embedders.0.transformer.text_model"),
        ("sdxl", "conditioner.embedders.1.model.transformer"),
    ],
)  # fmt: skip
def test_a_single_files_missing_and_surplus_tensors_are_named(family, begin, miniatures, tmp_path):
    folder, whole = miniatures[family]
    names = sorted(name for name in safetensors.torch.load_file(whole) if name.startswith(begin))
    tensors = safetensors.torch.load_file(whole)
    surplus = f"{begin}.9.weight"
    cases = {
        f"it lacks {names[-1]}": {name: value for name, value in tensors.items() if name != names[-1]},
        f"it has left over {surplus}": {**tensors, surplus: torch.zeros(2)},
    }
    for said, content in cases.items():
        safetensors.torch.save_file(content, tmp_path / "model.safetensors")
        assert said in refusal(tmp_path / "model.safetensors", base_config=str(folder))


def test_an_autoencoder_in_the_first_spelling_is_read(copy, miniatures):
    """Released autoencoders call query, key and value of their attention otherwise."""

    def spell(tensors):
        for ours, theirs in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            for name in [each for each in tensors if f".{ours}." in each]:
                tensors[name.replace(f".{ours}.", f".{theirs}.")] = tensors.pop(name)

    folder = copy()
    change_tensors(folder / "vae" / "diffusion_pytorch_model.safetensors", spell)
    z = torch.randn(1, 4, 8, 8)
    one, other = (load_latent_model(each, CPU).codec.decode(z) for each in (folder, miniatures["sd15"][0]))
    assert torch.equal(one, other)


# Tokenizers


def test_a_tokenizer_without_its_vocabulary_is_refused(copy):
    folder = copy()
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (folder / "tokenizer" / name).unlink(missing_ok=True)
    assert "has no tokenizer.json and no vocab.json, so it has no vocabulary" in refusal(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_max_length": 77}, "reads up to 77 tokens and its text encoder has 32 places"),
        ({"model_max_length": 10**30}, "says no model_max_length"),
        ({"model_max_length": 10**8}, "reads up to 100000000 tokens and its text encoder has 32 places"),
        ({"model_max_length": 2}, "reads up to 2 tokens"),
        ({"pad_token": None}, "names no pad_token"),
        ({"model_max_length": [77]}, "has model_max_length [77] in tokenizer_config.json; set it to 32"),
        ({"\x1b[31m": 1}, "has an entry '\\x1b[31m', which is not a name"),
    ],
)
def test_a_tokenizer_of_another_length_is_refused(change, said, copy, edit_json):
    folder = copy()
    edit_json(folder / "tokenizer" / "tokenizer_config.json", **change)
    assert said in refusal(folder)


@pytest.mark.parametrize("rows", [10, 2000])
def test_a_tokenizer_of_another_vocabulary_is_refused(rows, copy, edit_json):
    folder = copy()
    edit_json(folder / "text_encoder" / "config.json", vocab_size=rows)

    def resize(tensors):
        (name,) = [each for each in tensors if "token_embedding" in each]
        tensors[name] = torch.zeros(rows, tensors[name].shape[1])

    change_tensors(folder / "text_encoder" / "model.safetensors", resize)
    assert f"tokens and its text encoder knows {rows}" in refusal(folder)


# Variants

VARIANTS = {
    "plain before fp16": (["m.safetensors", "m.fp16.safetensors", "m.bf16.safetensors"], ["m.safetensors"]),
    "fp16 before bf16": (["m.bf16.safetensors", "m.fp16.safetensors"], ["m.fp16.safetensors"]),
    "bf16 before another": (["m.non_ema.safetensors", "m.bf16.safetensors"], ["m.bf16.safetensors"]),
    "another alone": (["m.non_ema.safetensors", "m.bin"], ["m.non_ema.safetensors"]),
    "another name": (["unet.safetensors"], ["unet.safetensors"]),
    "shards": (["m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"],) * 2,
    "shards of a variant": (["m.fp16-00001-of-00002.safetensors", "m.fp16-00002-of-00002.safetensors"],) * 2,
    "older shards": (["m-00001-of-00002.fp16.safetensors", "m-00002-of-00002.fp16.safetensors"],) * 2,
    "whole before shards": (["m-00001-of-00002.safetensors", "m.safetensors"], ["m.safetensors"]),
}  # fmt: skip


@pytest.mark.parametrize("case", VARIANTS)
def test_one_variant_is_chosen(case):
    held, chosen = ([name.replace("m.", "model.").replace("m-", "model-") for name in n] for n in VARIANTS[case])
    for order in itertools.islice(itertools.permutations(held), 6):
        assert list(choose_weights(order, "here").names) == chosen


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["model.bin"], "no safetensors weights .found model.bin, a pickle"), ([], "found none"),
        (["model.a.safetensors", "model.b.safetensors"], "several variants of its weights .a, b. and none of plain"),
        (["model-00002-of-00003.safetensors"], "lacks 2 of 3 shards .* .number 1 is the first"),
    ],
)  # fmt: skip
def test_weights_that_cannot_be_chosen_are_refused(names, said):
    with pytest.raises(UserError, match=said):
        choose_weights(names, "here")


@pytest.mark.parametrize("spelling", ["fp16", "non_ema", "fp16 shards", "older shards", "shards without an index"])
def test_every_spelling_of_variants_and_shards_is_read(spelling, copy, miniatures):
    folder = copy()
    for part, stem in WEIGHTS.items():
        file = folder / part / f"{stem}.safetensors"
        tensors = safetensors.torch.load_file(file)
        file.unlink()
        if "shards" not in spelling:
            safetensors.torch.save_file(tensors, folder / part / f"{stem}.{spelling}.safetensors", {"format": "pt"})
            continue
        form = {"fp16 shards": "{}.fp16-{}", "older shards": "{}-{}.fp16"}.get(spelling, "{}-{}")
        index = {}
        for number in (1, 2):
            name = form.format(stem, f"{number:05d}-of-00002") + ".safetensors"
            part_of = {key: tensors[key] for key in sorted(tensors)[number - 1 :: 2]}
            safetensors.torch.save_file(part_of, folder / part / name, {"format": "pt"})
            index |= dict.fromkeys(part_of, name)
        if "without" not in spelling:
            form = "{}.fp16.safetensors.index.json" if spelling == "fp16 shards" else "{}.safetensors.index.fp16.json"
            (folder / part / form.format(stem)).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    model, wanted = (load_latent_model(each, CPU) for each in (folder, miniatures["sd15"][0]))
    for part, held in wanted.parts.items():
        found = model.parts[part].state_dict()
        assert all(torch.equal(found[name], value) for name, value in held.state_dict().items())
    assert str(folder) in str(model.network.backbone.config.get("_name_or_path", folder))


# What is no text-to-image model


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"in_channels": 9}, "9 input channels"), ({"in_channels": 8}, "editing .pix2pix."),
        ({"in_channels": 7, "num_class_embeds": 1000}, "upscaling models are not read"),
        ({"num_class_embeds": 1000}, "num_class_embeds 1000"), ({"out_channels": 8}, "8 output channels for 4"),
        ({"cross_attention_dim": 24}, "for text 24 wide and text encoders of 16"),
    ],
)  # fmt: skip
def test_what_is_told_more_than_a_prompt_is_refused(change, said, copy):
    folder = copy()
    config = json.loads((folder / "unet" / "config.json").read_text())
    UNet2DConditionModel.from_config({**config, **change}).save_pretrained(folder / "unet")
    with pytest.raises(UserError, match=said):
        load_latent_model(folder, CPU)


def test_a_refiner_is_refused(copy, edit_json):
    folder = copy("sdxl")
    edit_json(folder / "model_index.json", requires_aesthetics_score=True)
    assert "is a refiner" in refusal(folder)


@pytest.mark.parametrize(
    ("family", "begin"), [("sdxl", "cond_stage_model.transformer."), ("sd15", "conditioner.embedders.0.transformer.")]
)
def test_a_key_of_another_familys_makes_no_file_of_it(family, begin, miniatures, tmp_path):
    folder, whole = miniatures[family]
    stray = {f"{begin}text_model.embeddings.position_ids": torch.zeros(1, 77)}
    safetensors.torch.save_file(safetensors.torch.load_file(whole) | stray, tmp_path / "x.safetensors")
    found, wanted = (load_latent_model(each, CPU, str(folder)) for each in (tmp_path / "x.safetensors", whole))
    assert found.family is wanted.family
    for part in wanted.parts.keys() & {"unet", "text_encoder", "text_encoder_2"}:
        held = found.parts[part].state_dict()
        assert all(torch.equal(held[name], value) for name, value in wanted.parts[part].state_dict().items())


# Averaged weights


def test_averaged_weights_of_a_single_file_are_used(miniatures, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    folder, whole = miniatures["sd15"]
    tensors = safetensors.torch.load_file(whole)
    begin = "model.diffusion_model."
    averaged = {
        "model_ema." + "".join(name.split(".")[1:]): value + 1
        for name, value in tensors.items()
        if name.startswith(begin)
    }
    file = tmp_path / "both.safetensors"
    counts = {"model_ema.decay": torch.tensor(0.9), "model_ema.num_updates": torch.tensor(3)}
    safetensors.torch.save_file({**tensors, **averaged, **counts}, file)
    found, plain = (load_latent_model(each, CPU, str(folder)) for each in (file, whole))
    held = found.network.backbone.state_dict()
    assert all(torch.equal(held[name], value + 1) for name, value in plain.network.backbone.state_dict().items())
    assert "averaged (EMA) weights" in caplog.text
    averaged.popitem()
    safetensors.torch.save_file({**tensors, **averaged}, file)
    assert torch.equal(
        next(load_latent_model(file, CPU, str(folder)).network.backbone.parameters()),
        next(plain.network.backbone.parameters()),
    )


# Few-step models


def test_a_merged_lcm_is_a_few_step_model_and_painted_as_diffusers_does(copy, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    pipe = DiffusionPipeline.from_pretrained(copy())
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    pipe.save_pretrained(tmp_path / "merged")
    mine = load_pipeline(tmp_path / "merged", "cpu")
    assert "taken for a few-step model with guidance built in" in caplog.text
    assert (mine.takes_guidance, mine.guidance_scale, mine.steps) == (False, 1.0, 4)
    (one,) = mine(PROMPT, seed=5)
    pipe.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 4, "guidance_scale": 1.0, "height": 16, "width": 16}
    (other,) = pipe(PROMPT, **settings, generator=torch.Generator().manual_seed(5)).images
    assert np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max() <= 2
    for run, config in (
        (distill, Distill(teacher=str(tmp_path / "merged"), data="scenes", device="cpu", out=tmp_path / "run")),
        (finetune, Finetune(model=str(tmp_path / "merged"), data="scenes", device="cpu", out=tmp_path / "run")),
    ):
        with pytest.raises(UserError, match=r"is already a few-step model|has its guidance built in"):
            run(config)


# What stands beside a model


def test_a_judge_and_a_tiny_decoder_are_made_sure_of_too(clip, tiny_decoder, tmp_path):
    for name, folder, load in (("model", clip, load_extractor), ("tiny", tiny_decoder, load_tiny_decoder)):
        spoilt = shutil.copytree(folder, tmp_path / name)
        (file,) = spoilt.glob("*.safetensors")
        change_tensors(file, drop(1))
        with pytest.raises(UserError, match="it lacks "):
            load(str(spoilt), CPU)


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("text_encoder", {"max_position_embeddings": 10**8}, "max_position_embeddings 100,000,000, where"),
        ("text_encoder", {"vocab_size": 4 * 10**6}, "describes a network of 64,0"),
        ("text_encoder", {"vocab_size": 10**9}, "vocab_size 1,000,000,000, where at most"),
        ("text_encoder", {"num_labels": 10**6}, "num_labels 1,000,000, where at most"),
        ("unet", {"time_embedding_type": "fourier", "time_embedding_dim": 10**9}, "time_embedding_dim 1,000,000,000"),
        ("unet", {"sample_size": 0}, "sample_size 0 in unet/config.json"),
        ("unet", {"sample_size": True}, "sample_size True in unet/config.json"),
        ("unet", {"sample_size": 10**5}, "sample_size 100000 in unet/config.json"),
        ("vae", {"scaling_factor": "much"}, "scaling_factor 'much'; expected a number above 0"),
        ("vae", {"scaling_factor": 0}, "scaling_factor 0; expected a number above 0"),
        ("vae", {"shift_factor": []}, "shift_factor []; expected a number"),
        ("text_encoder", {"num_hidden_layers": 10**6}, "describes 1,000,000 layers, where at most 1,0"),
        ("text_encoder", {"max_window_layers": 10**4, "num_hidden_layers": 10**6}, "describes 1,000,000 layers"),
        ("unet", {"layers_per_block": 10**6}, "describes 2,000,000 layers"),
        ("unet", {"transformer_layers_per_block": [1, 10**6]}, "describes 2,000,000 layers"),
        ("vae", {"layers_per_block": 10**6}, "layers, where at most"),
        ("vae", {"block_out_channels": [8] * 10**4}, "layers, where at most"),
        ("text_encoder", {"vocab_size": [[]]}, "cannot be loaded as CLIPTextModel"),
        ("unet", {"act_fn": None}, "cannot be loaded as UNet2DConditionModel"),
    ],
    ids=str,
)  # fmt: skip
def test_a_configuration_out_of_all_measure_is_refused_at_once(part, change, said, copy, edit_json):
    folder = copy()
    edit_json(folder / part / "config.json", **change)
    assert said in refusal(folder)
