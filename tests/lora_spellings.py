"""LoRA files written by hand in the spellings that people have, for miniatures of Stable Diffusion."""

from __future__ import annotations

import json

import torch

from fewstep.models.lora.file import read_lora

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


PEFT = ("lora_A.weight", "lora_B.weight")
UNET = NAMES[:4]


def of_kohya(halves, alpha=2.0, **more):
    return {
        **spell(halves, "lora_down.weight", "lora_up.weight", kohya),
        **{f"{kohya(name)}.alpha": torch.tensor(alpha) for name in halves},
        **more,
    }


def said(part="unet", **entries):
    return {
        "format": "pt",
        "lora_adapter_metadata": json.dumps({f"{part}.{key}": value for key, value in entries.items()}),
    }
