"""Which of a part's weight files is read, of all the spellings that variants and shards have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fewstep.errors import UserError
from fewstep.files import explain_damage, open_safetensors
from fewstep.models.model_files import check_config, find_file, read_json

_NAME = re.compile(
    r"(?P<stem>[^.]+?)(?:\.(?P<variant>[^.]+?))?(?:-(?P<number>\d+)-of-(?P<count>\d+))?(?:\.(?P<last>[^.]+))?\.safetensors"
)
"""Matches `model.safetensors`, `model.fp16.safetensors`, `model.fp16-00001-of-00002.safetensors` (diffusers today),
`model-00001-of-00002.fp16.safetensors` (diffusers before) and `model-00001-of-00002.safetensors`."""
_STEMS = ("diffusion_pytorch_model", "model")
"""Is what diffusers and transformers call the weights of a part."""
_VARIANTS = ("", "fp16", "bf16")
"""Lists variants in the order in which they are taken; any other is taken where it is the only one."""
_PICKLES = (".bin", ".ckpt", ".pt", ".pth")


@dataclass(frozen=True)
class WeightFiles:
    """The files that hold a part's weights once."""

    variant: str
    """Is fp16 in `model.fp16.safetensors`; empty for the plain one."""
    names: tuple[str, ...]
    """Holds one file, or all shards in their order."""


def check_floats(file: Path) -> None:
    """Raises UserError where weights are whole numbers, which would be read as if they were not scaled."""
    with explain_damage(file), open_safetensors(file) as opened:
        for name in opened.keys():  # noqa: SIM118  # not a mapping
            kind = opened.get_slice(name).get_dtype()
            if name.endswith((".weight", ".bias")) and kind.startswith(("I", "U", "BOOL")):
                raise UserError(
                    f"{file} holds {name} in whole numbers, which are no weights by themselves; take the model in "
                    "bf16, fp16 or fp32"
                )


def choose_weights(names: Iterable[str], where: str) -> WeightFiles:
    """Chooses among a folder's files: plain, then fp16, then bf16, then whatever other variant stands alone.

    Raises UserError, which begins with `where`, where there is none, where several are of equal rank, or where a shard
    of the one chosen is missing.
    """
    names = sorted(names)
    groups: dict[str, dict[int, str]] = {}
    counts: dict[str, int] = {}
    for name in names:
        if found := _NAME.fullmatch(name):
            variant = found["variant"] or found["last"] or ""
            variant = variant if found["stem"] in _STEMS else f"{found['stem']} {variant}".strip()
            groups.setdefault(variant, {})[int(found["number"] or 0)] = name
            counts[variant] = max(counts.get(variant, 0), int(found["count"] or 0))
    variant = _choose_variant(list(groups), names, where)
    files = groups[variant]
    if 0 in files:
        return WeightFiles(variant, (files[0],))
    if missing := sorted(set(range(1, counts[variant] + 1)) - set(files)):
        raise UserError(
            f"{where} lacks {len(missing)} of {counts[variant]} shards of its weights (number {missing[0]} is the "
            "first); fetch the model again"
        )
    return WeightFiles(variant, tuple(files[number] for number in sorted(files)))


def _choose_variant(variants: list[str], names: Iterable[str], where: str) -> str:
    for variant in _VARIANTS:
        if variant in variants:
            return variant
    if len(variants) == 1:
        return variants[0]
    if variants:
        raise UserError(
            f"{where} holds several variants of its weights ({', '.join(variants)}) and none of plain, fp16 and bf16; "
            "leave one in it"
        )
    pickles = [name for name in names if name.endswith(_PICKLES)]
    found = f"found {', '.join(pickles)}, a pickle" if pickles else "found none"
    raise UserError(f"{where} has no safetensors weights ({found}); only safetensors are read, convert them first")


def stage_weights(folder: Path, chosen: WeightFiles, stem: str, place: Path) -> None:
    """Makes `place` a folder in which the files chosen, and no others, have the names that libraries seek.

    The index of shards is made anew, since one that lies there may name anything. Raises UserError.
    """
    config = read_json(folder / "config.json", f"{folder} is not a whole part of a model")
    check_config(config, folder / "config.json")
    if (named := config.pop("transformers_weights", None)) not in (None, *chosen.names):
        raise UserError(f"{folder}/config.json names {ascii(named)[:80]} as its weights, not {chosen.names[0]}; fix it")
    (place / "config.json").write_text(json.dumps(config))
    if len(chosen.names) == 1:
        (place / f"{stem}.safetensors").symlink_to(find_file(folder, chosen.names[0]))
        return
    map_: dict[str, str] = {}
    size = 0
    for number, name in enumerate(chosen.names, 1):
        shard = f"{stem}-{number:05d}-of-{len(chosen.names):05d}.safetensors"
        file = find_file(folder, name)
        (place / shard).symlink_to(file)
        map_ |= dict.fromkeys(_list_tensors(folder / name), shard)
        size += file.stat().st_size
    index: Mapping[str, object] = {"metadata": {"total_size": size}, "weight_map": map_}
    (place / f"{stem}.safetensors.index.json").write_text(json.dumps(index))


def _list_tensors(file: Path) -> list[str]:
    from fewstep.files import read_safetensors_header

    return list(read_safetensors_header(file).shapes)
