"""How quality at 1, 2, 4 and 8 steps goes along a long training: guided everywhere, and as the recipe has it.

    python studies/along.py        # an hour on two cores; goes on where it stopped

Figures: docs/studies/along.json, docs/results.md. The recipe's half is the run of studies/scenes.sh.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import tyro

from common import configured, publish, rows_along, trained


@dataclass(frozen=True, kw_only=True)
class Study:
    n: int = 512
    """Fresh prompts."""
    updates: int = 1200
    """Of each."""
    every: int = 200
    """Updates between two scores."""


def main(study: Study) -> None:
    long = configured(
        "long", steps=study.updates, pictures=38400, eval_every=study.every, eval_n=study.n
    )  # fmt: skip
    runs = {
        "the recipe": dataclasses.replace(long, out=Path("runs/scenes-long")),
        "guided everywhere, 2 to 9, used at 5": dataclasses.replace(
            long, out=long.out.parent / "long-guided-everywhere", guided_from=0, guidance_range=(2.0, 9.0),
            guidance_scale=5.0,
        ),
    }  # fmt: skip
    rows = []
    for label, config in runs.items():
        trained(config)
        rows += rows_along(config, {"trained": label})
    publish("along", study.n, rows)


if __name__ == "__main__":
    main(tyro.cli(Study))
