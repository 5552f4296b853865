"""Recipes by name; a recipe may also be the config.yaml that an earlier run wrote."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from pathlib import Path

from fewstep.errors import UserError
from fewstep.recipes.distill import Distill
from fewstep.recipes.run_folder import from_plain, read_config_file


def scenes() -> Distill:
    """The bundled teacher in a few minutes on two CPU cores; docs/log.md tells how the values were found."""
    return Distill(
        steps=300, batch_size=32, lr=5e-4, lr_decay="cosine", ema_decay=0.95, skip=20, huber_c=0.03,
        guidance_range=(2.0, 9.0), guidance_scale=5.0,
    )  # fmt: skip


def scenes_lora() -> Distill:
    """LCM-LoRA of the bundled teacher."""
    return dataclasses.replace(scenes(), lora_rank=64, lr=1e-3, guidance_range=(3.0, 3.0), guidance_scale=3.0)


RECIPES: dict[str, Callable[[], Distill]] = {"scenes": scenes, "scenes-lora": scenes_lora}


def find_recipe(name: str) -> Distill:
    """The recipe of that name, or the configuration in that YAML file."""
    if name in RECIPES:
        return RECIPES[name]()
    if name.endswith((".yaml", ".yml")):
        values = read_config_file(Path(name))
        return from_plain(Distill, values, name)
    close = difflib.get_close_matches(name, RECIPES, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise UserError(
        f"{name!r} is no recipe; known are {', '.join(RECIPES)}, or the config.yaml of an earlier run{hint}"
    )
