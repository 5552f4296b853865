"""LoRAs for modules that the first code of a family has as one, and diffusers as several: q, k and v, for instance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from fewstep.models.family import LoraLayout
from fewstep.models.lora.spelling import split_key

_ENDS = {
    "down": "lora_A.weight", "up": "lora_B.weight", "alpha": "alpha", "dora_scale": "dora_scale",
    "magnitude": "lora_magnitude_vector",
}  # fmt: skip
_BY_ROW = ("up", "dora_scale", "magnitude")
"""What has a row for each of a module's outputs."""


def take_apart(
    tensors: Mapping[str, Tensor], modules: Mapping[str, nn.Module], layout: LoraLayout
) -> dict[str, Tensor]:
    """Returns a file's tensors with those under the original's names under diffusers', apart where these are several:
    A and alpha are each one's, and the rows of B are shared out."""
    begin = f"{layout.part}."
    own = [name.removeprefix(begin) for name in modules if name.startswith(begin)]
    spelt = {
        spelling: ours for theirs, ours in layout.original_modules(own).items() for spelling in _spell(theirs, layout)
    }
    blocks = len({name.split(".")[1] for name in own if name.startswith("transformer_blocks.")})
    result: dict[str, Tensor] = {}
    for key, value in tensors.items():
        module, half = split_key(key)
        if half not in _ENDS or (ours := spelt.get(module)) is None:
            result[key] = value
            continue
        rows = [_count_rows(modules[begin + name]) for name in ours]
        parts = [value] * len(ours)
        if half in _BY_ROW and value.ndim and len(value) == sum(rows):
            parts = [
                torch.cat(part.chunk(2)[::-1]) if layout.is_swapped(name, blocks) else part
                for part, name in zip(value.split(rows), ours, strict=True)
            ]
        for name, part in zip(ours, parts, strict=True):
            result[f"{begin}{name}.{_ENDS[half]}"] = part.contiguous()
    return result


def _count_rows(module: nn.Module) -> int:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return len(weight)


def _spell(module: str, layout: LoraLayout) -> Iterator[str]:
    yield module
    yield from (f"{prefix}_{module.replace('.', '_')}" for prefix in layout.prefixes[layout.part])
    yield from (f"{prefix}.{module}" for prefix in layout.original_prefixes)
