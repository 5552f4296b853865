"""What stands in a file's header, or beside the file, of the scale of its tensors: peft's configurations."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import LoraConfig

from fewstep.documents import load_bytes, parse_json
from fewstep.errors import UserError
from fewstep.models.model_files import find_file

DIFFUSERS_ENTRY = "lora_adapter_metadata"
"""Where diffusers' files hold the configuration of each part's adapter."""
PEFT_FILE = "adapter_config.json"
"""Where peft holds it, beside the weights."""
_INERT = {
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "target_modules", "exclude_modules", "lora_dropout", "fan_in_fan_out", "layers_to_transform", "layers_pattern",
    "megatron_config", "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    "runtime_config", "qalora_group_size", "ensure_weight_tying", "use_dora",
}  # fmt: skip
"""Entries that do not change what the tensors mean; `use_dora` is seen by the tensors."""
_READ = {"peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "init_lora_weights"}
_DEFAULTS = {
    each.name: each.default if each.default_factory is dataclasses.MISSING else each.default_factory()
    for each in dataclasses.fields(LoraConfig)
}
_MODULE = re.compile(r"\^?[\w.-]+")
_Pattern = Mapping[str, tuple[int, float]]
"""Holds its place in the file and the number, by a module's name, with ^ before it where that is the whole name."""
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class Adapter:
    """peft's configuration of one part's adapter, as far as it says what the tensors mean."""

    rank: int
    alpha: float
    rank_pattern: _Pattern = field(default_factory=dict)
    alpha_pattern: _Pattern = field(default_factory=dict)
    rank_stabilised: bool = False
    """Whether the scale is alpha/√rank (arXiv 2312.03732)."""
    uses_dora: bool = False

    def find_alpha(self, names: Sequence[str], rank: int) -> float:
        """Returns alpha so that alpha/rank is the scale of a module, which has these names."""
        alpha = float(_match(self.alpha_pattern, names, self.alpha))
        return alpha * math.sqrt(rank) if self.rank_stabilised else alpha

    def find_rank(self, names: Sequence[str]) -> float:
        """Returns the rank that it says a module has, which has these names."""
        return _match(self.rank_pattern, names, self.rank)


def _match(pattern: _Pattern, names: Sequence[str], default: float) -> float:
    """Finds the first entry that peft would take for a module: by its name, or the last parts of it."""
    keys = (key for name in names for key in (f"^{name}", *_list_ends(name)))
    return min((pattern[key] for key in keys if key in pattern), default=(0, default))[1]


def _list_ends(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[place:]) for place in range(len(parts)))


def _read_pattern(entries: Mapping[str, Any], name: str, source: str) -> _Pattern:
    """Reads the numbers of modules, each called by its name or by the end of it, as tools write them.

    To peft these are regular expressions, which could keep a reader busy for days: UserError names one that says more
    than a name.
    """
    found: dict[str, tuple[int, float]] = {}
    for place, (key, value) in enumerate((entries.get(name) or {}).items()):
        plain = key.removesuffix("$").replace("\\.", ".")
        if not _MODULE.fullmatch(plain):
            raise UserError(
                f"{source} with {name} {key!r:.60}, which is a pattern and no name of a module; convert it to a plain "
                "LoRA, or write the names of the modules in its place"
            )
        found.setdefault(plain, (place, value))
    return found


def read_adapters(path: Path, header: Mapping[str, str], *, parts: list[str], is_peft: bool) -> dict[str, Adapter]:
    """Reads the configurations that the scale of a file's tensors follows, by part, the network's first in `parts`.

    They stand in the header, as diffusers writes it, or of a file in peft's spelling beside it. Raises UserError for
    what cannot be followed.
    """
    text, source = header.get(DIFFUSERS_ENTRY), f"{path} has {DIFFUSERS_ENTRY}"
    beside = path.parent / PEFT_FILE
    if text is None and is_peft and os.path.lexists(beside):
        text, source = _read_text(beside), f"{beside} is a file"
    if text is None:
        return {}
    try:
        said = parse_json(text)
    except ValueError as error:
        raise UserError(f"{source} that is no JSON; the scale of the LoRA stands there, so fix or remove it") from error
    if not isinstance(said, dict):
        raise UserError(f"{source} that is no JSON object; the scale of the LoRA stands there, so fix or remove it")
    own = {part: {k.split(".", 1)[1]: v for k, v in said.items() if k.startswith(f"{part}.")} for part in parts}
    if plain := {key: value for key, value in said.items() if "." not in key}:
        own[parts[0]] = {**plain, **own[parts[0]]}
    return {part: _read_adapter(source, entries) for part, entries in own.items() if entries}


_MOST_MODULES = 2**14
"""SDXL's network and text encoders have 2,600 that a LoRA can be on."""
_MOST_TEXT = 2**20
"""Bytes of an adapter's configuration; peft writes a few KiB."""


def _read_text(file: Path) -> str:
    try:
        return load_bytes(find_file(file.parent, file.name), _MOST_TEXT).decode(errors="replace")
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}); the scale of the LoRA stands there") from error


def _read_adapter(source: str, entries: Mapping[str, Any]) -> Adapter:
    for name, value in entries.items():
        if name in _INERT | _READ or not value or value == _DEFAULTS.get(name):
            continue
        raise UserError(f"{source} with {name} {value!r:.60}, which fewstep does not know; convert it to a plain LoRA")
    _check(source, entries)
    return Adapter(
        rank=entries.get("r", _DEFAULTS["r"]),
        alpha=float(entries.get("lora_alpha", _DEFAULTS["lora_alpha"])),
        rank_pattern=_read_pattern(entries, "rank_pattern", source),
        alpha_pattern=_read_pattern(entries, "alpha_pattern", source),
        rank_stabilised=bool(entries.get("use_rslora")),
        uses_dora=bool(entries.get("use_dora")),
    )


def _check(source: str, entries: Mapping[str, Any]) -> None:
    """Raises UserError for entries that are of the wrong kind, or say more than tensors can be scaled by."""
    if (kind := entries.get("peft_type") or "LORA") != "LORA":
        raise UserError(f"{source} of the kind {kind!r:.60}; LoRA is read: convert it to a plain LoRA")
    if str(entries.get("init_lora_weights")).lower().startswith(_CHANGES_BASE):
        raise UserError(
            f"{source} with init_lora_weights {entries['init_lora_weights']!r:.60}, for which the base itself was "
            "changed; convert it to a plain LoRA (peft's path_initial_model_for_weight_conversion)"
        )
    for name in ("r", "lora_alpha"):
        if name in entries and not _is_number(entries[name]):
            raise UserError(f"{source} with {name} {entries[name]!r:.60}; expected a number")
    for name in ("rank_pattern", "alpha_pattern"):
        pattern = entries.get(name) or {}
        if not isinstance(pattern, dict) or not all(map(_is_number, pattern.values())):
            raise UserError(f"{source} with {name} {pattern!r:.60}; expected numbers by modules")
        if len(pattern) > _MOST_MODULES:
            raise UserError(f"{source} with {name} of {len(pattern):,} modules; {_MOST_MODULES:,} is the most")


def _is_number(value: object) -> bool:
    """Says whether a value of JSON, whose whole numbers have no end, is one that a scale can be computed from."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30
