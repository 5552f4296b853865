"""Peak memory of one update of every recipe for full-size models, counted on tensors that have shapes and no contents.

    python studies/memory.py        # ten minutes on one core; needs no GPU and little memory

Figures: docs/memory.md; sd15 19.9 GiB, sdxl 56.1, their LoRAs 5.5 and 11.6. `fewstep.measure.memory` says how they are
counted. Not counted: CUDA's own context (about 0.5 GiB), fragmentation, autoencoder and text encoders, and latents
kept on the device (`keep_gib`).
"""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from fewstep.measure.memory import GIB, count_need, measure_activations
from fewstep.measure.shapes import count_autoencoder
from fewstep.models.families import find_family
from fewstep.models.families.stable_diffusion import SD1, SD2, SDXL
from fewstep.models.family import Family
from fewstep.recipes import named
from fewstep.recipes.distill import Distill

SHAPES = {
    "sd15": (SD1, 64),
    "sd21-base": (SD2, 64),
    "sd21": (SD2, 96),
    "sdxl": (SDXL, 128),
    "sd35": (find_family("sd3"), 128),
    "flux": (find_family("flux"), 128),
    "zimage": (find_family("zimage"), 128),
    "qwen": (find_family("qwen"), 128),
    "klein": (find_family("klein"), 64),
    "sana": (find_family("sana"), 32),
    "pixart": (find_family("pixart"), 128),
}
"""Family and side of the latents."""


@dataclass(frozen=True, kw_only=True)
class Study:
    out: Path = Path("docs/memory.json")
    """Where the figures go."""
    recipes: tuple[str, ...] = tuple(SHAPES)
    """Those to count anew, each with its -lora; of the others the figures stay."""


def main(study: Study) -> None:
    held = json.loads(study.out.read_text()) if study.out.exists() else []
    rows: list[dict[str, Any]] = []
    for name, (family, side) in SHAPES.items():
        if name not in study.recipes:
            rows += [row for row in held if row["recipe"].removesuffix("-lora") == name]
            continue
        for recipe in (name, f"{name}-lora"):
            for config in variants(named.find_recipe(recipe)):
                key = {"recipe": recipe, "part": part_of(config), "checkpointing": config.gradient_checkpointing}
                begun = time.perf_counter()
                rows.append({**key, **peak(config, family, side)})
                print(rows[-1], f"{time.perf_counter() - begun:.0f} s", flush=True)
    study.out.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))
    for rank in (0, 64):  # what tests/slow measures of a real process
        config = Distill(batch_size=1, ema_decay=0.0, lora_rank=rank, guidance_range=(8.5, 8.5), guidance_scale=8.5)
        print(f"64 pixels in fp32, rank {rank}: {peak(config, SD1, 8, in_bf16=False)}")
    for part in ("encode", "decode"):
        counted = count_autoencoder(SDXL, part, measure_activations)
        print(f"activations of the autoencoder, {part}: {counted / GIB:.1f} GiB")


def part_of(config: Distill) -> int:
    """Pictures that go through the networks together."""
    return config.batch_size // config.accumulation


def variants(recipe: Distill) -> list[Distill]:
    """The recipe, and one picture at a time, with checkpointing and without."""
    alone = dataclasses.replace(recipe, accumulation=recipe.batch_size)
    return [
        dataclasses.replace(config, gradient_checkpointing=checkpointing)
        for config in ((recipe,) if recipe == alone else (recipe, alone))
        for checkpointing in (True, False)
    ]


def peak(config: Distill, family: Family, side: int, *, in_bf16: bool = True) -> dict[str, float]:
    """GiB of one update in the midst of a run, whole and of weights alone."""
    found = count_need(config, family, side, in_bf16=in_bf16)
    return {"gib": round(found.peak / GIB, 2), "weights_gib": round(found.weights / GIB, 2)}


def table(rows: list[dict[str, Any]]) -> str:
    """In Markdown, as docs/memory.md has it."""
    found = {(row["recipe"], row["part"], row["checkpointing"]): row["gib"] for row in rows}
    lines = [
        "| recipe | pictures together | GiB | without checkpointing | one at a time | so, without checkpointing |",
        "|---|---|---|---|---|---|",
    ]
    for recipe in (name + kind for name in SHAPES for kind in ("", "-lora")):
        part = part_of(named.find_recipe(recipe))
        cells = [f"{found[recipe, p, c]:.1f}" for p in (part, 1) for c in (True, False)]
        lines.append(f"| `{recipe}` | {part} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(Study))
