"""Whether a config.json describes a network about as large as the weights beside it, before it is made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from fewstep.documents import read_json
from fewstep.errors import UserError
from fewstep.files import read_safetensors_header

MOST_LAYERS = 4096
"""Bounds a network whose weights are not at hand."""
_SLACK = 16
"""So many times as large as its weights a network may be described: it is made on no device, and compared then."""
_FEW_LAYERS = 1000
_SAID_AGAIN = ("layer_types", "max_window_layers")
"""What says of each layer of a language model, or of some, what it is."""
_MOST_LABELS = 2**16
_SMALL = 2**22
"""Layers and parameters that cost nothing."""


def check_sizes(kind: Any, staged: Path, folder: Path) -> None:
    """Raises UserError, which names `folder`, where to make a network, of a class of diffusers or transformers, could
    take all memory or days before its tensors are compared with those that are `staged` for it."""
    headers = [read_safetensors_header(file) for file in staged.glob("*.safetensors")]
    tensors, held = sum(len(header.shapes) for header in headers), sum(header.parameters for header in headers)
    config = read_json(staged / "config.json", f"{folder} has no configuration")
    _check_numbers(config, folder, max(held, _SMALL))
    check_layers(config, folder, tensors + _FEW_LAYERS)
    if not issubclass(kind, PreTrainedModel):
        return  # diffusers itself makes it on no device, and compares shapes
    with torch.device("meta"):
        described = sum(weight.numel() for weight in kind(kind.config_class.from_dict(config)).parameters())
    if described > _SLACK * held + _SMALL:
        raise UserError(
            f"{folder}/config.json describes a network of {described:,} parameters, and its weights hold {held:,}; "
            "fetch or export the model again"
        )


def _check_numbers(config: Mapping[str, Any], folder: Path, most: int) -> None:
    """Raises UserError for a number that is larger than `most`, as no width or count of a network of that size is, and
    for more labels than anything is sorted into."""
    for name, value in config.items():
        limit = _MOST_LABELS if name == "num_labels" else most
        if _largest(value) > limit:
            raise UserError(
                f"{folder}/config.json has {name} {_largest(value):,}, where at most {limit:,} can be meant; fetch or "
                "export the model again"
            )


def check_layers(config: Mapping[str, Any], folder: Path, most: int = MOST_LAYERS) -> None:
    """Raises UserError where a configuration counts more layers than that."""
    layers = _count_layers(config)
    if layers > most:
        raise UserError(f"{folder}/config.json describes {layers:,} layers, where at most {most:,} can be meant")


def _count_layers(config: Mapping[str, Any]) -> int:
    config = {name: value for name, value in config.items() if name not in _SAID_AGAIN}
    inner = (_count_layers(value) for value in config.values() if isinstance(value, dict))
    counts = (_largest(value) for name, value in config.items() if "layers" in name or name.endswith("_blocks"))
    blocks = (len(value) for name, value in config.items() if isinstance(value, list) and name != "layers_per_block")
    return max(math.prod(counts) * max(blocks, default=1), *inner, 1)


def _largest(value: object) -> int:
    """Returns the largest number in a setting that counts layers, by blocks or for all of them."""
    if isinstance(value, list):
        return max(map(_largest, value), default=1)
    return value if type(value) is int and value > 1 else 1
