"""The recipes of `fewstep distill`, by name."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable

from fewstep.errors import UserError
from fewstep.recipes.distill import Distill
from fewstep.recipes.plain import from_file


def scenes() -> Distill:
    """Distils the bundled teacher in a few minutes on two CPU cores; docs/log.md tells how the values were found."""
    return Distill(
        steps=300, batch_size=32, lr=5e-4, lr_decay="cosine", ema_decay=0.95, skip=20, huber_c=0.03,
        guidance_range=(2.0, 9.0), guidance_scale=5.0, guided_from=500,
    )  # fmt: skip


def scenes_lora() -> Distill:
    """Trains an LCM-LoRA of the bundled teacher."""
    return dataclasses.replace(
        scenes(), lora_rank=64, lr=1e-3, guidance_range=(3.0, 3.0), guidance_scale=3.0, guided_from=0
    )


def sd15() -> Distill:
    """Distils Stable Diffusion 1.x at 512 pixels, with the paper's values for 2.1-base.

    EMA 0.999943 has a half-life of 12,000 updates: below 30,000 give --ema-decay 0.95, or the average will not have
    left the teacher. Parts and checkpointing are for one card of 24 GB.
    """
    return Distill(
        family="sd1", teacher="", data="", steps=100_000, batch_size=72, accumulation=9, lr=8e-6, lr_decay="constant",
        warmup_steps=1000, ema_decay=0.999943, skip=20, huber_c=0.001, guidance_range=(3.0, 15.0), guidance_scale=8.5,
        gradient_checkpointing=True, checkpoint_every=1000, sample_every=1000,
    )  # fmt: skip


def sd21_base() -> Distill:
    """Distils Stable Diffusion 2.1-base at 512 pixels, with the paper's values. For short runs see sd15."""
    return dataclasses.replace(sd15(), family="sd2")


def sd21() -> Distill:
    """Distils Stable Diffusion 2.1 (v-prediction) at 768 pixels, with the paper's values. For short runs see sd15."""
    return dataclasses.replace(sd15(), family="sd2", batch_size=16, accumulation=4)


def sdxl() -> Distill:
    """Distils Stable Diffusion XL at 1024 pixels; the paper has no values for it. For short runs see sd15."""
    return dataclasses.replace(sd15(), family="sdxl", batch_size=16, accumulation=4)


def make_lora(recipe: Callable[[], Distill], accumulation: int) -> Callable[[], Distill]:
    """Turns a recipe into one for an LCM-LoRA, with its paper's values: rank 64, ω = 7.5, learning rate 1e-4; 2,000
    updates and, being so few, no average."""
    return lambda: dataclasses.replace(
        recipe(), steps=2000, batch_size=16, accumulation=accumulation, lr=1e-4, warmup_steps=100, ema_decay=0.0,
        lora_rank=64, guidance_range=(8.5, 8.5), checkpoint_every=200, sample_every=200,
    )  # fmt: skip


RECIPES: dict[str, Callable[[], Distill]] = {
    "scenes": scenes, "sd15": sd15, "sd21-base": sd21_base, "sd21": sd21, "sdxl": sdxl,
    "scenes-lora": scenes_lora, "sd15-lora": make_lora(sd15, 2), "sd21-base-lora": make_lora(sd21_base, 2),
    "sd21-lora": make_lora(sd21, 4), "sdxl-lora": make_lora(sdxl, 4),
}  # fmt: skip


MEMORY_GIB: dict[str, float] = {
    "sd15": 19.92, "sd21-base": 20.05, "sd21": 20.31, "sdxl": 56.08,
    "sd15-lora": 5.46, "sd21-base-lora": 5.16, "sd21-lora": 5.47, "sdxl-lora": 11.62,
}  # fmt: skip
"""GPU memory for one update in bf16, as studies/memory.py counted it (docs/memory.md)."""


def describe() -> str:
    """Returns the head of `fewstep distill --help`: what the command does, and which recipes there are."""
    memory = {name: f"{gib:3.0f} GiB for one update" for name, gib in MEMORY_GIB.items()}
    return "\n".join(
        [
            "Turns a teacher into a model that paints in 1 to 8 steps.",
            "",
            "The first word is a recipe, or the config.yaml of an earlier run; its values are the defaults below.",
            "",
            "The recipes, and the GPU memory that they need:",
            *(f"  {name:<16}{memory.get(name, '  a CPU will do')}" for name in RECIPES),
        ]
    )


def find_recipe(name: str) -> Distill:
    """Returns the recipe of that name, or the configuration in that YAML file. Raises UserError for another name."""
    if name in RECIPES:
        return RECIPES[name]()
    if name.endswith((".yaml", ".yml")):
        return from_file(Distill, name)
    close = difflib.get_close_matches(name, RECIPES, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise UserError(
        f"{name!r} is no recipe; known are {', '.join(RECIPES)}, or the config.yaml of an earlier run{hint}"
    )
