"""The few-step LoRA that a distillation of adapters goes on from."""

from __future__ import annotations

from fewstep.errors import UserError
from fewstep.files import read_safetensors_header
from fewstep.models.card import LCM_LORA
from fewstep.models.family import LatentModel
from fewstep.models.lora.few_step import check_told, read_few_step
from fewstep.models.lora.file import read_lora
from fewstep.models.lora.source import parse_lora
from fewstep.recipes.distill import Distill
from fewstep.runs.begun import Begun


def read_adapters(config: Distill, teacher: LatentModel) -> Begun:
    """Reads adapters that go on as they are. Raises UserError where the file is none of fewstep's few-step LoRAs."""
    path, scale = parse_lora(config.start)
    if scale != 1:
        raise UserError(f"--start {config.start} has the scale {scale:g}; adapters go on as they are, leave it out")
    file = read_lora(path, teacher.parts, teacher.family.lora)
    header = read_safetensors_header(path).metadata
    if header.get("fewstep.method") != LCM_LORA:
        raise UserError(f"{path} is not a few-step LoRA that fewstep made; give one")
    check_told(file)
    card, _ = read_few_step(header, str(path), teacher.family)
    return Begun(card, lora=file)
