"""θ + Σ λ_i·ΔW_i: several LoRAs as one, or merged into the base (LCM-LoRA, arXiv 2311.05556, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from fewstep.errors import UserError
from fewstep.models.lora.file import list_adaptable
from fewstep.models.lora.pair import Lora, Pair, find_dora


def combine_loras(loras: Sequence[tuple[Lora, float]]) -> Lora:
    """Makes one LoRA whose ΔW is Σ λ_i·alpha_i/rank_i·B_i·A_i, exactly: ranks side by side, never A's or B's added.

    Raises UserError for a DoRA, whose ΔW has no low rank.
    """
    for pairs, _ in loras:
        if name := find_dora(pairs):
            raise UserError(
                f"a DoRA ({name}) cannot be part of one LoRA: merge it into the base instead, with --merged"
            )
    result: Lora = {}
    for name in dict.fromkeys(name for pairs, _ in loras for name in pairs):
        own = [(pairs[name], scale) for pairs, scale in loras if name in pairs]
        down = torch.cat([pair.down for pair, _ in own])
        up = torch.cat([pair.up * (scale * pair.scale) for pair, scale in own], dim=1)
        result[name] = Pair(down, up, alpha=float(len(down)))
    return result


@torch.no_grad()
def merge(parts: Mapping[str, nn.Module], loras: Sequence[tuple[Lora, float]]) -> None:
    """Adds Σ λ_i·ΔW_i to the weights themselves, summed in float64."""
    modules = list_adaptable(parts)
    for name in dict.fromkeys(name for pairs, _ in loras for name in pairs):
        weight = modules[name].weight
        total = weight.double()
        for pairs, scale in loras:
            if name in pairs:
                total = total + scale * pairs[name].delta(weight).to(weight.device)
        weight.copy_(total)
