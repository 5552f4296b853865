"""The model families: each is a file in this folder, and a line in _FILES; nothing outside knows how one looks."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fewstep.errors import UserError
from fewstep.files import read_safetensors_header
from fewstep.importing import uncollected
from fewstep.models.family import Family
from fewstep.models.lora.spelling import split_key
from fewstep.models.model_files import check_index, read_json

_FILES = {
    "sd1": "stable_diffusion",
    "sd2": "stable_diffusion",
    "sdxl": "stable_diffusion",
    "sd3": "sd3",
    "flux": "flux",
    "zimage": "zimage",
    "qwen": "qwen",
    "klein": "klein",
    "sana": "sana",
    "pixart": "pixart",
}
"""The file of each family, which ends in its FAMILIES; it is imported only when a family is asked for."""

_PIPELINES = {
    "StableDiffusionPipeline": ("sd1", "sd2"),
    "LatentConsistencyModelPipeline": ("sd1", "sd2"),
    "StableDiffusionXLPipeline": ("sdxl",),
    "StableDiffusion3Pipeline": ("sd3",),
    "FluxPipeline": ("flux",),
    "ZImagePipeline": ("zimage",),
    "QwenImagePipeline": ("qwen",),
    "Flux2KleinPipeline": ("klein",),
    "SanaPipeline": ("sana",),
    "SanaSprintPipeline": ("sana",),
    "PixArtSigmaPipeline": ("pixart",),
}
"""The families whose models have a pipeline of each class: what each `Family.pipeline_classes` says, known before the
file of any is imported, with all that it takes of diffusers."""

if TYPE_CHECKING:
    FamilyChoice = str
else:
    FamilyChoice = Literal[("any", *_FILES)]  # what the command line allows


def find_family(name: str) -> Family:
    """Returns the family of that name."""
    with uncollected():
        family: Family = importlib.import_module(f"{__name__}.{_FILES[name]}").FAMILIES[name]
    return family


def each_family() -> Iterator[Family]:
    """Yields the families in their order, the file of each imported when its turn comes."""
    return map(find_family, _FILES)


def list_families() -> list[Family]:
    """Returns every family."""
    return list(each_family())


def list_parts() -> list[str]:
    """Returns the folders that a model of any family may have."""
    return list(dict.fromkeys(part for family in list_families() for part in family.parts))


def recognise_folder(folder: Path, index: Mapping[str, Any], source: str) -> Family:
    """Finds the family of a diffusers folder with that model_index.json. Raises UserError naming what is there."""
    check_index(index, source)
    pipeline_class = str(index.get("_class_name"))
    known: list[Family] = []
    for family in map(find_family, _PIPELINES.get(pipeline_class, ())):
        known.append(family)
        part = family.lora.part
        if not (folder / part).is_dir():
            raise UserError(f"{source} is not a whole pipeline: it has no folder {part}/")
        config = read_json(folder / part / "config.json", f"{source} is not a whole pipeline")
        if family.recognises(config):
            return family
    if not known:
        raise UserError(f"{source} holds a {pipeline_class}; known: {', '.join(_PIPELINES)}")
    raise UserError(
        f"{source} holds a {pipeline_class} around a {config.get('_class_name')} with switches that no family known "
        f"here has; known: {', '.join(family.title for family in known)}"
    )


def recognise_file(path: Path) -> Family:
    """Finds the family of a single file by its tensors' names. Raises UserError naming what is there."""
    keys = list(read_safetensors_header(path).shapes)
    for family in each_family():
        if family.recognises_keys(keys, path):
            return family
    if any(split_key(key)[1] for key in keys):
        raise UserError(f"{path} is a LoRA, not a model; give it with --lora")
    begin = sorted({".".join(key.split(".")[:2]) for key in keys})
    raise UserError(
        f"{path} holds no family known here: its tensors begin with {', '.join(begin[:4])}; known: single files of "
        f"{', '.join(family.title for family in list_families())} with their text encoders"
    )
