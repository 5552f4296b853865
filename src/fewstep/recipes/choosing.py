"""Which recipe a training takes where none is named: that of its model's family."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch

from fewstep import assets
from fewstep.errors import UserError
from fewstep.models.lora.source import source_of
from fewstep.models.model_files import check_asked
from fewstep.models.options import NETWORK_OPTION
from fewstep.models.recognising import Recognised, recognise
from fewstep.recipes.named import MEMORY_GIB, RECIPES, RELEASED, find_recipe

FETCHED = ("teacher", "model", NETWORK_OPTION, "base_config", "base_lora", "data", "mix")
"""Options that may name what is not on this machine."""
_PROGRAM = "eval_extractor"
"""An option that may name a program."""
OWN = (*FETCHED, _PROGRAM)
"""Options that a person names, and no file for them."""


@dataclass(frozen=True)
class Choice:
    """A recipe for a model."""

    name: str
    config: Any
    note: str = ""
    """What is said of the choice; empty where it is that of the bundled models."""


def choose_recipe(
    command: str, model: str, base_config: str = "", *, lora: bool = False, prediction: str = ""
) -> Choice:
    """Chooses among a command's recipes by the family of `model`, what it predicts (as `prediction` says, if it does),
    its pictures' size, and whether adapters are wanted.

    A few-step model keeps the guidance that it was trained for. Raises UserError where the family is not known.
    """
    lora = lora and command != "train-lora"
    seen = None if model in ("", *assets.MODELS) else recognise(model, base_config)
    if seen is None or seen.card.teacher in assets.MODELS:
        name = "scenes-lora" if lora and "scenes-lora" in RECIPES[command] else "scenes"
        return Choice(name, find_recipe(name, command))
    if seen and prediction:
        seen = dataclasses.replace(seen, parameterisation=prediction)
    whole = min(_list_of_family(seen), key=lambda name: _measure_distance(name, seen))
    name = f"{whole}-lora" if lora else whole
    config = find_recipe(name, command)
    if command == "finetune" and seen.few_step:
        config = dataclasses.replace(config, **_pick_guidance(seen, find_recipe(whole, command)))
    return Choice(name, config, f"recipe {name}, since {model} is of {seen.family.title}{_say_memory(command, name)}")


def check_named(config: Any, source: str, named: Collection[str]) -> None:
    """Raises UserError where a configuration that is a file says what to fetch, or what program to run, and its option
    is not among those `named` on the command line."""
    if not source.endswith((".yaml", ".yml")):
        return
    for option in FETCHED:
        value = getattr(config, option, "")
        for each in value if isinstance(value, tuple) else (value,):
            if option not in named and (option not in ("data", "mix") or "://" in each):
                where = source_of(each) if option == "base_lora" else each
                check_asked(where, source, remedy=_name_yourself(option, each))
    program = getattr(config, _PROGRAM, "")
    if _PROGRAM not in named and os.path.isfile(program):
        raise UserError(
            f"{source} names {program}, which is a program that would be run; {_name_yourself(_PROGRAM, program)}"
        )


def _name_yourself(option: str, value: str) -> str:
    return f"name it yourself: --{option.replace('_', '-')} {shlex.quote(value)}"


def _list_of_family(seen: Recognised) -> list[str]:
    return [name for name in RELEASED if RECIPES["distill"][name]().family == seen.family.name]


def _measure_distance(name: str, seen: Recognised) -> tuple[bool, int]:
    """Returns how far a model is from the released one of a recipe: first what it predicts, then its pictures' side."""
    released = RELEASED[name]
    return seen.parameterisation not in ("", released.parameterisation), abs(released.side - seen.side)


def _pick_guidance(seen: Recognised, usual: Any) -> dict[str, Any]:
    """Returns the settings of guidance that a few-step model was trained with, or the papers' where it records none."""
    low, high = seen.card.guidance_range or usual.guidance_range
    scale = seen.card.guidance_scale or usual.guidance_scale
    return {"guidance_range": (low, high), "guidance_scale": min(max(scale, low), high)}


def _say_memory(command: str, name: str) -> str:
    """Says whether the recipe fits the GPU that is here, if one is, by the counted table."""
    if not torch.cuda.is_available():
        return ""
    counted = f"{name}-lora" if command == "train-lora" else name
    needed, held = MEMORY_GIB[counted], torch.cuda.get_device_properties(0).total_memory / 2**30
    fits = "fits" if needed < held else "does not fit"
    return (
        f"; an update needs about {needed:.0f} GiB and {fits} this GPU's {held:.0f}, without text encoders "
        f"(for the fastest settings: fewstep plan --recipe {counted} --gpu-memory {held:.0f})"
    )
