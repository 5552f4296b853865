"""LoRA files in the forms that people have: ΔW is what diffusers and peft make of them, or the refusal says why not."""

import copy
import json
import math
import os

import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from transformers import CLIPTokenizer

from fewstep.errors import UserError
from fewstep.models.loading import load_latent_model
from fewstep.models.lora.adapters import attach, detach, rescale
from fewstep.models.lora.combining import combine_loras, merge
from fewstep.models.lora.decomposed import merge_attached
from fewstep.models.lora.file import read_lora
from fewstep.models.lora.fitting import LARGEST_RANK
from miniatures import save_miniature

CPU = torch.device("cpu")
BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0"
QUERY, OUT = f"{BLOCK}.attn1.to_q", f"{BLOCK}.attn2.to_out.0"
CONVOLUTION, PROJECTION = "down_blocks.0.resnets.0.conv1", "down_blocks.1.attentions.0.proj_in"
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"
NAMES = [f"unet.{each}" for each in (QUERY, OUT, CONVOLUTION, PROJECTION)] + [
    f"text_encoder.{TEXT}", f"text_encoder.{TEXT.replace('q_proj', 'out_proj')}",
]  # fmt: skip


def kohya(name):
    part, module = name.split(".", 1)
    prefix = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}[part]
    return f"{prefix}_{module.replace('.', '_')}"


@pytest.fixture(scope="module")
def miniatures(random_teacher, tmp_path_factory):
    tokenizer = CLIPTokenizer.from_pretrained(random_teacher / "tokenizer")
    folder = tmp_path_factory.mktemp("miniatures")
    return {family: save_miniature(family, tokenizer, folder / family) for family in ("sd15", "sd21-base", "sdxl")}


@pytest.fixture(scope="module")
def models(miniatures):
    """Each is as it was after a test."""
    return {family: load_latent_model(folder, CPU) for family, folder in miniatures.items()}


@pytest.fixture(scope="module")
def pipelines(miniatures):
    kinds = {"sdxl": StableDiffusionXLPipeline}
    return {
        family: kinds.get(family, StableDiffusionPipeline).from_pretrained(folder)
        for family, folder in miniatures.items()
    }


@pytest.fixture
def model(models):
    return models["sd15"]


@pytest.fixture
def write(tmp_path):
    def write(tensors, header=None, name="x"):
        path = tmp_path / f"{name}.safetensors"
        safetensors.torch.save_file({key: value.contiguous() for key, value in tensors.items()}, path, header)
        return path

    return write


def read(path, model):
    return read_lora(path, model.parts, model.family.lora)


def weight_of(model, name):
    part, module = name.split(".", 1)
    network = model.parts[part]
    if part != "unet" and not hasattr(network, "text_model"):
        module = module.removeprefix("text_model.")
    return network.get_submodule(module).weight


def draw(model, names=NAMES, rank=3, seed=0):
    """A and B of each module."""
    generator = torch.Generator().manual_seed(seed)
    halves = {}
    for name in names:
        out, into, *kernel = weight_of(model, name).shape
        halves[name] = (
            torch.randn(rank, into, *kernel, generator=generator) / 4,
            torch.randn(out, rank, *[1] * len(kernel), generator=generator) / 4,
        )
    return halves


def spell(halves, down, up, base=lambda name: name):
    return {
        f"{base(name)}.{end}": half for name, pair in halves.items() for end, half in zip((down, up), pair, strict=True)
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


def said(part="unet", **entries):
    return {
        "format": "pt",
        "lora_adapter_metadata": json.dumps({f"{part}.{key}": value for key, value in entries.items()}),
    }


PEFT = ("lora_A.weight", "lora_B.weight")
UNET = NAMES[:4]
TARGETS = {"target_modules": [name.removeprefix("unet.") for name in UNET]}


def of_kohya(halves, alpha=2.0, **more):
    return {
        **spell(halves, "lora_down.weight", "lora_up.weight", kohya),
        **{f"{kohya(name)}.alpha": torch.tensor(alpha) for name in halves},
        **more,
    }


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
def test_it_adds_what_diffusers_adds(form, model, pipelines, write):
    path = write(*FORMS[form](model))
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


def test_both_text_encoders_of_xl(models, pipelines, write):
    model = models["sdxl"]
    encoders = [f"{part}.{TEXT}" for part in ("text_encoder", "text_encoder_2")]
    names = [*encoders, *(name.replace("q_proj", "out_proj") for name in encoders), f"unet.{QUERY}"]
    names.append("text_encoder_2.text_projection")
    tensors = of_kohya(draw(model, names))
    tensors = {key.replace("lora_te_", "lora_te1_"): value for key, value in tensors.items()}
    path = write(tensors)
    found = deltas(read(path, model), model)
    assert len(found) == len(names)
    check_same(found, {rename(model, n): v for n, v in deltas_of_diffusers(path, pipelines["sdxl"]).items()})


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float16, torch.float64]
)
def test_floats_of_any_width_are_cast(dtype, model, write):
    tensors = {key: value.to(dtype) for key, value in of_kohya(draw(model)).items()}
    lora = read(write(tensors), model)
    for name in NAMES:
        pair = lora.pairs[rename(model, name)]
        assert (pair.down.dtype, pair.alpha) == (torch.float32, 2.0)
        assert torch.equal(pair.down, tensors[f"{kohya(name)}.lora_down.weight"].float())


def test_linear_layers_as_convolutions_and_the_other_way_round(models, write):
    linear, convolution = models["sd21-base"], models["sd15"]
    name = f"unet.{PROJECTION}"
    assert (weight_of(linear, name).ndim, weight_of(convolution, name).ndim) == (2, 4)
    for model, other in ((linear, convolution), (convolution, linear)):
        halves = draw(other, [name])[name]
        written = dict(zip(("lora_down.weight", "lora_up.weight"), halves, strict=True))
        found = read(write({f"{kohya(name)}.{end}": half for end, half in written.items()}), model).pairs[name]
        assert found.down.ndim == found.up.ndim == weight_of(model, name).ndim
        assert torch.equal(found.down.flatten(), halves[0].flatten())
        attach(model.parts, {name: found}, "x", 1.0)
        detach(model.parts, "x")


def test_a_convolution_in_three_factors(model, write):
    name, rank = f"unet.{CONVOLUTION}", 3
    weight = weight_of(model, name)
    down, mid = torch.randn(rank, weight.shape[1], 1, 1), torch.randn(rank, rank, 3, 3)
    up = torch.randn(len(weight), rank, 1, 1)
    key = kohya(name)
    halves = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up, "alpha": torch.tensor(6.0)}
    pair = read(write({f"{key}.{end}": value for end, value in halves.items()}), model).pairs[name]
    x = torch.randn(1, weight.shape[1], 5, 5)
    by_hand = 2 * torch.conv2d(torch.conv2d(torch.conv2d(x, down), mid, padding=1), up)
    torch.testing.assert_close(torch.conv2d(x, pair.delta().float(), padding=1), by_hand, rtol=1e-4, atol=1e-4)


def test_the_originals_names_with_dots(models, write):
    model = models["sdxl"]
    down, up = draw(model, [f"unet.{PROJECTION}"])[f"unet.{PROJECTION}"]
    key = "diffusion_model.input_blocks.3.1.proj_in"
    lora = read(write({f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down}), model)
    assert list(lora.pairs) == [f"unet.{PROJECTION}"]


PREFIXES = (
    "base_model.model.", "unet.base_model.model.", "base_model.model.unet.", "", "lycoris_",
)  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_from_elsewhere(prefix, model, write):
    def base(name):
        module = name.removeprefix("unet.")
        return prefix + (module.replace(".", "_") if prefix.endswith("_") else module)

    lora = read(write(spell(draw(model, UNET), *PEFT, base)), model)
    assert set(lora.pairs) == set(UNET)
    assert [("has no adapter_config.json beside it" in note) for note in lora.notes] == [True] * prefix.startswith(
        "base"
    )


def test_pefts_configuration_beside_the_file_is_followed(model, write, tmp_path):
    path = write(spell(draw(model, UNET), *PEFT, lambda name: name.replace("unet.", "base_model.model.")))
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
    kohyas = write(of_kohya(draw(model)), name="y")  # not peft's, whatever lies beside it
    assert read(kohyas, model).pairs[UNET[0]].alpha == 2


def test_what_kohyas_header_says_of_alpha_is_told_where_no_tensor_does(model, write):
    tensors = spell(draw(model, UNET), "lora_down.weight", "lora_up.weight", kohya)
    lora = read(write(tensors, {"ss_network_alpha": "1.0"}), model)
    assert {pair.scale for pair in lora.pairs.values()} == {1.0}  # as kohya's own loader takes it
    assert "ss_network_alpha 1.0 in its header and no alpha beside 4" in lora.notes[0]
    assert read(write(tensors, {"ss_network_alpha": "3.0"}), model).notes == ()


def dora(model, along, write):
    names = UNET if along == "outputs" else [UNET[0], UNET[2]]
    tensors = of_kohya(draw(model, names))
    for name in names:
        weight = weight_of(model, name).detach()
        shape, summed = ((len(weight), 1), (1, 2, 3)) if along == "outputs" else ((1, weight.shape[1]), (0, 2, 3))
        norm = torch.linalg.vector_norm(weight, dim=summed[: weight.ndim - 1]) * torch.linspace(0.5, 2, max(shape))
        tensors[f"{kohya(name)}.dora_scale"] = norm.view(*shape, *[1] * (weight.ndim - 2))
    return read(write(tensors), model)


@pytest.mark.parametrize("along", ["outputs", "inputs"])
def test_kohyas_dora_along_either_axis(along, model, write):
    lora = dora(model, along, write)
    for name, pair in lora.pairs.items():
        weight = weight_of(model, name).detach().double()
        summed = pair.scale * (pair.up.double().flatten(1) @ pair.down.double().flatten(1)).view(weight.shape) + weight
        axes = tuple(i for i in range(weight.ndim) if i != (along == "inputs"))
        expected = pair.magnitude * summed / torch.linalg.vector_norm(summed, dim=axes, keepdim=True) - weight
        torch.testing.assert_close(pair.delta(weight), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("along", ["outputs", "inputs"])
def test_a_dora_adds_to_other_adapters_and_follows_its_scale(along, model, write):
    """θ + Σ λ_i·ΔW_i, hung on or merged in, whatever stands first."""
    first, plain = dora(model, along, write), read(write(of_kohya(draw(model, UNET, seed=1)), name="y"), model)
    asked = (torch.randn(1, 4, 8, 8), torch.tensor([500]), {"text": torch.randn(1, 77, 16)}, None)
    wanted = {}
    for scales in ((0.5, -1.0), (0.0, 1.0)):
        whole = copy.deepcopy(model.network)
        merge({"unet": whole.backbone}, [(first.pairs, scales[0]), (plain.pairs, scales[1])])
        wanted[scales] = whole(*asked).z_0
    untouched = model.network(*asked).z_0
    for order in ((0, 1), (1, 0)):
        for i in order:
            attach(model.parts, (first, plain)[i].pairs, f"lora{i}", (0.5, -1.0)[i])
        torch.testing.assert_close(model.network(*asked).z_0, wanted[0.5, -1.0], rtol=1e-4, atol=1e-4)
        fixed = copy.deepcopy(model.network)
        merge_attached(fixed.backbone)
        torch.testing.assert_close(fixed(*asked).z_0, wanted[0.5, -1.0], rtol=1e-4, atol=1e-4)
        rescale(model.parts, {"lora0": 0.0, "lora1": 1.0})
        torch.testing.assert_close(model.network(*asked).z_0, wanted[0.0, 1.0], rtol=1e-4, atol=1e-4)
        detach(model.parts, "lora0")
        detach(model.parts, "lora1")
        assert torch.equal(model.network(*asked).z_0, untouched)
    assert not torch.allclose(untouched, wanted[0.5, -1.0], atol=1e-2)
    with pytest.raises(UserError, match=r"a DoRA .* with --merged"):
        combine_loras([(first.pairs, 1.0), (plain.pairs, 1.0)])


def changed(model, header=None, **tensors):
    """Two modules as diffusers writes them, with some tensors changed; None leaves one out."""
    halves = spell(draw(model, UNET[:2]), *PEFT)
    names = {"down": f"{UNET[0]}.lora_A.weight", "up": f"{UNET[0]}.lora_B.weight"}
    for name, value in tensors.items():
        halves[names.get(name, f"{UNET[0]}.{name}")] = value
    return {key: value for key, value in halves.items() if value is not None}, header


W = (16, 16)
REFUSED = {
    "int8": (lambda m: changed(m, down=torch.zeros(3, 16, dtype=torch.int8)), "down of .* as int8.*quantised"),
    "complex": (lambda m: changed(m, up=torch.zeros(16, 3, dtype=torch.complex64)), "up of .* as complex64"),
    "rank 0": (lambda m: changed(m, down=torch.zeros(0, 16), up=torch.zeros(16, 0)), "does not fit this base"),
    "a vector": (lambda m: changed(m, down=torch.zeros(16)), r"\(16,\) and .*needed: \(rank, 16\)"),
    "down alone": (lambda m: changed(m, up=None), "holds down alone"),
    "up alone": (lambda m: changed(m, down=None), "holds up alone"),
    "alpha alone": (lambda m: changed(m, down=None, up=None, alpha=torch.tensor(1.0)), "holds alpha alone"),
    "alpha is none": (lambda m: changed(m, alpha=torch.ones(3)), r"alpha of .* is float32 \(3,\), not a number"),
    "alpha is nothing": (lambda m: changed(m, alpha=torch.ones(0)), r"is float32 \(0,\), not a number"),
    "alpha is NaN": (lambda m: changed(m, alpha=torch.tensor(math.nan)), "alpha nan"),
    "overflow": (lambda m: changed(m, up=torch.full((16, 3), 1e300, dtype=torch.float64)), "NaN or infinity"),
    "NaN in fp8": (lambda m: changed(m, up=torch.full((16, 3), math.nan).to(torch.float8_e4m3fn)), "NaN or infinity"),
    "twice": (
        lambda m: ({**changed(m)[0], **of_kohya(draw(m, UNET[:1]))}, None), "holds down of unet.* twice, the second"
    ),
    "factors": (lambda m: changed(m, **{"lora_mid.weight": torch.zeros(2, 2, 3, 3)}), "three factors"),
    "magnitude": (lambda m: changed(m, lora_magnitude_vector=torch.ones(5)), r"magnitude of .* is \(5,\)"),
    "LoHa": (lambda m: changed(m, hada_w1_a=torch.ones(3)), "holds LoHa, such as"),
    "LoKr": (lambda m: changed(m, lokr_w1=torch.ones(3)), "holds LoKr"),
    "OFT": (lambda m: changed(m, oft_blocks=torch.ones(3)), "holds OFT"),
    "IA3": (lambda m: changed(m, on_input=torch.ones(1)), "holds IA3"),
    "differences": (lambda m: changed(m, diff=torch.ones(16, 16)), "holds whole differences"),
    "bias": (lambda m: changed(m, **{"lora_B.bias": torch.ones(16)}), "holds biases"),
    "whole model": (lambda _: ({"model.diffusion_model.out.2.weight": torch.ones(1)}, None), "holds a whole model"),
    "embedding": (lambda _: ({"emb_params": torch.ones(2, 16)}, None), "holds a textual-inversion embedding"),
    "PiSSA": (lambda m: changed(m, said(r=3, init_lora_weights="pissa_niter_4")), "init_lora_weights 'pissa_niter_4'"),
    "another kind by its header": (lambda m: changed(m, said(r=3, peft_type="LOKR")), "of the kind 'LOKR'"),
    "what fewstep cannot": (lambda m: changed(m, said(r=3, lora_bias=True)), "with lora_bias True"),
    "what is to come": (lambda m: changed(m, said(r=3, use_next_year=True)), "with use_next_year True"),
    "another rank": (lambda m: changed(m, said(r=4, lora_alpha=4)), "rank 3 and alpha 4 by its tensors, 4 and 4"),
    "two alphas": (lambda m: changed(m, said(r=3, lora_alpha=4), alpha=torch.tensor(1.0)), "alpha 1 by its tensors"),
    "no JSON": (lambda m: changed(m, {"lora_adapter_metadata": "{"}), "no JSON"),
    "a list": (lambda m: changed(m, {"lora_adapter_metadata": "[1]"}), "no JSON object"),
    "words": (lambda m: changed(m, said(r=3, lora_alpha="much")), "lora_alpha 'much'; expected a number"),
    "no pattern": (lambda m: changed(m, said(r=3, alpha_pattern={"(": 1})), r"alpha_pattern '\(', which is a pattern"),
    "a pattern that takes days": (
        lambda m: changed(m, said(r=3, rank_pattern={"((a+)+)+$|.*b": 3})), "which is a pattern and no name of a module"
    ),
    "a million modules": (
        lambda m: changed(m, said(r=3, alpha_pattern={f"m{i}": 1 for i in range(20_000)})), "of 20,000 modules"
    ),
    "an alternative": (lambda m: changed(m, said(r=3, rank_pattern={"conv1|conv2": 3})), "write the names"),
    "deep JSON": (lambda m: changed(m, {"lora_adapter_metadata": "[" * 10**5}), "no JSON"),
    "deep JSON that Python reads": (
        lambda m: changed(m, {"lora_adapter_metadata": '{"r":' + "[" * 99 + "]" * 99 + "}"}), "no JSON"
    ),
    "pattern of words": (lambda m: changed(m, said(r=3, alpha_pattern={"a": "b"})), "numbers by modules"),
    "an endless number": (lambda m: changed(m, said(r=3, lora_alpha=10**400)), "no JSON"),
    "a number too large": (lambda m: changed(m, said(r=3, lora_alpha=10**35)), "expected a number"),
    "booleans": (lambda m: changed(m, up=torch.ones(16, 3, dtype=torch.bool)), "as bool, of which a LoRA cannot"),
    "complex numbers": (lambda m: changed(m, up=torch.ones(16, 3, dtype=torch.complex64)), "as complex64"),
    "an alpha of booleans": (lambda m: changed(m, alpha=torch.tensor(True)), "is bool"),
    "DoRA without magnitudes": (lambda m: changed(m, said(r=3, use_dora=True)), "is a DoRA and holds no magnitude"),
    "too much": (
        lambda m: changed(m, down=torch.zeros(LARGEST_RANK + 1, 16), up=torch.zeros(16, LARGEST_RANK + 1)), "rank 1025"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_lora_is_refused_in_one_line(case, model, write):
    make, words = REFUSED[case]
    with pytest.raises(UserError, match=words) as caught:
        read(write(*make(model)), model)
    assert "\n" not in str(caught.value)
