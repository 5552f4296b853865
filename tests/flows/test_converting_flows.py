"""LoRAs of flow transformers from spelling to spelling: what they add to the network is the same after each."""

import pytest
import safetensors.torch
import torch

from fewstep.errors import UserError
from fewstep.models.lora.converting import convert_lora
from fewstep.models.lora.file import list_adaptable, read_lora
from flow_loading import copy_model


@pytest.fixture
def model(flow):
    return copy_model(flow)


def write_diffusers(path, model, scale):
    layout, tensors, draw = model.family.lora, {}, torch.Generator().manual_seed(3)
    for name, module in sorted(list_adaptable(model.parts).items()):
        if name.startswith(f"{layout.part}.") and module.weight.ndim == 2:
            tensors[f"{name}.lora_A.weight"] = torch.randn(2, module.weight.shape[1], generator=draw)
            tensors[f"{name}.lora_B.weight"] = torch.randn(len(module.weight), 2, generator=draw)
            tensors[f"{name}.alpha"] = torch.tensor(2.0 * scale)
    safetensors.torch.save_file(tensors, path)
    return path


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_what_a_lora_adds_is_the_same_in_every_spelling(model, scale, tmp_path):
    """A scale of a power of two leaves every bit of the tensors as it was, where it has to go into them too."""
    parts, layout = model.parts, model.family.lora
    first = read_lora(write_diffusers(tmp_path / "first.safetensors", model, scale), parts, layout)
    there, spelt = first, set()
    for i, to in enumerate(("comfyui", "diffusers", "kohya", "comfyui", "kohya", "diffusers")):
        if to == "kohya" and layout.kohya_modules is None:
            with pytest.raises(UserError, match="no tool reads kohya's spelling"):
                convert_lora(there, tmp_path / f"{i}.safetensors", to, parts, layout)
            continue
        out = tmp_path / f"{i}.safetensors"
        assert convert_lora(there, out, to, parts, layout)[0] == 0
        there = read_lora(out, parts, layout)
        spelt.add(to)
        assert there.pairs.keys() == first.pairs.keys()
        for name, pair in there.pairs.items():
            assert torch.equal(pair.delta(), first.pairs[name].delta()), (to, name)
    assert {"comfyui", "diffusers"} <= spelt
