"""Single-file checkpoints (`.safetensors` in the layout of Stability's own code), read through diffusers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import nn

from fewstep.errors import UserError
from fewstep.files import read_safetensors_header
from fewstep.models.families import SD1, SD2, SDXL, Family, family_of

_TEXT_ENCODERS = {
    "conditioner.embedders.1.model.": SDXL,
    "cond_stage_model.model.": SD2,
    "cond_stage_model.transformer.": SD1,
}
"""By where the text encoder's keys begin; the UNet's and the autoencoder's are the same in all families."""
_UNET, _VAE = "model.diffusion_model.", "first_stage_model."


def family_of_keys(keys: Sequence[str], path: Path) -> Family:
    """By the names of the tensors; UserError names what was found in place of a family."""
    for prefix, family in _TEXT_ENCODERS.items():
        if any(key.startswith(prefix) for key in keys):
            missing = [part for part in (_UNET, _VAE) if not any(key.startswith(part) for key in keys)]
            if missing:
                raise UserError(f"{path} is no whole {family.title} model: no tensor begins with {missing[0]}")
            return family
    if any(".lora_" in key or key.startswith("lora_") for key in keys):
        raise UserError(f"{path} is a LoRA, not a model; give it with --lora")
    begin = sorted({".".join(key.split(".")[:2]) for key in keys})
    raise UserError(
        f"{path} holds no family known here: its tensors begin with {', '.join(begin[:4])}; known are single files of "
        f"{', '.join(family.title for family in _TEXT_ENCODERS.values())} with their text encoders"
    )


def _check_config(folder: Path, path: Path, family: Family) -> None:
    try:
        unet = json.loads((folder / "unet" / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"--base-config {folder} has no readable unet/config.json; give the folder of a diffusers pipeline"
        ) from error
    if family_of(unet) is not family:
        raise UserError(f"{path} is {family.title} and --base-config {folder} is {family_of(unet).title}")


def load_single_file(path: Path, config: str) -> Any:
    """The diffusers pipeline that the file holds, in fp32.

    `config` is a folder with the family's configurations and tokenizers (any diffusers folder of it, weights or none);
    when empty, diffusers fetches them from the Hub by what it takes the file for.
    """
    family = family_of_keys(list(read_safetensors_header(path).shapes), path)
    if config:
        _check_config(Path(config), path, family)
    kind: Any = StableDiffusionXLPipeline if family is SDXL else StableDiffusionPipeline
    none = {} if family is SDXL else {"safety_checker": None, "feature_extractor": None}
    try:
        pipeline = kind.from_single_file(str(path), config=config or None, torch_dtype=torch.float32, **none)
    except Exception as error:  # diffusers, transformers and the Hub each raise their own
        reason = " ".join(str(error).split())[:200]
        if "meta tensor" in reason:  # what diffusers says of tensors that it looked for in vain
            reason = "tensors are missing: the file is not whole, or of another layout than its configuration"
        help_ = (
            ""
            if config
            else ("; without a connection give --base-config, the folder of any diffusers pipeline of this family")
        )
        raise UserError(f"{path} cannot be loaded as {family.title} ({reason}){help_}") from error
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module) and any(weight.is_meta for weight in part.parameters()):
            raise UserError(f"{path} is no whole {family.title} model: weights of {name} are missing")
    return pipeline
