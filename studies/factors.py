"""One factor at a time from the recipe: target, distance, guidance, learning rate, batch, rank.

    python studies/factors.py        # an hour and a half on one core; goes on where it stopped

Figures: docs/studies/factors.json, docs/results.md; the recipe has 96.0, 97.9, 96.9, 97.1 % at 1, 2, 4, 8 steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tyro

from common import Table, configured
from fewstep.recipes import named

PICTURES = 300 * 32  # that every student of this study sees
FACTORS: dict[str, dict[str, Any]] = {
    "the recipe": {},
    "target: the student itself (no average)": {"ema_decay": 0.0},
    "target: average, μ = 0.9": {"ema_decay": 0.9},
    "target: average, μ = 0.99": {"ema_decay": 0.99},
    "distance: l2": {"distance": "l2"},
    "distance: pseudo-Huber, c = 0.001": {"huber_c": 0.001},
    "distance: pseudo-Huber, c = 0.3": {"huber_c": 0.3},
    "guided at every t": {"guided_from": 0},
    "guidance: 1 to 5, used at 3": {"guidance_range": (1.0, 5.0), "guidance_scale": 3.0},
    "guidance: 5 alone": {"guidance_range": (5.0, 5.0)},
    "guidance: 2 to 15": {"guidance_range": (2.0, 15.0)},
    "learning rate: 2e-4": {"lr": 2e-4},
    "learning rate: 1e-3": {"lr": 1e-3},
    "learning rate: constant": {"lr_decay": "constant"},
    "batch: 16": {"batch_size": 16},
    "batch: 64": {"batch_size": 64},
    "times: any": {"times": "any"},
    "LoRA: rank 8": {"lora_rank": 8},
    "LoRA: rank 64": {"lora_rank": 64},
}


@dataclass(frozen=True, kw_only=True)
class Study:
    n: int = 1000
    """Fresh prompts."""


def main(study: Study) -> None:
    table = Table("factors", study.n, pictures=PICTURES)
    scale = named.scenes().guidance_scale
    # Adapters have one guidance, and a learning rate of their own.
    adapters = {"lr": named.scenes_lora().lr, "guidance_range": (scale, scale)}
    for number, (label, factor) in enumerate(FACTORS.items()):
        changes = {**adapters, **factor} if "lora_rank" in factor else factor
        steps = PICTURES // changes.get("batch_size", named.scenes().batch_size)
        config = configured(f"factor-{number}", steps=steps, eval_every=steps, eval_n=study.n, **changes)
        table.add_along(config, {"changed": label})


if __name__ == "__main__":
    main(tyro.cli(Study))
