"""LoRAs for modules that the first code of a family has as one, and diffusers as several: q, k and v, for instance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.models.family import LoraLayout
from fewstep.models.lora.spelling import split_key

_ENDS = {
    "down": "lora_A.weight", "up": "lora_B.weight", "alpha": "alpha", "dora_scale": "dora_scale",
    "magnitude": "lora_magnitude_vector",
}  # fmt: skip
_BY_ROW = ("up", "dora_scale", "magnitude")
"""What has a row for each of a module's outputs."""


def take_apart(
    path: Path, tensors: Mapping[str, Tensor], modules: Mapping[str, nn.Module], layout: LoraLayout
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
            parts = {key: value}
        else:
            whole = [f"{begin}{name}" for name in ours]
            parts = {f"{whole[i]}.{_ENDS[half]}": value for i in range(len(whole))}
            if half in _BY_ROW:
                rows = [_count_rows(modules[name]) for name in whole]
                swapped = [layout.is_swapped(name, blocks) for name in ours]
                parts = dict(zip(parts, _share_rows(path, key, value, rows, swapped), strict=True))
        for name, part in parts.items():
            if name in result:
                raise UserError(f"{path} is ambiguous: it holds {name} twice, the second time as {key}")
            result[name] = part.contiguous()
    return result


def _share_rows(path: Path, key: str, value: Tensor, rows: Sequence[int], swapped: Sequence[bool]) -> list[Tensor]:
    """Returns the rows of each of the modules that have so many. Raises UserError where there are others for several:
    left whole, the tensor could fit each of them alone and mean another thing."""
    if value.ndim and len(value) == sum(rows):
        parts = zip(value.split(list(rows)), swapped, strict=True)
        return [torch.cat(part.chunk(2)[::-1]) if swap else part for part, swap in parts]
    if len(rows) == 1:
        return [value]  # which is checked as any other
    if value.ndim > 1 and len(value) == 1:
        raise UserError(
            f"{path} has {key} along the inputs of {len(rows)} modules in one, which cannot be taken apart; give one "
            "that is along the outputs"
        )
    raise UserError(
        f"{path} does not fit this base: {key} is {tuple(value.shape)}, needed are {sum(rows):,} rows, for {len(rows)} "
        "of its modules"
    )


def _count_rows(module: nn.Module) -> int:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return len(weight)


def _spell(module: str, layout: LoraLayout) -> Iterator[str]:
    yield module
    yield from (f"{prefix}_{module.replace('.', '_')}" for prefix in layout.prefixes[layout.part])
    yield from (f"{prefix}.{module}" for prefix in layout.original_prefixes)
