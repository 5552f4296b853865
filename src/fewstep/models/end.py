"""What tells a network where its answers shall land: a second embedding of time, which a LoRA may carry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.parallel.sharding import gather_tensor

KEYS = "fewstep_lora_end."
"""How the keys of an end's embedding begin in a file. diffusers looks for `lora` in every key, and takes those of its
networks' names alone."""
_LAST = "linear_2."
End = dict[str, Tensor]
"""Tensors of an end's embedding by their names in it; empty where a LoRA has none."""


class EndEmbedding(nn.Module):
    """A time MLP for the end e, in a network that was built without one. It adds at the scale of its adapters: 0 is the
    network as it was."""

    def __init__(self, first: Any, second: Any) -> None:
        """Begins as a copy of two layers that embed a network's time, so that e is read as t is, and of no effect."""
        super().__init__()
        self.linear_1, self.linear_2 = _copy(first), _copy(second)
        for value in self.linear_2.parameters():
            nn.init.zeros_(value)
        self.scale = 1.0
        self.adapter = ""
        """Name of the adapters that it hangs beside, where they have scales of their own."""

    def forward(self, features: Tensor) -> Tensor:
        """Embeds features `[b, width]` of the end."""
        if not self.scale:
            return features.new_zeros(len(features), 1)
        hidden = functional.silu(self.linear_1(features.to(self.linear_1.weight.dtype)))
        answer: Tensor = self.scale * self.linear_2(hidden)
        return answer

    @torch.no_grad()
    def merge(self) -> None:
        """Makes its scale part of its weights."""
        for value in self.linear_2.parameters():
            value.mul_(self.scale)
        self.scale = 1.0


@torch.no_grad()
def _copy(layer: Any) -> nn.Linear:
    """Copies a linear layer without what hangs on it."""
    weight = layer.weight
    has_bias = layer.bias is not None
    copy = nn.Linear(layer.in_features, layer.out_features, has_bias, device=weight.device, dtype=weight.dtype)
    copy.weight.copy_(gather_tensor(weight))
    if has_bias:
        copy.bias.copy_(gather_tensor(layer.bias))
    return copy


def find_end(network: nn.Module) -> EndEmbedding | None:
    """Returns what embeds the end beside adapters in a network, if anything does."""
    return next((module for module in network.modules() if isinstance(module, EndEmbedding)), None)


def pick_end(named: Mapping[str, Tensor]) -> End:
    """Picks the end's embedding out of what learns with adapters, by its names in the network."""
    return {".".join(name.split(".")[-2:]): value for name, value in named.items() if ".lora_" not in name}


def scaled(end: End, scale: float) -> End:
    """Returns an embedding that adds so many times as much."""
    return {name: scale * value if name.startswith(_LAST) else value for name, value in end.items()}
