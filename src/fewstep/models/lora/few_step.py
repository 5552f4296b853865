"""What the header of an LCM-LoRA says of painting with it."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from fewstep.diffusion.flow import MOST_SHIFT
from fewstep.errors import UserError
from fewstep.models.card import LCM_LORA, MAX_STEPS, StudentCard, read_method
from fewstep.models.family import Family, LatentModel
from fewstep.models.lora.file import LoraFile, list_adaptable
from fewstep.models.lora.source import name_of

DEFAULT_STEPS = 4
_DEFAULT_GRID = 50
_LCM = re.compile(r"(?<![a-z])lcm(?![a-z])", re.IGNORECASE)
logger = logging.getLogger(__name__)


def find_few_step(files: Sequence[LoraFile], model: LatentModel) -> LoraFile | None:
    """Finds the LCM-LoRA as `recognise` does. Raises UserError where some files say nothing of themselves and none is
    known for one: a style is never taken for it."""
    if (found := recognise(files, model)) is not None:
        return found
    if silent := [file for file in files if file.note("method") is None]:
        raise UserError(
            f"{model.source} is a teacher, not a few-step model, and nothing says that {silent[0].source} is an "
            "LCM-LoRA (a style LoRA is not one): give an LCM-LoRA too, or a few-step model; if this is one, put lcm "
            "in the file's name"
        )
    return None


def recognise(files: Sequence[LoraFile], model: LatentModel) -> LoraFile | None:
    """Finds the LCM-LoRA among files for a base that needs one: the one that fewstep made, or that others made and call
    so, or that adapts what the paper's do. It prints what spoke for it."""
    for file in files:
        if file.note("method") == LCM_LORA:
            return file
    for file in files:
        if file.note("method") is None and (why := _why_few_step(file, model)):
            logger.info(f"{file.source} is taken for an LCM-LoRA: {why}")
            return file
    return None


def _why_few_step(file: LoraFile, model: LatentModel) -> str | None:
    """Returns what speaks for a LoRA's being an LCM-LoRA."""
    said = (name_of(Path(file.source)), *(file.header.get(name, "") for name in ("modelspec.title", "ss_output_name")))
    if name := next(filter(_LCM.search, said), None):
        return f"it is called {name}"
    layout, trained = model.family.lora, any(name.startswith("ss_") for name in file.header)
    ends = tuple(f".{target}" for target in layout.targets)
    whole = {name for name in list_adaptable({layout.part: model.network.backbone}) if name.endswith(ends)}
    if not trained and file.pairs.keys() == whole:
        return "it adapts all the modules that the paper's do, and nothing else"
    return None


def find_told(files: Sequence[LoraFile], model: LatentModel) -> LoraFile | None:
    """Finds the LoRA that tells its base where to land. Raises UserError where others make that few-step too."""
    told = next((file for file in files if file.end), None)
    if told is None:
        return None
    others = (file for file in files if file is not told)
    if other := next((file for file in others if file.end or file.note("method") == LCM_LORA), None):
        raise UserError(
            f"{told.source} tells its base where to land, beside which no second few-step LoRA can be: give it or "
            f"{other.source}, and styles with it"
        )
    if model.is_few_step:
        raise UserError(
            f"{model.source} is few-step already, and {told.source} tells its base where to land; give the base that "
            "it is for"
        )
    return told


def check_told(file: LoraFile) -> None:
    """Raises UserError where the header of a few-step LoRA names a method that tells the end, and it carries nothing
    that does; or the other way round."""
    method = read_method(StudentCard(consistency=file.note("consistency")), file.source)
    if method.told_end != bool(file.end):
        raise UserError(
            f"{file.source} is by {method.name} as its header says, and carries {'an' if file.end else 'no'} input for "
            "where to land; take the file as fewstep wrote it"
        )


def read_few_step(header: Mapping[str, str], source: str, family: Family) -> tuple[StudentCard, int]:
    """Returns the card of a base with that LoRA, and how many times its sampler may choose from.

    Raises UserError, which names `source`, where the header asks for what cannot be done.
    """
    consistency = header.get("fewstep.consistency")
    method = read_method(StudentCard(consistency=consistency), source)
    wanted = method.flow_scheduler if family.is_flow else method.scheduler
    kind = header.get("fewstep.scheduler", wanted)
    if kind != wanted:
        raise UserError(f"{source} asks for the scheduler {kind}; only {wanted} is known for it")
    card = StudentCard(
        name=header.get("modelspec.title"),
        method=LCM_LORA,
        consistency=consistency,
        guidance_scale=family.guidance_of(_read_number(header, source, "fewstep.omega", 0.0)),
        phases=_read_phases(header, source),
        shift=_read_shift(header, source) if family.is_flow else None,
        guidance_range=_read_range(header, source) if family.guided_inside else None,
        sampling_steps=_read_count(header, source, "fewstep.steps", DEFAULT_STEPS),
    )
    return card, _read_count(header, source, "fewstep.original_inference_steps", _DEFAULT_GRID)


def _read_range(header: Mapping[str, str], source: str) -> tuple[float, float] | None:
    if (said := header.get("fewstep.guidance_range")) is None:
        return None
    try:
        low, high = (float(each) for each in said.split(","))
    except ValueError:
        low, high = math.nan, math.nan
    if not -math.inf < low <= high < math.inf:
        raise UserError(f"{source} has fewstep.guidance_range {said!r:.60} in its header; expected two numbers")
    return low, high


def _read_shift(header: Mapping[str, str], source: str) -> float | None:
    if "fewstep.shift" not in header:
        return None
    shift = _read_number(header, source, "fewstep.shift", 1.0)
    if not 0 < shift <= MOST_SHIFT:
        raise UserError(f"{source} has fewstep.shift {shift:g} in its header; expected above 0, up to {MOST_SHIFT}")
    return shift


def _read_phases(header: Mapping[str, str], source: str) -> tuple[int, ...] | None:
    if (said := header.get("fewstep.phases")) is None:
        return None
    words = said.split(",")
    if not all(each.isascii() and each.isdigit() and 1 <= int(each[:4]) <= MAX_STEPS for each in words):
        raise UserError(f"{source} has fewstep.phases {said!r:.60} in its header; expected whole numbers, as 1,2,4,8")
    return tuple(int(each) for each in words)


def _read_number(header: Mapping[str, str], source: str, name: str, default: float) -> float:
    try:
        value = float(header.get(name, default))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{source} has {name} {header[name]!r} in its header; expected a number")
    return value


def _read_count(header: Mapping[str, str], source: str, name: str, default: int) -> int:
    value = _read_number(header, source, name, default)
    if value != int(value) or value < 1:
        raise UserError(f"{source} has {name} {header[name]!r} in its header; expected a whole number above 0")
    return int(value)
