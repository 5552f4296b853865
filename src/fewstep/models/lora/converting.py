"""One LoRA in another tool's spelling: the same pairs, alpha and width under other names."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.files import open_safetensors, replace_folder, write_whole
from fewstep.models.family import LoraLayout
from fewstep.models.lora.file import (
    LoraFile,
    fold,
    list_adaptable,
    measure_difference,
    pack_adapters,
    read_lora,
    spell_as_diffusers,
    spell_as_kohya,
    spell_groups,
)
from fewstep.models.lora.header import DIFFUSERS_ENTRY, PEFT_FILE
from fewstep.models.lora.pair import Lora, find_dora
from fewstep.models.lora.spelling import PEFT

Spelling = Literal["diffusers", "peft", "kohya", "comfyui"]
PEFT_WEIGHTS = "adapter_model.safetensors"
_WIDTHS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_Speller = Callable[[Lora, Mapping[str, nn.Module], LoraLayout], tuple[dict[str, Tensor], Lora]]


def convert_lora(
    file: LoraFile, out: Path, spelling: Spelling, parts: Mapping[str, nn.Module], layout: LoraLayout
) -> tuple[float, bool]:  # fmt: skip
    """Writes a LoRA that was read to `out`, a file, or for peft a folder, and reads it back.

    Returns the largest difference (it should be 0), and whether its scale had to go into its weights, as where the
    spelling has several modules as one.

    Raises UserError for what the spelling has no place for.
    """
    _refuse(file, spelling, layout)
    folded = _must_fold(file.pairs, spelling, parts, layout)
    pairs = {name: fold(pair) for name, pair in file.pairs.items()} if folded else dict(file.pairs)
    tensors, held = _SPELLERS[spelling](pairs, parts, layout)
    if lost := sorted(pairs.keys() - held.keys()):
        raise UserError(f"{spelling} has no name for {len(lost)} modules of {file.source}, such as {lost[0]}")
    width = _find_width(Path(file.source))
    if width is not None and not folded:  # exact: all of it came in this width
        tensors = {
            name: value if name.endswith(".alpha") else value.to(width) for name, value in tensors.items()
        }  # fmt: skip
    header = {name: value for name, value in file.header.items() if name not in ("format", DIFFUSERS_ENTRY)}
    adapters = pack_adapters(pairs)
    if spelling == "diffusers":
        header[DIFFUSERS_ENTRY] = json.dumps(adapters, sort_keys=True)
    header = {"format": "pt", **header}
    if spelling == "peft":
        said = {name.split(".", 1)[1]: value for name, value in adapters.items()}
        with replace_folder(out) as draft:
            (draft / PEFT_FILE).write_text(json.dumps(said, indent=2, sort_keys=True) + "\n")
            safetensors.torch.save_file(tensors, draft / PEFT_WEIGHTS, header)
    else:
        with write_whole(out) as draft:
            safetensors.torch.save_file(tensors, draft, header)
    written = out / PEFT_WEIGHTS if spelling == "peft" else out
    return measure_difference(read_lora(written, parts, layout), held, {}), folded


def _refuse(file: LoraFile, spelling: Spelling, layout: LoraLayout) -> None:
    if dora := find_dora(file.pairs):
        raise UserError(f"{file.source} is a DoRA, at {dora}; LoRAs are converted: merge it with `fewstep combine`")
    if file.end:
        raise UserError(f"{file.source} tells its base where to land, for which no other spelling has a place")
    others = {name.split(".", 1)[0] for name in file.pairs} - {layout.part}
    if spelling == "peft" and others:
        raise UserError(
            f"peft's files are of one network, and {file.source} also adapts {', '.join(sorted(others))}; give --to "
            "diffusers"
        )
    if spelling == "kohya" and layout.kohya_modules is None:
        raise UserError("no tool reads kohya's spelling for models of this family; give --to diffusers or comfyui")


def _must_fold(pairs: Lora, spelling: Spelling, parts: Mapping[str, nn.Module], layout: LoraLayout) -> bool:
    """Says whether alpha must become part of the weights: where tools read none, or modules become one."""
    scaled = any(pair.alpha != pair.rank for pair in pairs.values())
    if spelling == "diffusers" or not scaled:
        return scaled and layout.portable
    groups = {} if spelling == "peft" else _list_groups(spelling, parts, layout)
    return any(len(ours) > 1 and pairs.keys() & set(ours) for ours in groups.values())


def _list_groups(
    spelling: Spelling, parts: Mapping[str, nn.Module], layout: LoraLayout
) -> dict[str, tuple[str, ...]]:  # fmt: skip
    """Returns the network's modules as the spelling has them, with those that each of them is, by their whole names."""
    begin = f"{layout.part}."
    own = [name.removeprefix(begin) for name in list_adaptable(parts) if name.startswith(begin)]
    if spelling == "kohya":
        assert layout.kohya_modules is not None
        groups = dict(layout.kohya_modules(own))
    else:
        names = layout.original_names(own)
        single = {names.get(module, module): (module,) for module in own}
        groups, taken = {}, set[str]()
        for theirs, ours in {**layout.original_modules(own), **single}.items():
            if not taken & set(ours):  # the first code's names come before any other tool's
                groups[theirs] = tuple(ours)
                taken |= set(ours)
    return {theirs: tuple(f"{begin}{module}" for module in ours) for theirs, ours in groups.items()}


def _spell_for_comfyui(
    pairs: Lora, parts: Mapping[str, nn.Module], layout: LoraLayout
) -> tuple[dict[str, Tensor], Lora]:  # fmt: skip
    """Calls modules as the first code of the family did, which ComfyUI does; the text encoders as kohya does."""
    prefix = layout.original_prefixes[0]
    groups = {f"{prefix}.{theirs}": ours for theirs, ours in _list_groups("comfyui", parts, layout).items()}
    return spell_groups(pairs, groups, parts, layout)


def _spell_for_peft(pairs: Lora, _parts: Mapping[str, nn.Module], layout: LoraLayout) -> tuple[dict[str, Tensor], Lora]:
    plain = spell_as_diffusers(pairs, layout)
    return {f"{PEFT}{name.removeprefix(f'{layout.part}.')}": value for name, value in plain.items()}, pairs


_SPELLERS: dict[Spelling, _Speller] = {
    "diffusers": lambda pairs, _parts, layout: (spell_as_diffusers(pairs, layout), pairs),
    "peft": _spell_for_peft,
    "kohya": spell_as_kohya,
    "comfyui": _spell_for_comfyui,
}


def _find_width(path: Path) -> torch.dtype | None:
    """Returns the number format of all of a file's matrices, where they have one."""
    with open_safetensors(path) as file:
        slices = (file.get_slice(key) for key in file.keys())  # noqa: SIM118  # not a mapping
        widths = {each.get_dtype() for each in slices if len(each.get_shape()) > 1}
    return _WIDTHS.get(widths.pop()) if len(widths) == 1 else None
