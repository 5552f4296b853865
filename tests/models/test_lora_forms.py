"""LoRA files in the forms that people have: ΔW is what diffusers and peft make of them."""

import copy
import json
import math
import os

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from fewstep.errors import UserError
from fewstep.models.lora.adapters import attach, detach
from lora_spellings import (
    CONVOLUTION,
    NAMES,
    PEFT,
    PROJECTION,
    QUERY,
    TEXT,
    UNET,
    draw,
    kohya,
    of_kohya,
    read,
    said,
    spell,
    weight_of,
)

TARGETS = {"target_modules": [name.removeprefix("unet.") for name in UNET]}


@pytest.fixture(scope="module")
def pipelines(bases):
    kinds = {"sdxl": StableDiffusionXLPipeline}
    return {
        family: kinds.get(family, StableDiffusionPipeline).from_pretrained(folder) for family, folder in bases.items()
    }


def deltas_of_diffusers(path, pipe):
    """What fusing the file adds to each weight; the pipeline is as it was afterwards."""
    parts = {name: part for name, part in pipe.components.items() if name in ("unet", "text_encoder", "text_encoder_2")}
    before = {part: copy.deepcopy(network.state_dict()) for part, network in parts.items() if network is not None}
    pipe.load_lora_weights(path)
    pipe.fuse_lora(components=[part for part in parts if getattr(parts[part], "peft_config", None)])
    pipe.unload_lora_weights()
    found = {}
    for part, state in before.items():
        now = parts[part].state_dict()
        for name, value in state.items():
            if not torch.equal(now[name], value):
                found[f"{part}.{name.removesuffix('.weight')}"] = now[name] - value
        parts[part].load_state_dict(state)
    return found


def deltas(lora, model):
    return {name: pair.delta(weight_of(model, name)).float() for name, pair in lora.pairs.items()}


def check_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name].flatten(1), value.flatten(1), rtol=1e-4, atol=1e-5)


def magnitudes(model, names, key, *, is_peft):
    """Norms of the weights' rows, half as long again."""
    found = {}
    for name in names:
        weight = weight_of(model, name)
        norm = 1.5 * weight.detach().flatten(1).norm(dim=1)
        shape = (1, -1, 1, 1) if weight.ndim == 4 else (-1,)
        found[f"{name}.{key}"] = norm.view(shape if is_peft else (-1, *[1] * (weight.ndim - 1)))
    return found


FORMS = {
    "diffusers": lambda m: (spell(draw(m), *PEFT), None),
    "diffusers, rank-stabilised": lambda m: (
        spell(draw(m, UNET), *PEFT), said(r=3, lora_alpha=4, use_rslora=True, **TARGETS)
    ),
    "diffusers, patterns": lambda m: (
        {**spell(draw(m, UNET[:2]), *PEFT), **spell(draw(m, UNET[2:], rank=5), *PEFT)},
        said(r=3, lora_alpha=6, rank_pattern={"conv1": 5, f"^{PROJECTION}": 5}, alpha_pattern={"proj_in": 1},
             **TARGETS),
    ),
    "diffusers, no alpha in the header": lambda m: (spell(draw(m, UNET, rank=8), *PEFT), said(r=8, **TARGETS)),
    "diffusers, DoRA": lambda m: (
        {**spell(draw(m, UNET), *PEFT), **magnitudes(m, UNET, "lora_magnitude_vector", is_peft=True)}, None
    ),
    "diffusers, DoRA by its header": lambda m: (
        {**spell(draw(m, UNET), *PEFT), **magnitudes(m, UNET, "lora_magnitude_vector", is_peft=True)},
        said(r=3, lora_alpha=6, use_dora=True, use_rslora=True, **TARGETS),
    ),
    "diffusers, processors": lambda m: (
        spell(draw(m, UNET[:2]), "down.weight", "up.weight", lambda name: (
            f"{name.rpartition('.to_')[0]}.processor.to_{name.rpartition('.to_')[2].removesuffix('.0')}_lora"
        )), None
    ),
    "diffusers, lora_linear_layer": lambda m: (
        spell(draw(m, NAMES[4:]), "lora_linear_layer.down.weight", "lora_linear_layer.up.weight"), None
    ),
    "diffusers, the text encoder's first names": lambda m: (
        spell(draw(m, NAMES[4:]), "down.weight", "up.weight", lambda name: (
            name.replace("q_proj", "to_q_lora").replace("out_proj", "to_out_lora")
        )), None
    ),
    "kohya": lambda m: (of_kohya(draw(m)), None),
    "kohya, alphas of several shapes": lambda m: (
        {**of_kohya(draw(m)), f"{kohya(NAMES[0])}.alpha": torch.tensor([[2.0]], dtype=torch.bfloat16)}, None
    ),
    "kohya, half": lambda m: ({key: value.half() for key, value in of_kohya(draw(m)).items()}, None),
    "kohya, double": lambda m: ({key: value.double() for key, value in of_kohya(draw(m)).items()}, None),
    "kohya, alpha 0": lambda m: (of_kohya(draw(m, UNET[:1]), alpha=0.0), None),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_it_adds_what_diffusers_adds(form, model, pipelines, write_lora):
    path = write_lora(*FORMS[form](model))
    found, expected = read(path, model), deltas_of_diffusers(path, pipelines["sd15"])
    if form == "kohya, alpha 0":
        assert found.notes == (f"{path} has alpha 0 at 1 of its modules and changes nothing there",)
        expected = {UNET[0]: torch.zeros_like(weight_of(model, UNET[0]))}
    check_same(
        deltas(found, model),
        {rename(model, n): v for n, v in expected.items()},
    )


def rename(model, name):
    """diffusers' text encoder may have transformers' prefix where ours has not."""
    part, module = name.split(".", 1)
    return (
        name
        if part == "unet" or hasattr(model.parts[part], "text_model")
        else f"{part}.{module.removeprefix('text_model.')}"
    )


def test_both_text_encoders_of_xl(base_models, pipelines, write_lora):
    model = base_models["sdxl"]
    encoders = [f"{part}.{TEXT}" for part in ("text_encoder", "text_encoder_2")]
    names = [*encoders, *(name.replace("q_proj", "out_proj") for name in encoders), f"unet.{QUERY}"]
    names.append("text_encoder_2.text_projection")
    tensors = of_kohya(draw(model, names))
    tensors = {key.replace("lora_te_", "lora_te1_"): value for key, value in tensors.items()}
    path = write_lora(tensors)
    found = deltas(read(path, model), model)
    assert len(found) == len(names)
    check_same(found, {rename(model, n): v for n, v in deltas_of_diffusers(path, pipelines["sdxl"]).items()})


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float16, torch.float64]
)
def test_floats_of_any_width_are_cast(dtype, model, write_lora):
    tensors = {key: value.to(dtype) for key, value in of_kohya(draw(model)).items()}
    lora = read(write_lora(tensors), model)
    for name in NAMES:
        pair = lora.pairs[rename(model, name)]
        assert (pair.down.dtype, pair.alpha) == (torch.float32, 2.0)
        assert torch.equal(pair.down, tensors[f"{kohya(name)}.lora_down.weight"].float())


def test_linear_layers_as_convolutions_and_the_other_way_round(base_models, write_lora):
    linear, convolution = base_models["sd21-base"], base_models["sd15"]
    name = f"unet.{PROJECTION}"
    assert (weight_of(linear, name).ndim, weight_of(convolution, name).ndim) == (2, 4)
    for model, other in ((linear, convolution), (convolution, linear)):
        halves = draw(other, [name])[name]
        written = dict(zip(("lora_down.weight", "lora_up.weight"), halves, strict=True))
        found = read(write_lora({f"{kohya(name)}.{end}": half for end, half in written.items()}), model).pairs[name]
        assert found.down.ndim == found.up.ndim == weight_of(model, name).ndim
        assert torch.equal(found.down.flatten(), halves[0].flatten())
        attach(model.parts, {name: found}, "x", 1.0)
        detach(model.parts, "x")


def test_a_convolution_in_three_factors(model, write_lora):
    name, rank = f"unet.{CONVOLUTION}", 3
    weight = weight_of(model, name)
    down, mid = torch.randn(rank, weight.shape[1], 1, 1), torch.randn(rank, rank, 3, 3)
    up = torch.randn(len(weight), rank, 1, 1)
    key = kohya(name)
    halves = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up, "alpha": torch.tensor(6.0)}
    pair = read(write_lora({f"{key}.{end}": value for end, value in halves.items()}), model).pairs[name]
    x = torch.randn(1, weight.shape[1], 5, 5)
    by_hand = 2 * torch.conv2d(torch.conv2d(torch.conv2d(x, down), mid, padding=1), up)
    torch.testing.assert_close(torch.conv2d(x, pair.delta().float(), padding=1), by_hand, rtol=1e-4, atol=1e-4)


def test_the_originals_names_with_dots(base_models, write_lora):
    model = base_models["sdxl"]
    down, up = draw(model, [f"unet.{PROJECTION}"])[f"unet.{PROJECTION}"]
    key = "diffusion_model.input_blocks.3.1.proj_in"
    lora = read(write_lora({f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down}), model)
    assert list(lora.pairs) == [f"unet.{PROJECTION}"]


PREFIXES = (
    "base_model.model.", "unet.base_model.model.", "base_model.model.unet.", "", "lycoris_",
)  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_from_elsewhere(prefix, model, write_lora):
    def base(name):
        module = name.removeprefix("unet.")
        return prefix + (module.replace(".", "_") if prefix.endswith("_") else module)

    lora = read(write_lora(spell(draw(model, UNET), *PEFT, base)), model)
    assert set(lora.pairs) == set(UNET)
    assert [("has no adapter_config.json beside it" in note) for note in lora.notes] == [True] * prefix.startswith(
        "base"
    )


def test_pefts_configuration_beside_the_file_is_followed(model, write_lora, tmp_path):
    path = write_lora(spell(draw(model, UNET), *PEFT, lambda name: name.replace("unet.", "base_model.model.")))
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "use_rslora": True, "bias": "none", "modules_to_save": None}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert {round(pair.scale, 6) for pair in read(path, model).pairs.values()} == {round(6 / math.sqrt(3), 6)}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "LOHA"}))
    with pytest.raises(UserError, match=r"adapter_config.json .* of the kind 'LOHA'"):
        read(path, model)
    (tmp_path / "adapter_config.json").unlink()
    os.mkfifo(tmp_path / "adapter_config.json")  # there, and not to be read
    with pytest.raises(UserError, match=r"adapter_config.json is not a file"):
        read(path, model)
    (tmp_path / "adapter_config.json").unlink()
    kohyas = write_lora(of_kohya(draw(model)), name="y")  # not peft's, whatever lies beside it
    assert read(kohyas, model).pairs[UNET[0]].alpha == 2


def test_what_kohyas_header_says_of_alpha_is_told_where_no_tensor_does(model, write_lora):
    tensors = spell(draw(model, UNET), "lora_down.weight", "lora_up.weight", kohya)
    lora = read(write_lora(tensors, {"ss_network_alpha": "1.0"}), model)
    assert {pair.scale for pair in lora.pairs.values()} == {1.0}  # as kohya's own loader takes it
    assert "ss_network_alpha 1.0 in its header and no alpha beside 4" in lora.notes[0]
    assert read(write_lora(tensors, {"ss_network_alpha": "3.0"}), model).notes == ()
