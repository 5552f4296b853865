"""LoRA files: read in the spellings people have, checked, and written in the two that tools read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.files import read_safetensors, read_safetensors_header
from fewstep.models.card import LORA_FILE
from fewstep.models.family import LoraLayout

DIFFUSERS_FILE = LORA_FILE
KOHYA_FILE = "lora-kohya.safetensors"
LARGEST_RANK = 1024
LARGEST_SCALE = 64.0
"""Beyond this |alpha/rank| a file is taken for broken."""


@dataclass(frozen=True)
class Pair:
    """ΔW = alpha/rank · B·A of one linear or convolutional module."""

    down: Tensor
    """A, `[rank, in]` or `[rank, in, k, k]`."""
    up: Tensor
    """B, `[out, rank]` or `[out, rank, 1, 1]`."""
    alpha: float

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def delta(self) -> Tensor:
        """Computes ΔW `[out, in]` or `[out, in, k, k]`, in float64."""
        up, down = self.up.double().flatten(1), self.down.double().flatten(1)
        delta: Tensor = (self.scale * up @ down).unflatten(1, self.down.shape[1:])
        return delta


Lora = dict[str, Pair]
"""Pairs by the module's name in the pipeline, which begins with its part: `text_encoder.…`."""


@dataclass(frozen=True)
class LoraFile:
    """What a file holds, with the header that its writer left."""

    source: str
    pairs: Lora
    header: dict[str, str]

    def matched(self) -> str:
        """How many modules of which parts it adapts, in words; all of its tensors have their place there."""
        parts = [name.split(".", 1)[0] for name in self.pairs]
        counts = ", ".join(f"{parts.count(part)} modules of {part}" for part in dict.fromkeys(parts))
        return f"{self.source}: {counts}; every tensor matched"

    def note(self, name: str) -> str | None:
        """Returns what fewstep wrote under `fewstep.<name>`."""
        return self.header.get(f"fewstep.{name}")


def read_lora(path: Path, parts: Mapping[str, nn.Module], layout: LoraLayout) -> LoraFile:
    """Reads and checks `path` against the networks it is for, by their names in files; changes none of them.

    Spellings: diffusers (new, and attention processors), peft, kohya. UserError says what does not fit.
    """
    advice = "give a LoRA as .safetensors, or the folder of a run that made one"
    tensors, header = read_safetensors(path, advice=advice), read_safetensors_header(path, advice=advice).metadata
    modules = adaptable_modules(parts)
    names = _spellings(modules, layout)
    halves: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for key, value in tensors.items():
        module, half = _split(key)
        if half is None or (name := names.get(module)) is None:
            unknown.append(key)
        else:
            halves.setdefault(name, {})[half] = value
    if unknown or not halves:
        raise UserError(
            f"{path} does not fit this base: {len(unknown)} of {len(tensors)} tensors match no module of it"
            + (f", such as {unknown[0]}" if unknown else "")
            + "; it may be for another family, or no plain LoRA (DoRA, LoHa and LoKr are not read)"
        )
    written = _written_alphas(header)
    pairs = {name: _pair(path, name, half, written, modules[name].weight) for name, half in halves.items()}
    return LoraFile(str(path), pairs, header)


def parse_lora(given: str) -> tuple[Path, float]:
    """Reads `FILE` or `FILE:SCALE`; in place of a file a folder that `distill` wrote a LoRA into."""
    name, colon, number = given.rpartition(":")
    try:
        scale = float(number) if colon else 1.0
    except ValueError:  # the colon belongs to the name
        name, scale = given, 1.0
    if not math.isfinite(scale):
        raise UserError(f"--lora {given} has scale {scale:g}; a finite number is wanted")
    path = Path(name if colon and name else given)
    if path.is_dir():
        model = path / "model"  # of a run folder
        return (model if model.is_dir() else path) / DIFFUSERS_FILE, scale
    return path, scale


_HALVES = {
    "lora_A": "down", "lora_down": "down", "lora.down": "down", "lora_linear_layer.down": "down",
    "lora_B": "up", "lora_up": "up", "lora.up": "up", "lora_linear_layer.up": "up",
}  # fmt: skip
_PROCESSOR = re.compile(r"\.processor\.(to_[qkv]|to_out)_lora\.(down|up)\.weight$")


def _split(key: str) -> tuple[str, str | None]:
    """A tensor's key as (module, "down" | "up" | "alpha"), or (key, None)."""
    if found := _PROCESSOR.search(key):
        module = {"to_out": "to_out.0"}.get(found[1], found[1])
        return f"{key[: found.start()]}.{module}", found[2]
    if key.endswith(".alpha"):
        return key.removesuffix(".alpha"), "alpha"
    for spelling, half in _HALVES.items():
        for end in (f".{spelling}.weight", f".{spelling}.default.weight"):
            if key.endswith(end):
                return key.removesuffix(end), half
    return key, None


def adaptable_modules(parts: Mapping[str, nn.Module]) -> dict[str, nn.Linear | nn.Conv2d]:
    """Every linear and convolutional module by its name in the pipeline, whether or not adapters hang on it."""
    found: dict[str, nn.Linear | nn.Conv2d] = {}
    for part, network in parts.items():
        for name, module in network.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and not re.search(r"\.lora_[AB]\.", name):
                found[f"{part}.{name.removesuffix('.base_layer')}"] = module
    return found


def _spellings(modules: Collection[str], layout: LoraLayout) -> dict[str, str]:
    """Returns every name by which a file may call a module, with the name it has in the pipeline."""
    names: dict[str, str] = {}
    for true in modules:
        part, name = true.split(".", 1)
        for spelt in {name, layout.in_files(part, name)}:
            flat = spelt.replace(".", "_")
            names |= dict.fromkeys((f"{part}.{spelt}", f"base_model.model.{part}.{spelt}"), true)
            names |= dict.fromkeys((f"{prefix}_{flat}" for prefix in layout.prefixes[part]), true)
            if part == layout.part:
                names[f"base_model.model.{spelt}"] = true
    # Some kohya files, those for Stable Diffusion XL among them, call blocks as the original does.
    own = [true.removeprefix(f"{layout.part}.") for true in modules if true.startswith(f"{layout.part}.")]
    for module, theirs in layout.original_names(own).items():
        names |= dict.fromkeys(
            (f"{prefix}_{theirs.replace('.', '_')}" for prefix in layout.prefixes[layout.part]),
            f"{layout.part}.{module}",
        )
    return names


def _written_alphas(header: Mapping[str, str]) -> dict[str, Any]:
    """diffusers' `lora_adapter_metadata`, in which alpha stands when it is no tensor."""
    try:
        written = json.loads(header.get("lora_adapter_metadata", "{}"))
    except ValueError:
        return {}
    return written if isinstance(written, dict) else {}


def _pair(path: Path, name: str, half: Mapping[str, Tensor], written: Mapping[str, Any], weight: Tensor) -> Pair:
    """Returns the checked pair of one module."""
    if not {"down", "up"} <= half.keys():
        raise UserError(f"{path} is broken: of {name} it holds {', '.join(half)} alone")
    down, up = half["down"], half["up"]
    if not (down.isfinite().all() and up.isfinite().all()):
        raise UserError(f"{path} is broken: NaN or infinity in {name}")
    rank = len(down)
    wanted_down, wanted_up = (rank, *weight.shape[1:]), (weight.shape[0], rank, *[1] * (weight.ndim - 2))
    if weight.ndim == 4 and weight.shape[2:] == (1, 1):  # kohya and old diffusers write 1×1 convolutions as linear
        down, up = down.reshape(*down.shape[:2], 1, 1), up.reshape(*up.shape[:2], 1, 1)
    if tuple(down.shape) != tuple(wanted_down) or tuple(up.shape) != tuple(wanted_up):
        raise UserError(
            f"{path} does not fit this base: {name} has {tuple(down.shape)} and {tuple(up.shape)}, "
            f"needed are {tuple(wanted_down)} and {tuple(wanted_up)}"
        )
    alpha = _alpha(name, half, written, rank)
    if rank > LARGEST_RANK or not abs(alpha / rank) <= LARGEST_SCALE:
        raise UserError(
            f"{path} has rank {rank} and alpha {alpha:g} at {name}; allowed are ranks up to {LARGEST_RANK} "
            f"and |alpha/rank| up to {LARGEST_SCALE:g}"
        )
    return Pair(down.float(), up.float(), alpha)


def _alpha(name: str, half: Mapping[str, Tensor], written: Mapping[str, Any], rank: int) -> float:
    if "alpha" in half:
        return float(half["alpha"])
    part, module = name.split(".", 1)
    pattern = written.get(f"{part}.alpha_pattern") or {}
    for key, value in pattern.items():
        if re.search(rf"(^|\.){key.removeprefix('^')}$", module):
            return float(value)
    value = written.get(f"{part}.lora_alpha")
    return float(rank if value is None else value)


def write_lora(
    folder: Path, pairs: Lora, header: Mapping[str, str], parts: Mapping[str, nn.Module], layout: LoraLayout
) -> float:
    """Writes both spellings, reads them back, and returns the largest difference of any weight (it should be 0).

    diffusers' file carries alpha in `lora_adapter_metadata`: without it, it would be loaded at the wrong scale
    wherever alpha ≠ rank. kohya's carries a tensor `.alpha` for every module.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plain: dict[str, Tensor] = {}
    kohya: dict[str, Tensor] = {}
    for name, pair in pairs.items():
        part, module = name.split(".", 1)
        module = layout.in_files(part, module)
        down, up = pair.down.contiguous().cpu(), pair.up.contiguous().cpu()
        plain |= {f"{part}.{module}.lora_A.weight": down, f"{part}.{module}.lora_B.weight": up}
        prefix = layout.prefixes[part][-1 if len(parts) > 2 else 0]
        spelt = f"{prefix}_{module.replace('.', '_')}"
        kohya |= {f"{spelt}.lora_down.weight": down.clone(), f"{spelt}.lora_up.weight": up.clone()}
        kohya[f"{spelt}.alpha"] = torch.tensor(pair.alpha)
    said = {"format": "pt", **header}
    adapter = json.dumps(_adapter_metadata(pairs), sort_keys=True)
    safetensors.torch.save_file(plain, folder / DIFFUSERS_FILE, {**said, "lora_adapter_metadata": adapter})
    safetensors.torch.save_file(kohya, folder / KOHYA_FILE, said)
    return max(
        _difference(read_lora(folder / file, parts, layout).pairs, pairs) for file in (DIFFUSERS_FILE, KOHYA_FILE)
    )


def _difference(found: Lora, pairs: Lora) -> float:
    if found.keys() != pairs.keys():
        return float("inf")
    halves = [(one, pairs[name]) for name, one in found.items()]
    tensors = [(a, b.cpu()) for one, two in halves for a, b in ((one.down, two.down), (one.up, two.up))]
    return max(*(float((a - b).abs().max()) for a, b in tensors), *(abs(a.alpha - b.alpha) for a, b in halves))


def _adapter_metadata(pairs: Lora) -> dict[str, Any]:
    """peft's configuration of each part's adapter, as diffusers packs it."""
    said: dict[str, Any] = {}
    for part in dict.fromkeys(name.split(".", 1)[0] for name in pairs):
        own = {name.split(".", 1)[1]: pair for name, pair in pairs.items() if name.startswith(f"{part}.")}
        first = next(iter(own.values()))
        said |= {
            f"{part}.peft_type": "LORA",
            f"{part}.r": first.rank,
            f"{part}.lora_alpha": first.alpha,
            f"{part}.target_modules": sorted(own),
            f"{part}.rank_pattern": {name: pair.rank for name, pair in own.items() if pair.rank != first.rank},
            f"{part}.alpha_pattern": {name: pair.alpha for name, pair in own.items() if pair.alpha != first.alpha},
        }
    return said
