"""`fewstep convert`: a LoRA in the spelling of another tool, with its alpha."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fewstep import assets
from fewstep.errors import UserError, show
from fewstep.files import read_safetensors_header
from fewstep.models.loading import load_latent_model, pick_device
from fewstep.models.lora.converting import Spelling, convert_lora
from fewstep.models.lora.file import read_lora
from fewstep.models.lora.source import parse_lora
from fewstep.models.model_files import check_asked
from fewstep.models.options import ModelOptions


@dataclass(frozen=True, kw_only=True)
class Convert(ModelOptions):
    """Writes a LoRA, in any spelling that is read, in that of another tool."""

    lora: Annotated[str, tyro.conf.Positional] = ""
    """LoRA to convert: a .safetensors file, the folder of a run or of peft, or a Hub id."""
    to: Spelling = "kohya"
    """Spelling to write: `kohya`, which A1111, Forge and ComfyUI read; `diffusers`; `peft`, a folder with
    adapter_config.json; or `comfyui`, whose keys are the names of the model's first code."""
    base: str = ""
    """Model that the LoRA is for, by which its modules are known: a diffusers folder, a single file, a Hub id or
    `scenes`. By default what the LoRA's header names."""
    out: Path | None = None
    """File to write, or for peft the folder; nothing may be there yet. By default converted.safetensors, for peft
    converted."""


def convert(config: Convert) -> None:
    """Writes the file and says what it holds."""
    if not config.lora:
        raise UserError("nothing to convert: give a LoRA, as in `fewstep convert style.safetensors --to kohya`")
    out = config.out or Path("converted" if config.to == "peft" else "converted.safetensors")
    if os.path.lexists(out):
        raise UserError(f"{out} is there already; choose another --out")
    if config.to != "peft" and out.suffix != ".safetensors":
        raise UserError(f"out is {out}; give the name of a .safetensors file")
    path, scale = parse_lora(config.lora)
    if scale != 1:
        raise UserError(f"{config.lora} has a scale, which a conversion leaves as it is; leave :{scale:g} out")
    model = load_latent_model(find_base(config, path), pick_device("cpu"), config.base_config, config)
    file = read_lora(path, model.parts, model.family.lora)
    for line in file.notes:
        print(show(line))
    if file.embeddings:
        words = ", ".join(file.embeddings)
        print(show(f"warning: {file.source} brings {words} for prompts, which the result will not know"))
    difference, folded = convert_lora(file, out, config.to, model.parts, model.family.lora)
    if folded:
        print(f"note: the scale alpha/rank is part of the weights now, since {config.to} has no other place for it")
    print(show(f"LoRA: {out}, read back: largest difference {difference:g}"))


def find_base(config: Convert, path: Path) -> str:
    """Returns the base that is given, or named in the header. Raises UserError where there is none."""
    if config.base:
        return config.base
    named = read_safetensors_header(path).metadata.get("fewstep.teacher", "")
    if not named:
        raise UserError(f"{path} does not say what model it is for; give --base")
    if named != assets.SCENES:
        check_asked(named, path, remedy="give --base yourself")
    return named
