"""The recipes of the commands that train, by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.diffusion.prediction import Parameterisation
from fewstep.errors import UserError, find_nearest
from fewstep.recipes.consistency import ConsistencyConfig
from fewstep.recipes.distill import Distill
from fewstep.recipes.finetune import Finetune, default_finetune
from fewstep.recipes.given import name_as_given
from fewstep.recipes.plain import from_file, read_config_file
from fewstep.recipes.train_lora import TrainLora, default_train_lora


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


def scenes_any_step() -> Distill:
    """Distils the bundled teacher into a student for any number of steps, guided everywhere (docs/methods.md)."""
    return dataclasses.replace(
        scenes(), method="any-step", steps=600, skip=125, guidance_range=(5.0, 5.0), guided_from=0
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


def sd35() -> Distill:
    """Distils Stable Diffusion 3.5 medium at 1024 pixels, with one guidance built in: no paper has values for it. For
    short runs see sd15."""
    return dataclasses.replace(
        sd15(), family="sd3", steps=20_000, batch_size=16, accumulation=16, lr=5e-6, guidance_range=(4.5, 4.5),
        guidance_scale=4.5,
    )  # fmt: skip


def flux() -> Distill:
    """Distils FLUX.1 dev at 1024 pixels, whose input for guidance its student keeps. Every weight learns, which takes
    many cards: flux-lora is for one. No paper has values for it."""
    return dataclasses.replace(sd35(), family="flux", guidance_range=(1.5, 5.0), guidance_scale=3.5)


def zimage() -> Distill:
    """Distils Z-Image at 1024 pixels, with one guidance built in. Every weight learns, which takes several cards:
    zimage-lora is for one. No paper has values for it."""
    return dataclasses.replace(sd35(), family="zimage", guidance_range=(5.0, 5.0), guidance_scale=5.0)


def qwen() -> Distill:
    """Distils Qwen-Image at 1024 pixels, with one guidance built in. Every weight learns, which takes many cards:
    qwen-lora is for one. No paper has values for it."""
    return dataclasses.replace(sd35(), family="qwen", guidance_range=(4.0, 4.0), guidance_scale=4.0)


def klein() -> Distill:
    """Distils FLUX.2 klein base (4B) at 1024 pixels, with one guidance built in. Every weight learns, which takes
    several cards: klein-lora is for one. No paper has values for it."""
    return dataclasses.replace(sd35(), family="klein", guidance_range=(4.0, 4.0), guidance_scale=4.0)


def sana() -> Distill:
    """Distils SANA 1.6B at 1024 pixels, with one guidance built in: no paper has values for it. For short runs see
    sd15."""
    return dataclasses.replace(sd35(), family="sana", accumulation=4)


def pixart() -> Distill:
    """Distils PixArt-Σ at 1024 pixels, with one guidance built in: no paper has values for it. For short runs see
    sd15."""
    return dataclasses.replace(sd35(), family="pixart", accumulation=4)


def make_lora(recipe: Callable[[], Distill], accumulation: int, guidance_scale: float = 8.5) -> Callable[[], Distill]:
    """Turns a recipe into one for an LCM-LoRA, with its paper's values: rank 64, ω = 7.5, learning rate 1e-4; 2,000
    updates and, being so few, no average."""
    return lambda: dataclasses.replace(
        recipe(), steps=2000, batch_size=16, accumulation=accumulation, lr=1e-4, warmup_steps=100, ema_decay=0.0,
        lora_rank=64, guidance_range=(guidance_scale, guidance_scale), guidance_scale=guidance_scale,
        checkpoint_every=200, sample_every=200,
    )  # fmt: skip


DISTILL: dict[str, Callable[[], Distill]] = {
    "scenes": scenes, "scenes-lora": scenes_lora, "scenes-any-step": scenes_any_step,
    "sd15-lora": make_lora(sd15, 2), "sd15": sd15, "sdxl-lora": make_lora(sdxl, 4), "sdxl": sdxl,
    "flux-lora": make_lora(flux, 16, 3.5), "flux": flux, "sd35-lora": make_lora(sd35, 8, 4.5), "sd35": sd35,
    "zimage-lora": make_lora(zimage, 16, 5.0), "zimage": zimage, "qwen-lora": make_lora(qwen, 16, 4.0), "qwen": qwen,
    "klein-lora": make_lora(klein, 16, 4.0), "klein": klein, "sana-lora": make_lora(sana, 4, 4.5), "sana": sana,
    "pixart-lora": make_lora(pixart, 4, 4.5), "pixart": pixart, "sd21-lora": make_lora(sd21, 4), "sd21": sd21,
    "sd21-base-lora": make_lora(sd21_base, 2), "sd21-base": sd21_base,
}  # fmt: skip
"""Lists the bundled teacher's first, then models by how much they are used, of each the LoRA before the whole."""


MEMORY_GIB: dict[str, float] = {
    "sd15": 19.92, "sd21-base": 20.05, "sd21": 20.31, "sdxl": 56.08,
    "sd35": 49.24, "sd35-lora": 8.32, "flux": 246.72, "zimage": 130.6, "zimage-lora": 16.48, "flux-lora": 28.87,
    "qwen": 421.71, "qwen-lora": 47.29, "klein": 81.8, "klein-lora": 10.58,
    "sd15-lora": 5.46, "sd21-base-lora": 5.16, "sd21-lora": 5.47, "sdxl-lora": 11.62,
    "sana": 34.66, "sana-lora": 5.41, "pixart": 15.75, "pixart-lora": 4.56,
}  # fmt: skip
"""GPU memory for one update in bf16, as studies/memory.py counted it (docs/memory.md)."""


@dataclass(frozen=True)
class Released:
    """The released model that a recipe, and its -lora, are meant for."""

    side: int
    """Side in pixels of its pictures."""
    parameterisation: Parameterisation = "epsilon"


RELEASED = {
    "sd15": Released(512), "sdxl": Released(1024), "flux": Released(1024, "flow_prediction"),
    "sd35": Released(1024, "flow_prediction"), "zimage": Released(1024, "flow_prediction"),
    "qwen": Released(1024, "flow_prediction"), "klein": Released(1024, "flow_prediction"),
    "sana": Released(1024, "flow_prediction"), "pixart": Released(1024), "sd21-base": Released(512),
    "sd21": Released(768, "v_prediction"),
}  # fmt: skip
_MODEL_SETTINGS = ("teacher", "data", "out", "family")


def make_finetune(recipe: Callable[[], Distill]) -> Callable[[], Finetune]:
    """Turns a distillation's recipe into a fine-tuning's: the paper's 30,000 updates, 2,000 of adapters, and an average
    that follows within a hundred."""

    def make() -> Finetune:
        distill = recipe()
        shared = {field.name for field in dataclasses.fields(ConsistencyConfig)} - set(_MODEL_SETTINGS)
        values: dict[str, Any] = {name: getattr(distill, name) for name in shared}
        values |= {} if distill.lora_rank else {"steps": 30_000, "ema_decay": 0.95}
        return Finetune(model="", data="", **values)

    return make


def make_style(recipe: Callable[[], Distill]) -> Callable[[], TrainLora]:
    """Turns the recipe of an LCM-LoRA into a style's, whose adapters are smaller."""

    def make() -> TrainLora:
        lora = recipe()
        return TrainLora(
            model="", data="", steps=lora.steps, batch_size=lora.batch_size, accumulation=lora.accumulation, lr=lora.lr,
            warmup_steps=lora.warmup_steps, checkpoint_every=lora.checkpoint_every, gradient_checkpointing=True,
        )  # fmt: skip

    return make


RECIPES: dict[str, Mapping[str, Callable[[], Any]]] = {
    "distill": DISTILL,
    "finetune": {
        "scenes": default_finetune,
        **{name: make_finetune(recipe) for name, recipe in DISTILL.items() if name in MEMORY_GIB},
    },
    "train-lora": {
        "scenes": default_train_lora,
        **{name: make_style(DISTILL[f"{name}-lora"]) for name in RELEASED},
    },
}
"""Lists them by command; the first of each is that of the bundled models."""


def list_recipes(command: str) -> list[str]:
    """Returns the names of a command's recipes."""
    return list(RECIPES[command])


def find_recipe(name: str, command: str = "distill") -> Any:
    """Returns the recipe of that name, or the configuration in that YAML file. Raises UserError for another name."""
    recipes = RECIPES[command]
    if name in recipes:
        return recipes[name]()
    if name.endswith((".yaml", ".yml")):
        settings = read_config_file(Path(name)).keys()
        kinds = {each: type(next(iter(RECIPES[each].values()))()) for each in RECIPES}
        fitting = [
            each for each, kind in kinds.items() if settings <= {field.name for field in dataclasses.fields(kind)}
        ]
        if fitting and command not in fitting:
            raise UserError(f"{name} is of a run of another command; give it to `fewstep {fitting[0]}`")
        with name_as_given(kinds[command], settings):
            return from_file(kinds[command], name)
    close = find_nearest(name.lower(), recipes)
    hint = f"; did you mean {close}?" if close else ""
    if Path(name).is_dir():
        raise UserError(f"{name} is a folder; a run is repeated by its config.yaml: {Path(name) / 'config.yaml'}")
    raise UserError(
        f"{name!r} is not a recipe; known: {', '.join(recipes)}, or the config.yaml of an earlier run{hint}"
    )


def describe(command: str) -> str:
    """Returns the head of a command's help: what it does, and which recipes there are."""
    recipes = RECIPES[command]
    memory = {name: f"{gib:3.0f} GiB for one update" for name, gib in MEMORY_GIB.items()}
    if command == "train-lora":
        memory = {name: memory[f"{name}-lora"] for name in RELEASED}
    need = "the GPU memory that they need" if command == "distill" else "the most GPU memory that they need"
    summary = type(next(iter(recipes.values()))()).__doc__
    return "\n".join(
        [
            str(summary),
            "",
            "The first word is a recipe, or the config.yaml of an earlier run; its values are the defaults below.",
            "Without one it is the recipe of the model's family.",
            "",
            f"The recipes, and {need}:",
            *(f"  {name:<16}{memory.get(name, '  a CPU will do')}" for name in recipes),
            "",
            "Text encoders and autoencoder come on top, unless --keep-gib holds all pictures encoded (docs/memory.md).",
        ]
    )
