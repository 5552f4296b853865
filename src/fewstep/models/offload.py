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


def check_offload(choice: Offload, home: torch.device) -> None:
    """Raises UserError where there is no card for parts to take turns on."""
    if choice == "on" and home.type != "cuda":
        raise UserError(f"offload is for GPUs and device is {home.type}; leave --offload out")


def settle(model: LatentModel, home: torch.device, choice: Offload) -> LatentModel:
    """Returns a loaded `model` at home, as a whole; or with its parts taking turns there, if `choice` is `on`, or
    `auto` and the card has no room for all of them."""
    if home.type != "cuda":  # it was loaded there
        return model
    if choice == "on" or (choice == "auto" and count_bytes(model) > torch.cuda.mem_get_info(home)[0]):
        return take_turns(model, home)
    return model.to(home)


def count_bytes(model: LatentModel) -> int:
    """Counts what painting one picture needs with everything on the card."""
    weights = {id(value): value for module in _list_parts(model) for value in module.parameters()}
    held: int = sum(value.numel() * value.itemsize for value in weights.values())
    bytes_per_pixel: int = _DECODING * model.codec.autoencoder.dtype.itemsize // torch.float32.itemsize
    return held + model.resolution**2 * bytes_per_pixel + _RESERVE


def _list_parts(model: LatentModel) -> list[torch.nn.Module]:
    """Lists the parts in the order in which they compute."""
    return [*model.conditioner.encoders.values(), model.network.backbone, model.codec.autoencoder]


def take_turns(model: LatentModel, home: torch.device) -> LatentModel:
    """Lets every part rest in main memory; each moves to the card as it computes, and the one before it leaves."""
    before = None
    model.network.schedule = model.network.schedule.to(home)
    for part in _list_parts(model):
        _, before = cpu_offload_with_hook(part, home, before)
    return dataclasses.replace(model, home=home, codec=dataclasses.replace(model.codec, home=home))
