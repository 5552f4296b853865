"""DoRA beside the weights (arXiv 2402.09353), so that it adds to other adapters and follows its scale."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional

from fewstep.models.lora.pair import Pair
from fewstep.models.network import EndEmbedding


class Decomposed:
    """Adds λ·ΔW with ΔW = m/‖W + BA‖ · (W + BA) − W: the adapter beside it holds m/‖W + BA‖ · BA, this one the rest.

    peft's own norms W + λ·BA, and so changes weights at λ = 0; what it adds to it takes for the base of the next one.
    """

    def __init__(self, pair: Pair, weight: Tensor) -> None:
        self._gain = pair.gain(weight).float()

    def low_rank(self, pair: Pair) -> Pair:
        """Returns the pair that the adapter beside it is to hold, at a scale of 1."""
        up, down, gain = pair.up * pair.scale, pair.down, self._gain.to(pair.up.device)
        if gain.shape[0] == len(up) and gain.shape[1] == 1:
            return Pair(down, up * gain, float(pair.rank))
        return Pair(down * gain, up, float(pair.rank))

    def rest(self, weight: Tensor) -> Tensor:
        """Computes (m/‖W + BA‖ − 1) · W."""
        return (self._gain.to(weight.device) - 1).to(weight.dtype) * weight

    def forward(self, layer: Any, *, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:
        """Computes a layer's answer with this adapter, of its answer with others, as peft asks for it."""
        base, down = layer.get_base_layer(), layer.lora_A[active_adapter]
        x = x.to(down.weight.dtype)
        rest = self.rest(base.weight).to(x.dtype)
        is_linear = isinstance(base, nn.Linear)
        added = functional.linear(x, rest) if is_linear else base._conv_forward(x, rest, None)
        added = added + layer.lora_B[active_adapter](down(x))
        answer: Tensor = result + (layer.scaling[active_adapter] * added).to(result.dtype)
        return answer


@torch.no_grad()
def merge_attached(network: nn.Module) -> None:
    """Adds what hangs on a network to the weights themselves, and takes it off."""
    for module in network.modules():
        if isinstance(module, EndEmbedding):
            module.merge()
    layers: list[Any] = [module for module in network.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        if layer.disable_adapters:
            continue
        weight = layer.get_base_layer().weight
        total = torch.zeros_like(weight)
        for name in layer.active_adapters:
            if name in layer.lora_A:
                total += layer.get_delta_weight(name).to(weight.dtype)
                if name in layer.lora_variant:
                    total += layer.scaling[name] * layer.lora_variant[name].rest(weight)
        weight += total
        layer.enable_adapters(enabled=False)
