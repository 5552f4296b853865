"""What families of transformers ask of configurations, and what they read from them alike."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewstep.errors import UserError
from fewstep.models.card import MOST_SIDE
from fewstep.models.model_places import drop_commit

_MOST_LATENTS = 2**12
PATCH = 2
"""Latents a token of the transformer, in each direction."""


def find_released_name(source: str) -> str:
    """Returns what a model is called, in small letters, by where it lies: a file, a folder, a repository of the Hub, a
    copy of one in the Hub's cache, or the transformer's folder in any of them."""
    place = Path(os.path.abspath(source))  # links are kept: in a cache they lead to files that are called by a hash
    place = place.parent if place.name == "transformer" else place
    if place.parent.name == "snapshots":  # of a copy that may have been renamed
        place = place.parent.parent
    return drop_commit(place).name.lower()


def read_whole_side(value: object, blocks: object, source: str) -> int:
    """Returns a side in pixels from that in latents and an autoencoder's blocks. Raises UserError for others."""
    if type(value) is not int or not 0 < value < _MOST_LATENTS:
        raise UserError(f"{source} has sample_size {value!r:.60}; expected a number below {_MOST_LATENTS:,}")
    if not isinstance(blocks, list | tuple) or not 0 < len(blocks) <= 16:
        raise UserError(f"{source} has block_out_channels {blocks!r:.60}; expected a list")
    return value << (len(blocks) - 1)


def read_side_of_codec(codec_config: Mapping[str, Any]) -> int:
    """Returns the side in pixels of a model's pictures, where its autoencoder alone says it. Raises UserError."""
    factor = read_whole_side(1, codec_config.get("block_out_channels"), "the model's vae")
    side = codec_config.get("sample_size")
    if type(side) is not int or not 0 < side <= MOST_SIDE or side % (PATCH * factor):
        raise UserError(
            f"the model's vae has sample_size {side!r:.60}; expected a multiple of {PATCH * factor} up to "
            f"{MOST_SIDE:,}, a side in pixels"
        )
    return side


def check_axes(source: str, name: str, axes: object, width: int, count: int = 3) -> None:
    """Raises UserError where a rotary embedding of so many axes does not fill heads `width` wide."""
    held = list(axes) if isinstance(axes, list | tuple) else []
    whole = len(held) == count and all(type(each) is int and each > 0 and each % 2 == 0 for each in held)
    if not whole or sum(held) != width:
        raise UserError(f"{source} has {name} {axes!r:.60}; expected {count} even numbers, {width} in sum")


def check_channels(source: str, given: int, returned: int, latents: int) -> None:
    """Raises UserError where a transformer is for other latents than an autoencoder's."""
    if not given == returned == latents:
        raise UserError(
            f"{source} has a transformer of {given} input and {returned} output channels and latents of {latents}: "
            "inpainting, editing and control models are not read; give a text-to-image model"
        )
