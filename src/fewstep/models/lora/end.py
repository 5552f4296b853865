"""Reads what embeds the end out of a LoRA's file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fewstep.errors import UserError
from fewstep.models.lora.fitting import read_values
from fewstep.models.network import KEYS, End


def read_end(path: Path, tensors: Mapping[str, Tensor], time_layers: Sequence[Any]) -> End:
    """Reads tensors called `fewstep_lora_end.NAME` for a network with these `time_layers`. Raises UserError."""
    if not tensors:
        return {}
    if not time_layers:
        raise UserError(f"{path} tells its base where to land, and this base has no place for that")
    found = {key.removeprefix(KEYS): read_values(path, key, value) for key, value in tensors.items()}
    named = zip(("linear_1", "linear_2"), time_layers, strict=True)
    own = {
        f"{name}.{kind}": value for name, layer in named for kind in ("weight", "bias")
        if (value := getattr(layer, kind)) is not None
    }  # fmt: skip
    if found.keys() != own.keys() or any(found[name].shape != value.shape for name, value in own.items()):
        held = ", ".join(f"{KEYS}{name} {tuple(value.shape)}" for name, value in found.items())
        wanted = ", ".join(f"{name} {tuple(value.shape)}" for name, value in own.items())
        raise UserError(f"{path} does not fit this base: it holds {held:.200}; needed: {wanted}")
    return found
