"""Hashes of weights, by which a file says what it was made for."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def weights_sha256(network: nn.Module) -> str:
    """Hashes a network's weights, whatever adapters hang on it."""
    total = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        if ".lora_" not in name:
            total.update(name.replace(".base_layer", "").encode())
            total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def have_same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Says whether two networks hold the same numbers under the same names."""
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(
        value.dtype == theirs[name].dtype and torch.equal(value, theirs[name]) for name, value in mine.items()
    )
