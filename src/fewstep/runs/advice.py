"""How to paint with what a run made."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from fewstep import assets
from fewstep.files import read_safetensors_header
from fewstep.models.card import LCM_LORA
from fewstep.models.lora.file import DIFFUSERS_FILE
from fewstep.models.lora.source import source_of
from fewstep.models.options import read_overrides


def advise_painting(model: Path) -> Iterator[str]:
    """Yields how to paint with the `model` folder of a run, a line each."""
    if (file := model / DIFFUSERS_FILE).is_file():
        yield from advise_lora(file, read_safetensors_header(file).metadata)
    else:
        yield f'paint with it: fewstep generate --model {shlex.quote(str(model))} --prompt "…"'


def advise_lora(lora: Path, metadata: Mapping[str, str]) -> Iterator[str]:
    """Yields how to paint with a LoRA, by the metadata in its header. A style needs a few-step model too."""
    base, here = metadata.get("fewstep.teacher", "BASE"), shlex.quote(str(lora))
    model = shlex.quote(base)
    if "fewstep.base_config" in metadata:
        model += f" --base-config {shlex.quote(metadata['fewstep.base_config'])}"
    overrides = read_overrides({name.removeprefix("fewstep."): value for name, value in metadata.items()})
    for name, value in overrides.stated().items():
        for each in value if isinstance(value, tuple) else (value,):
            model += f" --{name.replace('_', '-')}" + ("" if each is True else f" {shlex.quote(str(each))}")
    named = (base, metadata.get("fewstep.base_config", ""), overrides.network, *map(source_of, overrides.base_lora))
    if metadata.get("fewstep.method") == LCM_LORA and lora.name == DIFFUSERS_FILE and all(map(_is_here, named)):
        yield f'paint with it: fewstep generate --model {shlex.quote(str(lora.parent))} --prompt "…"'
    elif metadata.get("fewstep.method") == LCM_LORA:
        yield f'paint with it: fewstep generate --model {model} --lora {here} --prompt "…"'
    elif base == assets.SCENES:
        yield f'paint with it: fewstep generate --model {assets.SCENES_LCM} --lora {here}:0.8 --prompt "…"'
    else:
        yield f'paint with it: fewstep generate --model FEW-STEP --lora {here}:0.8 --prompt "…"'
        yield f"  FEW-STEP: a few-step model of {shlex.quote(base)}, as `fewstep distill` makes"
        yield f"  or, with an LCM-LoRA of that base: --model {model} --lora LCM-LORA --lora {here}:0.8"


def _is_here(named: str) -> bool:
    """Says whether what a LoRA's header names is taken without a question: what is on the Hub is asked for first."""
    return not named or named in assets.MODELS or Path(named).exists()
