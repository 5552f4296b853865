"""LoRA files: read in the spellings people have, checked, and written in the two that tools read."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.files import read_safetensors, read_safetensors_header
from fewstep.models.card import LORA_FILE
from fewstep.models.family import LoraLayout
from fewstep.models.lora.embeddings import Embeddings, read_embeddings
from fewstep.models.lora.end import read_end
from fewstep.models.lora.fitting import make_pair, read_number
from fewstep.models.lora.fused import fuse, join_rows, take_apart
from fewstep.models.lora.header import DIFFUSERS_ENTRY, PEFT_FILE, Adapter, read_adapters
from fewstep.models.lora.pair import Lora, Pair
from fewstep.models.lora.spelling import EMBEDDING, PEFT, list_spellings, refuse_others, split_key
from fewstep.models.network import KEYS, End

__all__ = ["DIFFUSERS_FILE", "KOHYA_FILE", "Lora", "LoraFile", "Pair", "list_adaptable", "read_lora", "write_lora"]

DIFFUSERS_FILE = LORA_FILE
KOHYA_FILE = "lora-kohya.safetensors"
_ADVICE = "give a LoRA as .safetensors, or the folder of a run that made one"


@dataclass(frozen=True)
class LoraFile:
    """What a file holds, with the header that its writer left."""

    source: str
    pairs: Lora
    header: dict[str, str]
    embeddings: Embeddings = field(default_factory=dict)
    """Words that it brings along for the text encoders."""
    notes: tuple[str, ...] = ()
    """What was assumed in reading it, a line each."""
    end: End = field(default_factory=dict)
    """What embeds the end beside its adapters, if it tells its base where to land."""

    def matched(self) -> str:
        """Says how many modules of which parts it adapts; all of its tensors have their place there."""
        parts = [name.split(".", 1)[0] for name in self.pairs]
        counts = ", ".join(f"{parts.count(part)} modules of {part}" for part in dict.fromkeys(parts))
        words = f"; it brings a word for prompts: {', '.join(self.embeddings)}" if self.embeddings else ""
        told = "; it tells its base where to land" if self.end else ""
        return f"{self.source}: {counts}; every tensor matched{words}{told}"

    def note(self, name: str) -> str | None:
        """Returns what fewstep wrote under `fewstep.<name>`."""
        return self.header.get(f"fewstep.{name}")


def read_lora(path: Path, parts: Mapping[str, nn.Module], layout: LoraLayout) -> LoraFile:
    """Reads and checks `path` against the networks it is for, by their names in files; changes none of them.

    Spellings: diffusers (new, old, attention processors), peft, kohya, and the original's names. UserError says what
    does not fit.
    """
    tensors, header = read_safetensors(path, advice=_ADVICE), read_safetensors_header(path, advice=_ADVICE).metadata
    carried = {key: tensors.pop(key) for key in list(tensors) if key.startswith(EMBEDDING)}
    ends = {key: tensors.pop(key) for key in list(tensors) if key.startswith(KEYS)}
    modules = list_adaptable(parts)
    tensors = take_apart(path, tensors, modules, layout)
    halves = _sort_halves(path, tensors, list_spellings(modules, layout))
    is_peft = any(key.startswith(PEFT) for key in tensors)
    scales = _Scales(path, read_adapters(path, header, parts=list(parts), is_peft=is_peft), layout, is_peft)
    pairs = {
        name: make_pair(path, name, half, modules[name].weight, partial(scales.find_alpha, name, half))
        for name, half in halves.items()
    }
    notes = scales.list_notes(pairs, header)
    time_layers = [parts[layout.part].get_submodule(name) for name in layout.time_layers if ends]
    embeddings = read_embeddings(path, carried, parts, layout)
    return LoraFile(str(path), pairs, header, embeddings, notes, read_end(path, ends, time_layers))


def _sort_halves(path: Path, tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, dict[str, Tensor]]:
    """Returns the tensors by module and half. Raises UserError where one has no place, or two have the same."""
    halves: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for key, value in tensors.items():
        module, half = split_key(key)
        if half is None or (name := names.get(module)) is None:
            unknown.append(key)
        elif half in halves.setdefault(name, {}):
            raise UserError(f"{path} is ambiguous: it holds {half} of {name} twice, the second time as {key}")
        else:
            halves[name][half] = value
    refuse_others(path, unknown)
    if not tensors:
        raise UserError(f"{path} holds no LoRA: none of its tensors is for a module")
    if unknown or not halves:
        raise UserError(
            f"{path} does not fit this base: {len(unknown)} of {len(tensors)} tensors match no module of it"
            + (f", such as {unknown[0]}" if unknown else "")
            + "; it may be for another family, or no LoRA"
        )
    return halves


@dataclass
class _Scales:
    """Knows where a file says the scale of its pairs, and keeps where it does not."""

    path: Path
    adapters: Mapping[str, Adapter]
    layout: LoraLayout
    is_peft: bool
    silent: list[str] = field(default_factory=list)
    """Modules whose alpha is written nowhere."""

    def find_alpha(self, name: str, half: Mapping[str, Tensor], rank: int) -> float:
        """Returns what a tensor says, or the adapter's configuration, or the rank. Raises UserError where they are at
        odds."""
        part, module = name.split(".", 1)
        if (adapter := self.adapters.get(part)) is None:
            if "alpha" in half:
                return read_number(self.path, f"alpha of {name}", half["alpha"])
            self.silent.append(name)
            return float(rank)
        spelt = (self.layout.in_files(part, module), module)
        if adapter.uses_dora and not {"magnitude", "dora_scale"} & half.keys():
            raise UserError(f"{self.path} is broken: it says that it is a DoRA and holds no magnitude of {name}")
        written = adapter.find_alpha(spelt, rank)
        found = read_number(self.path, f"alpha of {name}", half["alpha"]) if "alpha" in half else written
        if adapter.find_rank(spelt) != rank or abs(found - written) > 1e-3 * abs(written):
            raise UserError(
                f"{self.path} is ambiguous: {name} has rank {rank} and alpha {found:g} by its tensors, "
                f"{adapter.find_rank(spelt):g} and {written:g} by its configuration; fix or remove {DIFFUSERS_ENTRY}"
            )
        return found

    def list_notes(self, pairs: Lora, header: Mapping[str, str]) -> tuple[str, ...]:
        """Returns what was assumed of the scale, a line each."""
        notes = []
        said = header.get("ss_network_alpha", "")
        ranks = {f"{pairs[name].rank}{end}" for name in self.silent for end in ("", ".0")}
        if self.silent and said and said not in ranks:
            notes.append(
                f"{self.path} says ss_network_alpha {said:.20} in its header and no alpha beside {len(self.silent)} of "
                "its modules: their scale is taken for 1, as other tools do"
            )
        elif self.silent and self.is_peft and not self.adapters:
            notes.append(f"{self.path} has no {PEFT_FILE} beside it, which says its alpha: its scale is taken for 1")
        if none := [name for name, pair in pairs.items() if not pair.alpha and pair.magnitude is None]:
            notes.append(f"{self.path} has alpha 0 at {len(none)} of its modules and changes nothing there")
        return tuple(notes)


def list_adaptable(parts: Mapping[str, nn.Module]) -> dict[str, nn.Linear | nn.Conv2d]:
    """Returns all linear and convolutional modules by their names in the pipeline, with adapters on them or not."""
    found: dict[str, nn.Linear | nn.Conv2d] = {}
    for part, network in parts.items():
        for name, module in network.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and not re.search(r"\.lora_[AB]\.", name):
                found[f"{part}.{name.removesuffix('.base_layer')}"] = module
    return found


def write_lora(
    folder: Path, pairs: Lora, header: Mapping[str, str], parts: Mapping[str, nn.Module], layout: LoraLayout,
    end: End | None = None,
) -> float:  # fmt: skip
    """Writes both spellings, reads them back, and returns the largest difference of any weight (it should be 0).

    Of a portable layout alpha is folded into the weights, since tools read no other file rightly. Else diffusers' file
    carries alpha in `lora_adapter_metadata`: without it, it would be loaded at the wrong scale wherever alpha ≠ rank.
    kohya's carries a tensor `.alpha` for every module; it is not written where no tool reads one, nor with an `end`,
    for which no tool that reads it has a place.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if layout.portable:
        pairs = {name: fold(pair) for name, pair in pairs.items()}
    plain = spell_as_diffusers(pairs, layout)
    said = {"format": "pt", **header}
    adapter = json.dumps(pack_adapters(pairs), sort_keys=True)
    plain |= {f"{KEYS}{name}": value.contiguous().cpu() for name, value in (end or {}).items()}
    safetensors.torch.save_file(plain, folder / DIFFUSERS_FILE, {**said, "lora_adapter_metadata": adapter})
    wanted = {DIFFUSERS_FILE: pairs}
    if KOHYA_FILE in list_written(layout, end):
        kohya, wanted[KOHYA_FILE] = spell_as_kohya(pairs, parts, layout)
        safetensors.torch.save_file(kohya, folder / KOHYA_FILE, said)
    return max(
        measure_difference(read_lora(folder / file, parts, layout), held, end or {}) for file, held in wanted.items()
    )


def spell_as_diffusers(pairs: Lora, layout: LoraLayout) -> dict[str, Tensor]:
    """Returns the tensors of diffusers' file, which has alpha in its header."""
    plain: dict[str, Tensor] = {}
    for name, pair in pairs.items():
        part, module = name.split(".", 1)
        module = layout.in_files(part, module)
        down, up = pair.down.contiguous().cpu(), pair.up.contiguous().cpu()
        plain |= {f"{part}.{module}.lora_A.weight": down, f"{part}.{module}.lora_B.weight": up}
    return plain


def spell_as_kohya(
    pairs: Lora, parts: Mapping[str, nn.Module], layout: LoraLayout
) -> tuple[dict[str, Tensor], Lora]:  # fmt: skip
    """Returns the tensors of kohya's file, and the pairs that it holds."""
    begin = f"{layout.part}."
    own = [name.removeprefix(begin) for name in list_adaptable(parts) if name.startswith(begin)]
    assert layout.kohya_modules is not None
    groups = {
        f"{layout.prefixes[layout.part][0]}_{theirs.replace('.', '_')}": tuple(f"{begin}{module}" for module in ours)
        for theirs, ours in layout.kohya_modules(own).items()
    }
    return spell_groups(pairs, groups, parts, layout)


def spell_groups(
    pairs: Lora, groups: Mapping[str, tuple[str, ...]], parts: Mapping[str, nn.Module], layout: LoraLayout
) -> tuple[dict[str, Tensor], Lora]:  # fmt: skip
    """Returns tensors in kohya's halves, of the network under the names of `groups` and of the text encoders under
    kohya's, and the pairs that they hold."""
    prefixes = {part: layout.prefixes[part][-1 if len(parts) > 2 else 0] for part in parts}
    begin, modules = f"{layout.part}.", list_adaptable(parts)
    blocks = len({name.split(".")[2] for name in modules if name.startswith(f"{begin}transformer_blocks.")})
    fused = {spelt: ours for spelt, ours in groups.items() if len(ours) > 1}
    spelt = {ours[0]: name for name, ours in groups.items() if len(ours) == 1}
    for name in pairs:
        part, module = name.split(".", 1)
        if part != layout.part:
            spelt[name] = f"{prefixes[part]}_{layout.in_files(part, module).replace('.', '_')}"
    found = {spelt[name]: pair for name, pair in pairs.items() if name in spelt}
    held = {name: pair for name, pair in pairs.items() if name in spelt}
    for name, several in fuse(pairs, fused, modules).items():
        held |= several
        found[name] = join_rows(several.values())
    swapped = {
        spelt[name] for name in pairs.keys() & spelt.keys()
        if name.startswith(begin) and layout.is_swapped(name.removeprefix(begin), blocks)
    }  # fmt: skip
    found |= {name: dataclasses.replace(found[name], up=_swap_halves(found[name].up)) for name in swapped}
    tensors: dict[str, Tensor] = {}
    for name, pair in found.items():
        halves = {"lora_down.weight": pair.down, "lora_up.weight": pair.up, "alpha": torch.tensor(pair.alpha)}
        tensors |= {f"{name}.{half}": value.contiguous().cpu().clone() for half, value in halves.items()}
    return tensors, held


def _swap_halves(up: Tensor) -> Tensor:
    """Returns the rows as the first code of some families has them, whose shift stands before the scale."""
    return torch.cat(up.chunk(2)[::-1])


def list_written(layout: LoraLayout, end: End | None) -> tuple[str, ...]:
    """Returns the files that `write_lora` writes."""
    return (DIFFUSERS_FILE,) if end or layout.kohya_modules is None else (DIFFUSERS_FILE, KOHYA_FILE)


def fold(pair: Pair) -> Pair:
    """Returns the same with its scale in the weights, and alpha its rank."""
    return dataclasses.replace(pair, up=pair.up * (pair.alpha / pair.rank), alpha=float(pair.rank))


def measure_difference(file: LoraFile, pairs: Lora, end: End) -> float:
    """Returns the largest difference between what a file holds and some pairs, alpha too; infinity for others."""
    found = file.pairs
    if found.keys() != pairs.keys() or file.end.keys() != end.keys():
        return float("inf")
    halves = [(one, pairs[name]) for name, one in found.items()]
    tensors = [(a, b.cpu()) for one, two in halves for a, b in ((one.down, two.down), (one.up, two.up))]
    tensors += [(value, end[name].cpu()) for name, value in file.end.items()]
    return max(*(float((a - b).abs().max()) for a, b in tensors), *(abs(a.alpha - b.alpha) for a, b in halves))


def pack_adapters(pairs: Lora) -> dict[str, Any]:
    """Returns peft's configuration of each part's adapter, as diffusers packs it."""
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
