"""The card of a model that is large: it is loaded in bf16, and part by part."""

import dataclasses
import unittest.mock

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from fewstep.models import stock_scheduler
from fewstep.models.card import LCD, StudentCard, read_card
from fewstep.models.readme import model_card
from fewstep.models.stock_scheduler import describe_sampling
from flow_loading import copy_model
from flow_runs import make_run


@pytest.mark.parametrize("kind", ["whole", "lora"])
def test_its_lines_paint_in_bf16_part_by_part(kind, make_flow, flow_pictures):
    exported = make_run(make_flow("sd3"), flow_pictures, f"small-{kind}").model
    plain = read_card(exported)
    assert "bfloat16" not in model_card(plain)
    lines = model_card(dataclasses.replace(plain, stock_large=True)).split("```")[1].removeprefix("python")
    held = {}
    with unittest.mock.patch.object(StableDiffusion3Pipeline, "enable_model_cpu_offload") as asked:  # there is no GPU
        exec(lines.replace("this folder", str(exported)), held)
    asked.assert_called_once_with()
    assert held["pipe"].transformer.dtype == torch.bfloat16
    assert held["image"].size[0] in (32, 64)


@pytest.mark.parametrize("name", ["flux", "pixart"])
def test_a_model_is_large_by_its_weights_with_its_text_encoders(name, make_flow, monkeypatch):
    model, card = copy_model(make_flow(name)), StudentCard(method=LCD, grid_size=50, guidance_scale=4.0)
    count = sum(p.numel() for part in model.parts.values() for p in part.parameters())
    assert sum(p.numel() for p in model.network.parameters()) < count
    monkeypatch.setattr(stock_scheduler, "_LARGE", count)
    assert "stock_large" not in describe_sampling(model, card)
    monkeypatch.setattr(stock_scheduler, "_LARGE", count - 1)
    assert describe_sampling(model, card)["stock_large"] is True


def test_a_network_of_its_own_stands_beside_its_base():
    card = StudentCard(
        name="x", method=LCD, teacher="org/base", unet="my unet.safetensors", base_lora=("style.safetensors:0.9",),
        guidance_range=(8.0, 8.0), guidance_scale=8.0,
    )  # fmt: skip
    assert "| teacher | org/base + the network of my unet.safetensors + style.safetensors:0.9 |" in model_card(card)
