"""`fewstep combine`: combines LoRAs into one file, or merges them into their base."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fewstep import assets
from fewstep.errors import UserError, show
from fewstep.files import is_vacant
from fewstep.models.card import LCM_LORA
from fewstep.models.loading import load_latent_model, pick_device
from fewstep.models.lora.combining import combine_loras, merge
from fewstep.models.lora.export import save_combined, save_merged, spell
from fewstep.models.lora.few_step import check_told, find_told, recognise
from fewstep.models.lora.file import list_written, read_lora
from fewstep.models.lora.header import DIFFUSERS_ENTRY
from fewstep.models.lora.source import parse_lora
from fewstep.models.model_files import name_place
from fewstep.models.network import scale_end
from fewstep.models.options import LoraOptions


@dataclass(frozen=True, kw_only=True)
class Combine(LoraOptions):
    """Combines LoRAs, each at its scale, into one LoRA or a whole pipeline: θ + Σ λ_i·ΔW_i."""

    base: str = assets.SCENES
    """The model that the LoRAs are for: `scenes` (bundled), a diffusers folder (docs/families.md), a
    single-file checkpoint or a Hub id."""
    merged: bool = False
    """Write a whole pipeline with the LoRAs merged into the base, instead of one LoRA."""
    out: Path = Path("combined")
    """Folder for the result; it must be empty, or not exist yet."""


def combine(config: Combine) -> None:
    """Writes `config.out` and says what it holds."""
    if not config.lora:
        raise UserError("nothing to combine: give --lora FILE:SCALE, once for each")
    if not is_vacant(config.out):
        raise UserError(f"{config.out} is not empty; choose another --out")
    model = load_latent_model(config.base, pick_device("cpu"), config.base_config, config)
    given = [parse_lora(text) for text in config.lora]
    files = [read_lora(path, model.parts, model.family.lora) for path, _ in given]
    loras = [(file.pairs, scale) for file, (_, scale) in zip(files, given, strict=True)]
    told = find_told(files, model)
    end = {} if told is None else scale_end(told.end, given[files.index(told)][1])
    for file in files:
        for line in file.notes:
            print(show(line))
        if file.embeddings:
            words = ", ".join(file.embeddings)
            print(show(f"warning: {file.source} brings {words} for prompts, which the result will not know"))
    # The few-step LoRA's header says how its combinations are painted with.
    lcm_lora = told or (None if model.is_few_step else recognise(files, model))
    if lcm_lora:
        check_told(lcm_lora)
    header = {} if lcm_lora is None else {**lcm_lora.header, "fewstep.method": LCM_LORA}
    header = {name: value for name, value in header.items() if name not in ("format", DIFFUSERS_ENTRY)}
    header |= {"modelspec.title": config.out.name, "fewstep.combined": ", ".join(config.lora)}
    if config.merged:
        merge(model.parts, loras)
        if end:
            model.network.load_end(end, "", 1.0)
        save_merged(config.out, model, header)
        print(f"pipeline: {config.out}")
        return
    header["fewstep.teacher"] = name_place(config.base)
    if config.base_config:
        header["fewstep.base_config"] = config.base_config
    header |= {f"fewstep.{name}": spell(value) for name, value in config.stated().items()}
    difference = save_combined(config.out, model, combine_loras(loras), header, end)
    written = " and ".join(list_written(model.family.lora, end))
    print(f"LoRA: {config.out}/{written}, read back: largest difference {difference:g}")
