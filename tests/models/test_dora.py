"""LoRA files that hold DoRA, of which each weight's rows or columns have a magnitude of their own."""

import copy

import pytest
import torch

from fewstep.errors import UserError
from fewstep.models.lora.adapters import attach, detach, rescale
from fewstep.models.lora.combining import combine_loras, merge
from fewstep.models.lora.decomposed import merge_attached
from lora_spellings import UNET, draw, kohya, of_kohya, read, weight_of


def dora(model, along, write_lora):
    names = UNET if along == "outputs" else [UNET[0], UNET[2]]
    tensors = of_kohya(draw(model, names))
    for name in names:
        weight = weight_of(model, name).detach()
        shape, summed = ((len(weight), 1), (1, 2, 3)) if along == "outputs" else ((1, weight.shape[1]), (0, 2, 3))
        norm = torch.linalg.vector_norm(weight, dim=summed[: weight.ndim - 1]) * torch.linspace(0.5, 2, max(shape))
        tensors[f"{kohya(name)}.dora_scale"] = norm.view(*shape, *[1] * (weight.ndim - 2))
    return read(write_lora(tensors), model)


@pytest.mark.parametrize("along", ["outputs", "inputs"])
def test_kohyas_dora_along_either_axis(along, model, write_lora):
    lora = dora(model, along, write_lora)
    for name, pair in lora.pairs.items():
        weight = weight_of(model, name).detach().double()
        summed = pair.scale * (pair.up.double().flatten(1) @ pair.down.double().flatten(1)).view(weight.shape) + weight
        axes = tuple(i for i in range(weight.ndim) if i != (along == "inputs"))
        expected = pair.magnitude * summed / torch.linalg.vector_norm(summed, dim=axes, keepdim=True) - weight
        torch.testing.assert_close(pair.delta(weight), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("along", ["outputs", "inputs"])
def test_a_dora_adds_to_other_adapters_and_follows_its_scale(along, model, write_lora):
    """θ + Σ λ_i·ΔW_i, hung on or merged in, whatever stands first."""
    first, plain = (
        dora(model, along, write_lora),
        read(write_lora(of_kohya(draw(model, UNET, seed=1)), name="y"), model),
    )
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
