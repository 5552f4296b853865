"""The keys that trainers write, as the module that each is for and the half of a pair that it holds."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator

from fewstep.errors import UserError
from fewstep.models.family import LoraLayout

EMBEDDING = "bundle_emb."
"""How the keys of embeddings begin that a file carries along."""
PEFT = "base_model.model."
"""How peft's keys begin."""
_PAIR = re.compile(r"(.+?)(?:[._]lora(?:_linear_layer)?\.|\.lora_)(down|up|mid|A|B)(?:\.[\w-]+)?\.weight")
_HALVES = {"A": "down", "B": "up"}
_XLABS = re.compile(r"(.+\.processor\.(?:qkv|proj)_lora[12]?)\.(down|up)\.weight")
_SINGLES = (
    (re.compile(r"(.+)\.alpha"), "alpha"),
    (re.compile(r"(.+)\.dora_scale"), "dora_scale"),
    (re.compile(r"(.+)\.lora_magnitude_vector(?:\.[\w-]+)?"), "magnitude"),
)
_OTHERS = {
    "a whole model": r"(model\.diffusion_model|first_stage_model|cond_stage_model|conditioner)\.",
    "a textual-inversion embedding": r"(emb_params|clip_[lg]|string_to_param.*|<.*>)$",
    "a ControlNet-LoRA": r"lora_controlnet$",
    "LoHa": r".*\.hada_",
    "LoKr": r".*\.lokr_",
    "OFT or BOFT": r".*\.(oft_|boft_)",
    "IA3": r".*\.(on_input$|ia3_)",
    "GLoRA": r".*\.[ab][12]\.weight$",
    "VeRA": r".*\.vera_",
    "whole differences of weights": r".*\.(diff|diff_b|w_norm|b_norm|set_weight)$",
    "biases": r".*\.bias$",
    "quantised weights": r".*\.(scale_weight|weight_scale|absmax|quant_map|quant_state.*)$",
}
"""What the keys of other kinds of files look like."""


def split_key(key: str) -> tuple[str, str | None]:
    """Returns a tensor's key as (module, "down" | "up" | "mid" | "alpha" | "magnitude" | "dora_scale"), or (key, None).

    peft may put the adapter's name before `.weight`.
    """
    if found := _XLABS.fullmatch(key) or _PAIR.fullmatch(key):
        return found[1], _HALVES.get(found[2], found[2])
    for pattern, half in _SINGLES:
        if found := pattern.fullmatch(key):
            return found[1], half
    return key, None


def list_spellings(modules: Collection[str], layout: LoraLayout) -> dict[str, str]:
    """Returns every name by which a file may call a module, with the name it has in the pipeline."""
    names: dict[str, str] = {}
    for true in modules:
        part, name = true.split(".", 1)
        names |= dict.fromkeys(_spell(part, name, layout), true)
    # Some files, kohya's for Stable Diffusion XL among them, call blocks as the original does.
    own = [true.removeprefix(f"{layout.part}.") for true in modules if true.startswith(f"{layout.part}.")]
    for module, theirs in layout.original_names(own).items():
        spelt = (f"{prefix}_{theirs.replace('.', '_')}" for prefix in layout.prefixes[layout.part])
        whole = (f"{prefix}.{theirs}" for prefix in layout.original_prefixes)
        names |= dict.fromkeys((*spelt, *whole), f"{layout.part}.{module}")
    return names


def _spell(part: str, name: str, layout: LoraLayout) -> Iterator[str]:
    for spelt in dict.fromkeys((name, layout.in_files(part, name))):
        yield from (f"{prefix}_{spelt.replace('.', '_')}" for prefix in layout.prefixes[part])
        for each in (spelt, *layout.former_names(part, spelt)):
            yield from (f"{part}.{each}", f"{part}.base_model.model.{each}", f"base_model.model.{part}.{each}")
            if part == layout.part:
                yield from (each, f"{PEFT}{each}", f"lycoris_{each.replace('.', '_')}")
                # diffusers' names behind the original's prefix, as trainers write them that call all models alike
                yield from (f"{begin}{prefix}.{each}" for prefix in layout.original_prefixes for begin in ("", PEFT))


def refuse_others(path: object, keys: Iterable[str]) -> None:
    """Raises UserError where keys are those of something else than LoRA, by its name."""
    for key in keys:
        for kind, pattern in _OTHERS.items():
            if re.match(pattern, key):
                raise UserError(
                    f"{path} holds {kind}, such as {key}; what is read is LoRA and DoRA in the spellings of diffusers, "
                    "peft and kohya: merge it into its base with the tool that made it, and give that as the model"
                )
