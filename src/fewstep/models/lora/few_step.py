"""What the header of an LCM-LoRA says of painting with it."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fewstep.errors import UserError
from fewstep.models.card import LCM_LORA, StudentCard
from fewstep.models.family import Family

LCM_SCHEDULER = "LCMScheduler"
"""The scheduler that few-step LoRAs are painted with."""
DEFAULT_STEPS = 4
_DEFAULT_GRID = 50


def read_few_step(header: Mapping[str, str], source: str, family: Family) -> tuple[StudentCard, int]:
    """Returns the card of a base with that LoRA, and how many times its sampler may choose from.

    Raises UserError, which names `source`, where the header asks for what cannot be done.
    """
    kind = header.get("fewstep.scheduler", LCM_SCHEDULER)
    if kind != LCM_SCHEDULER:
        raise UserError(f"{source} asks for the scheduler {kind}; only {LCM_SCHEDULER} is known")
    card = StudentCard(
        name=header.get("modelspec.title"),
        method=LCM_LORA,
        guidance_scale=family.guidance_of(_read_number(header, source, "fewstep.omega", 0.0)),
        sampling_steps=_read_count(header, source, "fewstep.steps", DEFAULT_STEPS),
    )
    return card, _read_count(header, source, "fewstep.original_inference_steps", _DEFAULT_GRID)


def _read_number(header: Mapping[str, str], source: str, name: str, default: float) -> float:
    try:
        value = float(header.get(name, default))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{source} has {name} {header[name]!r} in its header; a number is wanted")
    return value


def _read_count(header: Mapping[str, str], source: str, name: str, default: int) -> int:
    value = _read_number(header, source, name, default)
    if value != int(value) or value < 1:
        raise UserError(f"{source} has {name} {header[name]!r} in its header; a whole number above 0 is wanted")
    return int(value)
