"""Single-file checkpoints (`.safetensors` in the layout of Stability's own code), read through diffusers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewstep.errors import UserError
from fewstep.models.families import list_families
from fewstep.models.family import Family

_UNET, _VAE = "model.diffusion_model.", "first_stage_model."


def check_keys(family: Family, keys: Sequence[str], path: Path) -> None:
    """Raises UserError where a file lacks the network or the autoencoder."""
    missing = [part for part in (_UNET, _VAE) if not any(key.startswith(part) for key in keys)]
    if missing:
        raise UserError(f"{path} is no whole {family.title} model: no tensor begins with {missing[0]}")


def check_config(family: Family, folder: Path, path: Path) -> None:
    """Raises UserError where the configurations in `folder` are another family's."""
    part = family.lora.part
    try:
        config = json.loads((folder / part / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"--base-config {folder} has no readable {part}/config.json; give the folder of a diffusers pipeline"
        ) from error
    if not family.recognises(config):
        other = next((each.title for each in list_families() if each.recognises(config)), "of no family known here")
        raise UserError(f"{path} is {family.title} and --base-config {folder} is {other}")


def load_pipeline_of_file(family: Family, path: Path, base_config: str, kind: Any, **settings: Any) -> Any:
    """Loads the diffusers pipeline of class `kind` that the file holds, in fp32.

    `base_config` is a folder with the family's configurations and tokenizers (any diffusers folder of it, weights or
    none); when empty, diffusers fetches them from the Hub by what it takes the file for. Raises UserError.
    """
    if base_config:
        check_config(family, Path(base_config), path)
    try:
        pipeline = kind.from_single_file(str(path), config=base_config or None, torch_dtype=torch.float32, **settings)
    except Exception as error:  # diffusers, transformers and the Hub each raise their own
        reason = " ".join(str(error).split())[:200]
        if "meta tensor" in reason:  # what diffusers says of tensors that it looked for in vain
            reason = "tensors are missing: the file is not whole, or of another layout than its configuration"
        help_ = (
            ""
            if base_config
            else ("; without a connection give --base-config, the folder of any diffusers pipeline of this family")
        )
        raise UserError(f"{path} cannot be loaded as {family.title} ({reason}){help_}") from error
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module) and any(weight.is_meta for weight in part.parameters()):
            raise UserError(f"{path} is no whole {family.title} model: weights of {name} are missing")
    return pipeline
