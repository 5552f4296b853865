"""Small decoders of latents, in TAESD's layout: a fraction of the autoencoder's time for a little of its exactness."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderTiny

from fewstep.errors import UserError
from fewstep.files import read_safetensors
from fewstep.models.model_places import find_snapshot
from fewstep.models.parts import load_weights

_DIFFUSERS = "decoder.layers."


def load_tiny_decoder(source: str | Path, device: torch.device) -> AutoencoderTiny:
    """Loads a diffusers folder of an AutoencoderTiny, or a safetensors file that TAESD's author or diffusers wrote,
    frozen, in fp32. Raises UserError naming what does not fit."""
    place = find_snapshot(Path(source))
    try:
        tiny = _from_folder(place) if place.is_dir() else _from_file(place)
    except UserError:
        raise
    except Exception as error:  # diffusers raises nearly anything where a configuration is odd
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{source} is not a decoder in TAESD's layout ({reason})") from error
    scale = tiny.config.scaling_factor
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < float("inf"):
        raise UserError(f"{source} has scaling_factor {scale!r} in config.json; expected a number above 0")
    tiny = tiny.eval().requires_grad_(False).to(device, torch.float32)
    return tiny.to(memory_format=torch.channels_last)


def _from_folder(folder: Path) -> AutoencoderTiny:
    try:
        tiny: AutoencoderTiny = load_weights(AutoencoderTiny, folder)
    except UserError as error:
        raise UserError(f"{folder} is not a decoder in TAESD's layout ({error})") from error
    return tiny


def _from_file(file: Path) -> AutoencoderTiny:
    held = read_safetensors(file, advice="give the folder or the .safetensors file of a decoder in TAESD's layout")
    state = {key.removeprefix(_DIFFUSERS): value for key, value in held.items() if key.startswith(_DIFFUSERS)}
    if not state:  # TAESD's own file counts a clamp of the latents as layer 0, which diffusers has in code
        state = {f"{int(number) - 1}.{rest}": value for number, rest, value in _numbered(held)}
    tiny = AutoencoderTiny(latent_channels=int(state["0.weight"].shape[1]))
    tiny.decoder.layers.load_state_dict(state)
    return tiny


def _numbered(held: dict[str, torch.Tensor]) -> list[tuple[str, str, torch.Tensor]]:
    return [(number, rest, value) for key, value in held.items() for number, rest in [key.split(".", 1)]]
