"""The model families: each is a file in this folder, and a name in FAMILIES; nothing outside knows how one looks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fewstep.errors import UserError
from fewstep.files import read_safetensors_header
from fewstep.models.families.stable_diffusion import SD1, SD2, SDXL
from fewstep.models.family import Family, LoraLayout
from fewstep.models.network import BackboneNetwork
from fewstep.models.scheduler import read_json

__all__ = [
    "FAMILIES", "BackboneNetwork", "Family", "FamilyChoice", "LoraLayout", "family_of_file", "family_of_folder",
    "list_parts",
]  # fmt: skip

FAMILIES: dict[str, Family] = {family.name: family for family in (SD1, SD2, SDXL)}

if TYPE_CHECKING:
    FamilyChoice = str
else:
    FamilyChoice = Literal[("any", *FAMILIES)]  # what the command line allows


def list_parts() -> list[str]:
    """Returns the folders that a model of any family may have."""
    return list(dict.fromkeys(part for family in FAMILIES.values() for part in family.parts))


def family_of_folder(folder: Path, index: Mapping[str, Any], source: str) -> Family:
    """Finds the family of a diffusers folder with that model_index.json. Raises UserError naming what is there."""
    pipeline_class = str(index.get("_class_name"))
    known = [family for family in FAMILIES.values() if pipeline_class in family.pipeline_classes]
    if not known:
        classes = dict.fromkeys(each for family in FAMILIES.values() for each in family.pipeline_classes)
        raise UserError(f"{source} holds a {pipeline_class}; known are {', '.join(classes)}")
    part = known[0].lora.part
    if not (folder / part).is_dir():
        raise UserError(f"{source} is not a whole pipeline: it has no folder {part}/")
    config = read_json(folder / part / "config.json", f"{source} is not a whole pipeline")
    for family in known:
        if family.recognises(config):
            return family
    raise UserError(
        f"{source} holds a {pipeline_class} around a {config.get('_class_name')} with switches that no family known "
        f"here has; known are {', '.join(family.title for family in known)}"
    )


def family_of_file(path: Path) -> Family:
    """Finds the family of a single file by its tensors' names. Raises UserError naming what is there."""
    keys = list(read_safetensors_header(path).shapes)
    for family in FAMILIES.values():
        if family.recognises_keys(keys, path):
            return family
    if any(".lora_" in key or key.startswith("lora_") for key in keys):
        raise UserError(f"{path} is a LoRA, not a model; give it with --lora")
    begin = sorted({".".join(key.split(".")[:2]) for key in keys})
    raise UserError(
        f"{path} holds no family known here: its tensors begin with {', '.join(begin[:4])}; known are single files of "
        f"{', '.join(family.title for family in FAMILIES.values())} with their text encoders"
    )
