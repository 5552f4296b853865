"""A model on a card that is too small for all of it: each part is there while it computes, and rests in main memory."""

from __future__ import annotations

import dataclasses

import torch
from accelerate import cpu_offload_with_hook

from fewstep.errors import UserError
from fewstep.models.family import LatentModel
from fewstep.models.options import Offload

_DECODING = 3 * 2**10
"""Bytes that decoding takes for each pixel in fp32, as studies/painting_memory.py counts it."""
_RESERVE = 2**30
"""Bytes for the networks' own activations and for CUDA's context."""


def take_turns_if(model: LatentModel, choice: Offload) -> LatentModel:
    """Returns `model` with its parts taking turns on the card, if `choice` is `on`, or `auto` and they do not fit it.

    Raises UserError where there is no card.
    """
    if choice == "on" and model.device.type != "cuda":
        raise UserError(f"offload is for GPUs and device is {model.device.type}; leave --offload out")
    if choice == "off" or model.device.type != "cuda":
        return model
    held = torch.cuda.get_device_properties(model.device).total_memory
    return take_turns(model) if choice == "on" or count_bytes(model) > held else model


def count_bytes(model: LatentModel) -> int:
    """Counts what painting one picture needs with everything on the card."""
    weights = {id(value): value for module in _list_parts(model) for value in module.parameters()}
    held: int = sum(value.numel() * value.itemsize for value in weights.values())
    bytes_per_pixel: int = _DECODING * model.codec.autoencoder.dtype.itemsize // torch.float32.itemsize
    return held + model.resolution**2 * bytes_per_pixel + _RESERVE


def _list_parts(model: LatentModel) -> list[torch.nn.Module]:
    """Lists the parts in the order in which they compute."""
    return [*model.conditioner.encoders.values(), model.network.backbone, model.codec.autoencoder]


def take_turns(model: LatentModel) -> LatentModel:
    """Puts every part into main memory; each moves to the card as it computes, and the one before it leaves."""
    home, before = model.device, None
    for part in _list_parts(model):
        part.to("cpu")
        _, before = cpu_offload_with_hook(part, home, before)
    return dataclasses.replace(model, home=home, codec=dataclasses.replace(model.codec, home=home))
