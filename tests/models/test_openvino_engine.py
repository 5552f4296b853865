"""OpenVINO computes what torch computes, LoRAs and all, and compiles a model once."""

import dataclasses
import sys

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer

from fewstep import assets
from fewstep.errors import UserError
from fewstep.models.engines.openvino import on_openvino
from fewstep.models.loading import load_latent_model
from fewstep.models.lora.adapters import attach
from fewstep.models.lora.file import Pair
from fewstep.models.pipeline import Pipeline
from fewstep.models.pipeline_loading import load_pipeline
from fewstep.models.tiny_decoder import load_tiny_decoder
from miniatures import save_miniature

CPU = torch.device("cpu")
PROMPTS = ["a small red star above a blue ring on a white background", "a pink heart"]


def levels(pipeline, **settings):
    return np.stack([np.asarray(image).astype(int) for image in pipeline(PROMPTS, steps=2, seed=3, **settings)])


def test_pictures_are_torchs_and_it_compiles_once(tmp_path, capfd):
    wanted = levels(load_pipeline(assets.SCENES_LCM, "cpu"))
    for expected in (2, 0):  # the UNet and the decoder
        model = load_latent_model(assets.SCENES_LCM, CPU)
        found = levels(Pipeline(on_openvino(model, "fp32", tmp_path)))
        assert np.abs(found - wanted).max() <= 1
        assert capfd.readouterr().err.count("compiling for OpenVINO") == expected
    assert len(list(tmp_path.glob("*/network.xml"))) == 2
    with torch.no_grad():  # other weights are another model
        model.network.backbone.conv_in.weight.mul_(1.5)
    changed = levels(Pipeline(on_openvino(model, "fp32", tmp_path)))
    assert np.abs(changed - wanted).max() > 1
    assert len(list(tmp_path.glob("*/network.xml"))) == 3


def test_in_half_precision_pictures_are_nearly_torchs(tmp_path):
    wanted = levels(load_pipeline(assets.SCENES_LCM, "cpu"))
    found = levels(Pipeline(on_openvino(load_latent_model(assets.SCENES_LCM, CPU), "bf16", tmp_path)))
    assert np.abs(found - wanted).mean() < 4


def test_loras_are_merged_in(tmp_path):
    torch.manual_seed(0)

    def with_lora():
        model = load_latent_model(assets.SCENES_LCM, CPU)
        name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
        width = model.network.backbone.get_submodule(name).weight.shape[0]
        generator = torch.Generator().manual_seed(0)
        down, up = (torch.randn(shape, generator=generator) for shape in ((4, width), (width, 4)))
        attach(model.parts, {f"unet.{name}": Pair(down, up, 4.0)}, "style", 0.5)
        return model

    wanted, plain = levels(Pipeline(with_lora())), levels(load_pipeline(assets.SCENES_LCM, "cpu"))
    model = with_lora()
    compiled = dataclasses.replace(on_openvino(model, "fp32", tmp_path), codec=model.codec)  # which no LoRA changes
    found = levels(Pipeline(compiled))
    assert np.abs(found - wanted).max() <= 1
    assert np.abs(wanted - plain).max() > 8


def test_what_xl_is_told_beside_the_text_reaches_it(tmp_path):
    tokenizer = load_latent_model(assets.SCENES, CPU).conditioner.first.tokenizer
    folder = save_miniature("sdxl", tokenizer, tmp_path / "sdxl")
    torched, compiled = (load_latent_model(folder, CPU) for _ in range(2))
    compiled = on_openvino(compiled, "fp32", tmp_path / "cache")
    cond = torched.conditioner.encode(PROMPTS)
    z_t, t = torch.randn(2, *torched.codec.shape(torched.resolution)), torch.tensor([999, 259])
    for given in (cond, cond | {"sizes": torch.tensor([[64.0, 32, 5, 6, 16, 16]]).expand(2, 6)}):
        with torch.no_grad():
            wanted, found = (model.network(z_t, t, given, None).z_0 for model in (torched, compiled))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_tiny_decoder_is_compiled_too(tmp_path, tiny_decoder):
    model = load_latent_model(assets.SCENES_LCM, CPU)
    model = dataclasses.replace(model, codec=model.codec.with_tiny_decoder(load_tiny_decoder(tiny_decoder, CPU)))
    z_0 = torch.randn(2, *model.codec.shape(model.resolution))
    torch.testing.assert_close(
        on_openvino(model, "fp32", tmp_path).codec.decode(z_0), model.codec.decode(z_0), rtol=1e-3, atol=1e-3
    )


def test_without_openvino_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UserError, match=r"pip install 'fewstep\[openvino\]'"):
        load_pipeline(assets.SCENES_LCM, engine="openvino")


def test_what_embeds_the_end_beside_a_lora_is_merged_in_at_its_scale(tmp_path):
    tokenizer = CLIPTokenizer.from_pretrained(assets.scenes_teacher() / "tokenizer")
    model = load_latent_model(save_miniature("sd15", tokenizer, tmp_path / "sd15"), CPU)
    end = {name: 0.3 * torch.randn_like(value) for name, value in model.network.hang_end().state_dict().items()}
    model.network.load_end(end, "few", 0.5)
    asked = torch.randn(1, 4, 8, 8), torch.tensor([999]), model.conditioner.encode([PROMPTS[0]])
    ends = [asked[2] | {"end": torch.tensor([e])} for e in (0, 900)]
    with torch.no_grad():
        wanted = [model.network(*asked[:2], cond, None).z_0 for cond in ends]
        network = on_openvino(model, "fp32", tmp_path / "compiled").network
        found = [network(*asked[:2], cond, None).z_0 for cond in ends]
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    assert float((wanted[0] - wanted[1]).abs().max()) > 1e-2
