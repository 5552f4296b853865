"""How many network evaluations it takes to a fixed quality: quicker recipes against the plain one.

    python studies/quality.py        # a quarter of an hour on one core; goes on where it stopped

Figures: docs/studies/quality.json, docs/speed.md. The plain recipe is the reference script's at this world's learning
rate (its own, 1e-6, would not arrive): guided at every t, pseudo-Huber with c = 0.001, a constant rate. A network
evaluation is one forward pass for one picture; a backward pass counts for two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tyro

from common import Table, configured

PLAIN = {"guided_from": 0, "huber_c": 0.001, "lr_decay": "constant"}
RECIPES: dict[str, dict[str, Any]] = {
    "the plain recipe": {**PLAIN, "steps": 160},
    "the recipe": {"steps": 160},
    "the recipe, k = 50, μ = 0.9": {"steps": 80, "skip": 50, "ema_decay": 0.9},
    "the recipe, a gap that shrinks over half of it": {"steps": 80, "shrink": 0.5},
}


@dataclass(frozen=True, kw_only=True)
class Study:
    n: int = 512
    """Fresh prompts."""
    every: int = 20
    """Updates between two scores."""


def evaluations(guided_from: int, batch_size: int) -> float:
    """Of networks, in an update: student forward and backward, target, and the teacher, twice where it is guided."""
    guided = 1 - guided_from / 1000
    return batch_size * (1 + 2 + 1 + 1 + guided)


def main(study: Study) -> None:
    table = Table("quality", study.n)
    for number, (label, changes) in enumerate(RECIPES.items()):
        config = configured(f"quality-{number}", eval_every=study.every, eval_n=study.n, eval_steps=(1, 4), **changes)
        each = evaluations(config.guided_from, config.batch_size)
        table.add_along(config, {"trained by": label}, network_evaluations=lambda row, each=each: each * row["updates"])


if __name__ == "__main__":
    main(tyro.cli(Study))
