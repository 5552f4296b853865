"""Memory that painting one picture needs on a card, for full-size models, counted on tensors without contents.

    python studies/painting_memory.py        # a minute on one core; needs no GPU and little memory

Figures: docs/memory.md; Stable Diffusion XL 9.6 GiB with everything on the card and 5.2 with its parts taking turns.
Not counted: CUDA's own context (about 0.5 GiB) and fragmentation.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fewstep.measure.memory import GIB
from fewstep.measure.shapes import make_fake
from fewstep.measure.stopwatch import LiveBytes
from fewstep.models.families.stable_diffusion import SD1, SD2, SDXL
from fewstep.models.family import Family

SIDES = {"sd1": (SD1, 512), "sd2": (SD2, 768), "sdxl": (SDXL, 1024)}


@dataclass(frozen=True, kw_only=True)
class Study:
    out: Path = Path("docs/painting_memory.json")
    """Where the figures go."""


def main(study: Study) -> None:
    rows = [count(family, side) for family, side in SIDES.values()]
    study.out.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


def count(family: Family, side: int) -> dict[str, float | str | int]:
    """GiB of each part: networks in bf16, the autoencoder in fp32, as its configuration says."""
    latents = side // 8
    network = family.shaped_network(few_step=True).to(torch.bfloat16)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        make_fake([network])
        z, cond = torch.randn(1, family.released_latent_channels, latents, latents), family.shaped_condition(1)
        time, omega = torch.zeros(1, dtype=torch.long), torch.zeros(1)
        sampling = activations([network], lambda: network(z, time, cond, omega))
    with FakeTensorMode(), torch.no_grad():
        autoencoder = family.random_autoencoder()
        decoding = activations([autoencoder], lambda: autoencoder.decode(torch.randn(z.shape)))
        held = sum(value.numel() * 4 for value in autoencoder.parameters())
    unet = sum(value.numel() * 2 for value in network.parameters())
    encoders = (family.encoder_bytes - held) / 2
    whole = unet + encoders + held + max(sampling, decoding)
    apart = max(encoders, unet + sampling, decoding) + held
    found = {
        "network": unet, "encoders": encoders, "autoencoder": held, "sampling": sampling, "decoding": decoding,
        "together": whole, "in_turn": apart,
    }  # fmt: skip
    return {"family": family.title, "side": side, **{name: round(value / GIB, 2) for name, value in found.items()}}


def activations(modules: list[nn.Module], act: Callable[[], object]) -> int:
    """Bytes of what `act` makes beside the weights, at its worst moment."""
    live = LiveBytes.with_weights(modules)
    weights = live.now
    with live:
        act()
    return live.most - weights


def table(rows: list[dict[str, float | str | int]]) -> str:
    """In Markdown, as docs/memory.md has it."""
    heads = ("network", "encoders", "autoencoder", "sampling", "decoding", "together", "in_turn")
    lines = [
        f"| model | pixels | {' | '.join(head.replace('_', ' ') for head in heads)} |",
        "|---|---|" + "---|" * len(heads),
    ]
    lines += [
        f"| {row['family']} | {row['side']} | {' | '.join(f'{row[head]:.1f}' for head in heads)} |" for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(Study))
