"""A full LCM and an LCM-LoRA, both against the time that they have trained.

    python studies/lora.py        # ten minutes on two cores; goes on where it stopped

Figures: docs/studies/lora.json, docs/results.md. Seconds are those of updates alone: let nothing else run.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from dataclasses import dataclass

import tyro

from common import Table, configured
from fewstep.evaluate.scoring import Row
from fewstep.recipes import named
from fewstep.recipes.distill import Distill


@dataclass(frozen=True, kw_only=True)
class Study:
    n: int = 1000
    """Fresh prompts."""
    updates: int = 300
    """Of each."""
    every: int = 100
    """Updates between two scores."""


def seconds_until(config: Distill, update: int) -> float:
    """Of updates, at their median rate, which leaves out what evaluations take."""
    rates = [json.loads(line)["images_per_second"] for line in (config.out / "metrics.jsonl").open()]
    return update * config.batch_size / statistics.median(rates)


def main(study: Study) -> None:
    scale = named.scenes_lora().guidance_scale
    table = Table("lora", study.n)
    for label, recipe in (("full", "scenes"), ("LoRA", "scenes-lora")):
        # Both at the one guidance that adapters have.
        config = configured(f"time-{recipe}", recipe, eval_every=study.every, eval_n=study.n)
        config = dataclasses.replace(config, steps=study.updates, guidance_range=(scale, scale), guidance_scale=scale)

        def seconds(row: Row, config: Distill = config) -> int:
            return round(seconds_until(config, row["updates"]))

        table.add_along(config, {"trained": label}, training_seconds=seconds)


if __name__ == "__main__":
    main(tyro.cli(Study))
