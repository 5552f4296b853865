"""LoRAs from spelling to spelling: names, alpha and every bit of the tensors, there and back."""

import itertools
import json
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch

from fewstep.cli import main
from fewstep.files import read_safetensors, read_safetensors_header
from fewstep.models.loading import load_latent_model
from fewstep.models.lora.file import list_adaptable, read_lora

CPU = torch.device("cpu")
SPELLINGS = ("diffusers", "kohya", "comfyui", "peft")
QUERY = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def models(bases):
    return {family: load_latent_model(folder, CPU) for family, folder in bases.items()}


def write_kohya(path, model, dtype=torch.float32, *, texts=True, header=None):
    """Writes a LoRA of every module: ranks 2 and 3, alphas that no rank is, and a convolution's shapes."""
    layout, tensors, draw = model.family.lora, {}, torch.Generator().manual_seed(3)
    alphas = itertools.cycle((1.0, 0.5, 3.0, 2.75))
    for i, (name, module) in enumerate(sorted(list_adaptable(model.parts).items())):
        part, own = name.split(".", 1)
        if part != layout.part and not texts:
            continue
        rank, shape = 2 + i % 2, module.weight.shape
        prefix = layout.prefixes[part][-1 if len(model.parts) > 2 and part != layout.part else 0]
        key = f"{prefix}_{layout.in_files(part, own).replace('.', '_')}"
        tensors[f"{key}.lora_down.weight"] = torch.randn(rank, *shape[1:], generator=draw).to(dtype)
        tensors[f"{key}.lora_up.weight"] = torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=draw).to(
            dtype
        )
        tensors[f"{key}.alpha"] = torch.tensor(next(alphas))
    safetensors.torch.save_file(tensors, path, header)
    return path


def convert(lora, to, out, *more):
    main(["convert", str(lora), "--to", to, "--out", str(out), *map(str, more)])
    return out / "adapter_model.safetensors" if to == "peft" else out


def read(path, model):
    return read_lora(path, model.parts, model.family.lora).pairs


def is_equal(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(one[name].down, other[name].down) and torch.equal(one[name].up, other[name].up)
        and one[name].alpha == other[name].alpha
        for name in one
    )  # fmt: skip


@pytest.mark.parametrize(
    ("family", "dtype"), [("sd15", torch.bfloat16), ("sdxl", torch.float16), ("sd15", torch.float32)]
)
def test_there_and_back_every_bit_and_every_alpha_is_kept(family, dtype, models, bases, tmp_path, capsys):
    model = models[family]
    first = write_kohya(tmp_path / "first.safetensors", model, dtype)
    there = first
    for i, to in enumerate(("diffusers", "comfyui", "diffusers", "kohya", "comfyui", "kohya")):
        there = convert(there, to, tmp_path / f"{i}.safetensors", "--base", bases[family])
        assert capsys.readouterr().out.endswith("read back: largest difference 0\n")
        assert is_equal(read(there, model), read(first, model)), to
    before, after = read_safetensors(first), read_safetensors(there)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)


def test_a_network_alone_goes_through_peft_too(models, bases, tmp_path):
    model = models["sd15"]
    first = write_kohya(tmp_path / "first.safetensors", model, torch.bfloat16, texts=False)
    peft = convert(first, "peft", tmp_path / "peft", "--base", bases["sd15"])
    assert all(key.startswith("base_model.model.") for key in read_safetensors(peft))
    said = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert said["peft_type"] == "LORA"
    assert {2, 3} == {said["r"], *said["rank_pattern"].values()}
    assert {1.0, 0.5, 3.0, 2.75} == {said["lora_alpha"], *said["alpha_pattern"].values()}
    assert is_equal(read(peft, model), read(first, model))
    again = convert(tmp_path / "peft", "kohya", tmp_path / "again.safetensors", "--base", bases["sd15"])
    before, after = read_safetensors(first), read_safetensors(again)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_peft_itself_reads_its_folder(models, bases, tmp_path):
    from peft import PeftModel

    model = models["sd15"]
    first = write_kohya(tmp_path / "first.safetensors", model, texts=False)
    convert(first, "peft", tmp_path / "peft", "--base", bases["sd15"])
    network = load_latent_model(bases["sd15"], CPU).network.backbone
    loaded = PeftModel.from_pretrained(network, tmp_path / "peft")
    for name, pair in read(first, model).items():
        layer = loaded.base_model.model.get_submodule(name.removeprefix("unet."))
        torch.testing.assert_close(layer.get_delta_weight("default").double(), pair.delta(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("to", "key"),
    [
        ("diffusers", f"unet.{QUERY}.lora_A.weight"),
        ("kohya", f"lora_unet_{QUERY.replace('.', '_')}.lora_down.weight"),
        ("comfyui", "diffusion_model.input_blocks.3.1.transformer_blocks.0.attn1.to_q.lora_down.weight"),
    ],
)
def test_keys_are_what_the_tools_look_for(to, key, models, bases, tmp_path):
    header = {"ss_tag_frequency": "kept", "modelspec.title": "mine"}
    first = write_kohya(tmp_path / "first.safetensors", models["sd15"], header=header)
    out = convert(first, to, tmp_path / "out.safetensors", "--base", bases["sd15"])
    assert key in read_safetensors(out)
    assert header.items() <= read_safetensors_header(out).metadata.items()


def test_the_base_is_what_the_header_names(models, bases, tmp_path, capsys):
    first = write_kohya(tmp_path / "a.safetensors", models["sd15"], header={"fewstep.teacher": str(bases["sd15"])})
    convert(first, "diffusers", tmp_path / "b.safetensors")
    silent = write_kohya(tmp_path / "c.safetensors", models["sd15"])
    for words, message in (
        ([str(silent)], "does not say what model it is for; give --base"),
        ([str(first), "--to", "peft"], "peft's files are of one network"),
        ([str(first), "--out", str(first)], "is there already"),
        ([str(first), "--out", "x.ckpt"], "give the name of a .safetensors file"),
        ([f"{first}:0.5"], "leave :0.5 out"),
        ([], "nothing to convert"),
    ):
        with pytest.raises(SystemExit):
            main(["convert", *words, *([] if "--out" in words else ["--out", str(tmp_path / "d.safetensors")])])
        assert message in capsys.readouterr().err
    assert not (tmp_path / "d.safetensors").exists()
    elsewhere = write_kohya(tmp_path / "e.safetensors", models["sd15"], header={"fewstep.teacher": "somebody/base"})
    with pytest.raises(SystemExit):
        main(["convert", str(elsewhere), "--out", str(tmp_path / "d.safetensors")])
    assert "would be fetched; give --base yourself" in capsys.readouterr().err


def test_the_commands_of_the_documents(models, bases, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("sd15").symlink_to(bases["sd15"])
    write_kohya(tmp_path / "style.safetensors", models["sd15"], texts=False)
    page = (Path(__file__).parents[2] / "docs/other_tools.md").read_text()
    commands = re.findall(r"^fewstep (convert .*)$", page, re.MULTILINE)
    assert len(commands) == 4
    main(commands[3].split())
    Path("style-peft").rename("peft-folder")
    for command in commands[:3]:
        main(command.split())
    for name in ("diffusers", "kohya", "comfyui"):
        found = read(tmp_path / f"style-{name}.safetensors", models["sd15"])
        assert is_equal(found, read(tmp_path / "style.safetensors", models["sd15"]))


def test_a_dora_is_refused_by_name(models, bases, tmp_path, capsys):
    tensors = read_safetensors(write_kohya(tmp_path / "a.safetensors", models["sd15"]))
    key = f"lora_unet_{QUERY.replace('.', '_')}"
    tensors[f"{key}.dora_scale"] = torch.ones(len(tensors[f"{key}.lora_up.weight"]), 1)
    safetensors.torch.save_file(tensors, tmp_path / "dora.safetensors")
    with pytest.raises(SystemExit):
        main(["convert", str(tmp_path / "dora.safetensors"), "--base", str(bases["sd15"]), "--out", "x.safetensors"])
    assert f"is a DoRA, at unet.{QUERY}" in capsys.readouterr().err
