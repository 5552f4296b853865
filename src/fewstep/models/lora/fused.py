"""LoRAs for modules that the first code of a family has as one, and diffusers as several: q, k and v, for instance."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.errors import UserError
from fewstep.models.family import LoraLayout
from fewstep.models.lora.pair import Lora, Pair
from fewstep.models.lora.spelling import PEFT, split_key

_ENDS = {
    "down": "lora_A.weight", "up": "lora_B.weight", "alpha": "alpha", "dora_scale": "dora_scale",
    "magnitude": "lora_magnitude_vector",
}  # fmt: skip
_BY_ROW = ("up", "dora_scale", "magnitude")
"""What has a row for each of a module's outputs."""
_BY_RANK = {"down": 0, "up": 1}
"""What has an axis as long as the rank, and which."""


def take_apart(
    path: Path, tensors: Mapping[str, Tensor], modules: Mapping[str, nn.Module], layout: LoraLayout
) -> dict[str, Tensor]:
    """Returns a file's tensors with those under the original's names under diffusers', apart where these are several:
    A and alpha are each one's, and the rows of B are shared out; with A and alpha, where `fuse` made one of them."""
    begin = f"{layout.part}."
    own = [name.removeprefix(begin) for name in modules if name.startswith(begin)]
    spelt = {
        spelling: ours for theirs, ours in layout.original_modules(own).items() for spelling in _spell(theirs, layout)
    }
    blocks = len({name.split(".")[1] for name in own if name.startswith("transformer_blocks.")})
    halves = {split_key(key): value for key, value in tensors.items()}
    shares = {
        module: len(spelt[module]) for (module, half), value in halves.items()
        if half == "up" and module in spelt and (module, "alpha") in halves
        and _has_blocks(value, [_count_rows(modules[begin + name]) for name in spelt[module]])
    }  # fmt: skip
    result: dict[str, Tensor] = {}
    for key, value in tensors.items():
        module, half = split_key(key)
        if half not in _ENDS or (ours := spelt.get(module)) is None:
            parts = {key: value}
        else:
            whole = [f"{begin}{name}" for name in ours]
            given = [value] * len(whole)
            if half in _BY_ROW:
                rows = [_count_rows(modules[name]) for name in whole]
                swapped = [layout.is_swapped(name, blocks) for name in ours]
                given = _share_rows(path, key, value, rows, swapped)
            if module in shares and half in _BY_RANK:
                axis, count = _BY_RANK[half], shares[module]
                given = [part.chunk(count, axis)[i] for i, part in enumerate(given)]
            elif module in shares and half == "alpha":
                given = [part / shares[module] for part in given]
            parts = {f"{name}.{_ENDS[half]}": part for name, part in zip(whole, given, strict=True)}
        for name, part in parts.items():
            if name in result:
                raise UserError(f"{path} is ambiguous: it holds {name} twice, the second time as {key}")
            result[name] = part.contiguous()
    return result


def _has_blocks(up: Tensor, rows: Sequence[int]) -> bool:
    """Tells whether each module's rows of a B have columns of their own, as where several LoRAs were put in one."""
    if len(rows) < 2 or up.ndim < 2 or len(up) != sum(rows) or up.shape[1] % len(rows):
        return False
    parts = [part.chunk(len(rows), 1) for part in up.split(list(rows))]
    return not any(block.any() for i, part in enumerate(parts) for k, block in enumerate(part) if k != i)


def fuse(pairs: Lora, groups: Mapping[str, tuple[str, ...]], modules: Mapping[str, nn.Module]) -> dict[str, Lora]:
    """Returns by the `groups` of modules that are one elsewhere what of them is adapted, each with a pair of the same
    rank, filled up with zeros, of alpha = rank; pairs without alpha folded in are not looked for here."""
    result = {}
    for theirs, ours in groups.items():
        if not (held := {name: pairs[name] for name in ours if name in pairs}):
            continue
        rank = max(pair.rank for pair in held.values())
        none = next(iter(held.values())).down[:0]
        empty = {name: Pair(none, none.new_zeros(_count_rows(modules[name]), 0), 0.0) for name in ours}
        result[theirs] = {name: _fill_up(pair, rank) for name, pair in (empty | held).items()}
    return result


def join_rows(pairs: Iterable[Pair]) -> Pair:
    """Makes one pair of those of modules that are one, one after the other; each keeps its own columns of B."""
    several = list(pairs)
    down, up = torch.cat([pair.down for pair in several]), torch.block_diag(*(pair.up for pair in several))
    return Pair(down, up, sum(pair.alpha for pair in several))


def _fill_up(pair: Pair, rank: int) -> Pair:
    more = rank - pair.rank
    down, up = functional.pad(pair.down, (0, 0, 0, more)), functional.pad(pair.up, (0, more))
    return Pair(down, up, float(rank))


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
        f"{path} does not fit this base: {key} is {tuple(value.shape)}, needed: {sum(rows):,} rows, for {len(rows)} "
        "of its modules"
    )


def _count_rows(module: nn.Module) -> int:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return len(weight)


def _spell(module: str, layout: LoraLayout) -> Iterator[str]:
    yield from (f"{prefix}_{module.replace('.', '_')}" for prefix in layout.prefixes[layout.part])
    for whole in (module, *(f"{prefix}.{module}" for prefix in layout.original_prefixes)):
        yield from (whole, f"{PEFT}{whole}")
