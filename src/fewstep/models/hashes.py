"""Hashes of weights, by which a file says what it was made for."""

from __future__ import annotations

import hashlib
import importlib

import torch
from torch import Tensor, nn


def weights_sha256(network: nn.Module) -> str:
    """Hashes a network's weights, whatever adapters hang on it. Of one that is spread all processes call it."""
    if any(hasattr(value, "full_tensor") for value in network.parameters()):
        # imported only where a run spreads its network
        spread: str = importlib.import_module("fewstep.models.spreading").hash_spread(network)
        return spread
    total = hashlib.sha256()
    for name, value in list_weights(network):
        update_hash(total, name, value)
    return total.hexdigest()


def list_weights(network: nn.Module) -> list[tuple[str, Tensor]]:
    """Returns the tensors that are hashed by their names there, in their order, which no adapters change."""
    named = ((name, value) for name, value in sorted(network.state_dict().items()) if ".lora_" not in name)
    return [(name.replace(".base_layer", ""), value) for name, value in named]


def update_hash(total: hashlib._Hash, name: str, value: Tensor) -> None:
    """Adds a tensor to a hash."""
    total.update(name.encode())
    total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def have_same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Says whether two networks hold the same numbers under the same names."""
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(
        value.dtype == theirs[name].dtype and torch.equal(value, theirs[name]) for name, value in mine.items()
    )
