"""How quality at 1, 2, 4 and 8 steps goes along a long training, by how the teacher is guided.

    python studies/along.py        # 25 minutes on one core; goes on where it stopped

Figures: docs/studies/along.json, docs/results.md; after 800 updates 61.9, 90.4 and 95.3 % at 8 steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tyro

from common import Table, configured

GUIDED: dict[str, dict[str, Any]] = {
    "2 to 9 at every t, used at 5": {"guided_from": 0},
    "2 to 9 at t ≥ 500, used at 5": {"guided_from": 500},
    "1 to 2 at every t, used at 1.5": {"guided_from": 0, "guidance_range": (1.0, 2.0), "guidance_scale": 1.5},
}


@dataclass(frozen=True, kw_only=True)
class Study:
    n: int = 512
    """Fresh prompts."""
    updates: int = 800
    """Of each."""
    every: int = 200
    """Updates between two scores."""


def main(study: Study) -> None:
    table = Table("along", study.n)
    for number, (label, changes) in enumerate(GUIDED.items()):
        config = configured(
            f"along-{number}", steps=study.updates, pictures=32 * study.updates, eval_every=study.every,
            eval_n=study.n, **changes,
        )  # fmt: skip
        table.add_along(config, {"teacher guided": label})


if __name__ == "__main__":
    main(tyro.cli(Study))
