"""Which LoRA makes a base few-step, where its file is looked for, and words that it brings along."""

import json
import logging
import re
from pathlib import Path

import huggingface_hub.constants
import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from fewstep.commands.combine import Combine, combine
from fewstep.errors import UserError
from fewstep.files import read_safetensors_header
from fewstep.models.loading import load_latent_model
from fewstep.models.lora.adapters import detach
from fewstep.models.lora.file import list_adaptable, read_lora
from fewstep.models.lora.source import name_of, parse_lora
from fewstep.models.pipeline_loading import with_loras

CPU = torch.device("cpu")
QUERY = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def teacher(bases):
    return load_latent_model(bases["sd15"], CPU)


def one_module():
    return {f"unet.{QUERY}.lora_A.weight": torch.zeros(2, 16), f"unet.{QUERY}.lora_B.weight": torch.zeros(16, 2)}


def as_the_papers(teacher):
    """Adapts all that an LCM-LoRA adapts."""
    tensors = {}
    for name, module in list_adaptable({"unet": teacher.network.backbone}).items():
        if name.endswith(tuple(f".{end}" for end in teacher.family.lora.targets)):
            out, into, *kernel = module.weight.shape
            tensors[f"{name}.lora_A.weight"] = torch.zeros(1, into, *kernel)
            tensors[f"{name}.lora_B.weight"] = torch.zeros(out, 1, *[1] * len(kernel))
    return tensors


def save(path, tensors, **header):
    path.parent.mkdir(parents=True, exist_ok=True)
    said = {key.replace("__", "."): value for key, value in header.items()}
    safetensors.torch.save_file(tensors, path, said)
    return path


@pytest.mark.parametrize(
    ("name", "whole", "header"),
    [
        ("style", False, {}),
        ("dreamlcmish", False, {}),
        ("style", False, {"modelspec__title": "My style"}),
        ("locon", True, {"ss_network_module": "networks.lora"}),  # a style may adapt as much
    ],
)
def test_a_style_alone_is_not_taken_for_an_lcm_lora(name, whole, header, teacher, tmp_path):
    path = save(tmp_path / f"{name}.safetensors", as_the_papers(teacher) if whole else one_module(), **header)
    with pytest.raises(
        UserError, match=r"a teacher, .* nothing says that .* is an LCM-LoRA .* put lcm in the file's name"
    ):
        with_loras(teacher, [(path, 1.0)])
    assert all("lora_" not in key for key in teacher.network.state_dict())


@pytest.mark.parametrize(
    ("name", "whole", "header", "why"),
    [
        ("My-LCM_v2.safetensors", False, {}, "it is called My-LCM_v2"),
        ("lcm-lora-sdv1-5/pytorch_lora_weights.safetensors", False, {}, "it is called lcm-lora-sdv1-5"),
        ("x.safetensors", False, {"modelspec__title": "Fast LCM"}, "it is called Fast LCM"),
        ("x.safetensors", True, {}, "it adapts all the modules that the paper's do"),
    ],
)
def test_an_lcm_lora_of_others_is_known_and_said_to_be(name, whole, header, why, teacher, tmp_path, caplog):
    style = save(tmp_path / "style.safetensors", one_module())
    path = save(tmp_path / name, as_the_papers(teacher) if whole else one_module(), **header)
    with caplog.at_level(logging.INFO, "fewstep"):
        made = with_loras(teacher, [(style, 0.8), (path, 1.0)])
    for adapter in ("lora0", "lora1"):
        detach(teacher.parts, adapter)
    assert made.card.method == "LCM-LoRA"
    assert any(f"{path} is taken for an LCM-LoRA: {why}" in line for line in caplog.messages)
    again = with_loras(made, [(style, 1.0)])  # a style on a model that has its LCM-LoRA within
    detach(teacher.parts, "lora0")
    assert again.card == made.card


def test_where_a_lora_is_looked_for(tmp_path):
    peft, other, several = tmp_path / "peft", tmp_path / "other", tmp_path / "several"
    save(peft / "adapter_model.safetensors", one_module())
    save(other / "my style.safetensors", one_module())
    save(several / "a.safetensors", one_module())
    save(several / "b.safetensors", one_module())
    assert parse_lora(f"{peft}:0.5") == (peft / "adapter_model.safetensors", 0.5)
    assert parse_lora(str(other)) == (other / "my style.safetensors", 1.0)
    cached = tmp_path / "models--org--name"  # as the Hub's cache has it
    save(cached / "snapshots" / "abc" / "a.safetensors", one_module())
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    assert parse_lora(f"{cached}:0.5") == (cached / "snapshots" / "abc" / "a.safetensors", 0.5)
    with pytest.raises(UserError, match=r"several has 2 .safetensors files \(a.safetensors, b.safetensors\); name the"):
        parse_lora(str(several))
    assert parse_lora(str(several / "b.safetensors:-1"))[1] == -1
    for missing in (tmp_path / "no", "style.safetensors", "styles/x.safetensors", "tests/models/none/x.safetensors"):
        with pytest.raises(UserError, match=re.escape(f"{missing} does not exist; give a LoRA as .safetensors")):
            parse_lora(f"{missing}:0.5")
    with pytest.raises(UserError, match="--lora is empty"):
        parse_lora("")
    names = {"runs/style/model/pytorch_lora_weights.safetensors": "style", "/a/b c.safetensors": "b c"}
    assert {path: name_of(Path(path)) for path in names} == names


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """What was downloaded before, in the Hub's cache."""
    folder = tmp_path / "hub" / "models--org--lcm-lora-x"
    revision = "1" * 40
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(revision)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return folder / "snapshots" / revision


def test_a_lora_of_the_hub(hub, teacher):
    save(hub / "pytorch_lora_weights.safetensors", one_module())
    save(hub / "styles" / "a.safetensors", one_module())
    path, scale = parse_lora("org/lcm-lora-x:0.7")
    assert (path.name, scale, name_of(path)) == ("pytorch_lora_weights.safetensors", 0.7, "lcm-lora-x")
    path, _ = parse_lora("org/lcm-lora-x/styles/a.safetensors:0.7")
    assert (path.name, name_of(path)) == ("a.safetensors", "a")
    assert read_lora(path, teacher.parts, teacher.family.lora).pairs
    with pytest.raises(
        UserError, match=r"org/lcm-lora-x has no file b.safetensors; its .safetensors files are: .*styles/a.safetensors"
    ):
        parse_lora("org/lcm-lora-x/b.safetensors")
    with pytest.raises(UserError, match="org/other is not a folder here and could not be fetched from the Hub"):
        parse_lora("org/other:0.5")


def test_pefts_repository_comes_with_its_configuration(hub, teacher):
    save(hub / "adapter_model.safetensors", {f"base_model.model.{k[5:]}": v for k, v in one_module().items()})
    (hub / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 6}))
    path, _ = parse_lora("org/lcm-lora-x")
    assert read_lora(path, teacher.parts, teacher.family.lora).pairs[f"unet.{QUERY}"].scale == 3.0


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_an_embedding_is_read_as_diffusers_reads_it(family, bases, tmp_path):
    """Two vectors a word; the same prompts through diffusers' textual inversion."""
    model = load_latent_model(bases[family], CPU)
    plain = model.conditioner.encode(["a Sks star", "she asks"])
    vectors = {"clip_l": torch.randn(2, 16)} | ({"clip_g": torch.randn(2, 24)} if family == "sdxl" else {})
    path = save(tmp_path / "lcm.safetensors", one_module() | {f"bundle_emb.sks.{k}": v for k, v in vectors.items()})
    made = with_loras(model, [(path, 1.0)])
    found = made.conditioner.encode(["a Sks star", "she asks"])
    kind = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline
    pipe = kind.from_pretrained(bases[family])
    for which, own in zip(("", "_2"), vectors.values(), strict=False):
        encoder, tokenizer = getattr(pipe, f"text_encoder{which}"), getattr(pipe, f"tokenizer{which}")
        pipe.load_textual_inversion({"sks": own}, token="<new>", text_encoder=encoder, tokenizer=tokenizer)
    theirs = pipe.encode_prompt("a <new> star", device=CPU, num_images_per_prompt=1, do_classifier_free_guidance=False)
    torch.testing.assert_close(found["text"][:1], theirs[0], rtol=1e-4, atol=1e-5)
    if family == "sdxl":
        torch.testing.assert_close(found["pooled"][:1], theirs[2], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found["text"][0], plain["text"][0], atol=1e-2)
    assert torch.equal(found["text"][1], plain["text"][1])  # no word of its own


@pytest.mark.parametrize(
    ("key", "shape", "said"),
    [
        ("bundle_emb.sks.clip_g", (2, 16), "brings an embedding as bundle_emb.sks.clip_g, which no text encoder of"),
        ("bundle_emb.sks.clip_l_out", (2, 16), "which no text encoder of this base takes; known kinds: clip_l"),
        ("bundle_emb.sks.clip_l", (2, 5), r"its embedding sks is \(2, 5\) and text_encoder takes \(tokens, 16\)"),
        ("bundle_emb.sks.clip_l", (76, 16), "brings 76 vectors for 'sks', and a prompt has room for 75"),
    ],
)
def test_an_embedding_that_no_encoder_takes_is_refused(key, shape, said, teacher, tmp_path):
    path = save(tmp_path / "x.safetensors", one_module() | {key: torch.zeros(shape)})
    with pytest.raises(UserError, match=said):
        read_lora(path, teacher.parts, teacher.family.lora)


def test_a_file_that_brings_a_dictionary_is_refused(teacher, tmp_path):
    words = {f"bundle_emb.w{number}.clip_l": torch.zeros(1, 16) for number in range(300)}
    with pytest.raises(UserError, match="brings 300 embeddings; 256 is the most"):
        read_lora(save(tmp_path / "x.safetensors", one_module() | words), teacher.parts, teacher.family.lora)


def test_combining_knows_an_lcm_lora_of_others_and_says_what_is_left_behind(bases, tmp_path, capsys):
    path = save(tmp_path / "my-lcm.safetensors", one_module() | {"bundle_emb.sks.clip_l": torch.zeros(1, 16)})
    combine(Combine(base=str(bases["sd15"]), lora=(f"{path}:0.5",), out=tmp_path / "one"))
    said = capsys.readouterr().out
    assert f"warning: {path} brings sks for prompts, which the result will not know" in said
    header = read_safetensors_header(tmp_path / "one" / "pytorch_lora_weights.safetensors").metadata
    assert header["fewstep.method"] == "LCM-LoRA"
