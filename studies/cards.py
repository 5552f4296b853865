"""For each recipe of a released model: the fewest and smallest cards on which an update fits, and the command.

    python studies/cards.py        # an hour on one core: networks are counted, none is built

Figures: docs/cards.json, docs/scale.md.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from fewstep.commands import plan
from fewstep.evaluate.report import markdown_table
from fewstep.files import write_whole
from fewstep.measure.memory import GIB
from fewstep.recipes import named

CARDS = ((1, 16), (1, 24), (1, 48), (1, 80), (2, 80), (4, 80), (8, 80), (8, 141))
"""Numbers of cards and the GB that each is sold with, in the order in which they are tried."""
FREE = 0.93
"""GiB that a program gets of each GB."""


@dataclass(frozen=True, kw_only=True)
class Study:
    recipes: tuple[str, ...] = tuple(name for name in named.list_recipes("distill") if name in named.MEMORY_GIB)
    """Recipes to count; what is in the file already is not counted again."""
    out: Path = Path("docs/cards.json")
    """File that is written."""


def main(study: Study) -> None:
    rows: dict[str, dict[str, Any]] = {row["recipe"]: row for row in read_rows(study.out)}
    for recipe in study.recipes:
        if recipe not in rows:
            rows[recipe] = find_cards(recipe)
            with write_whole(study.out) as draft:
                draft.write_text(json.dumps(list(rows.values()), indent=1) + "\n")
    print("\n".join(markdown_table([show(row) for row in rows.values()])))


def read_rows(file: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []
    return rows


def find_cards(recipe: str) -> dict[str, Any]:
    """Returns the first cards that hold an update, with its memory and the command."""
    settings = named.find_recipe(recipe)
    for gpus, size in CARDS:
        share = -(-settings.batch_size // gpus)  # the batch is rounded up to what divides among the cards
        config = plan.Plan(recipe=recipe, gpus=gpus, gpu_memory=FREE * size, batch_size=share * gpus)
        found = [(each, each.most(FREE * size * GIB, share)) for each in plan.list_plans(config, settings)]
        if best := plan.choose_settings(config, settings, found):
            return {
                "recipe": recipe, "cards": gpus, "GB of each": size,
                "needed, GiB": round(best[0].bytes(best[1]) / GIB, 1),
                "command": plan.advise(config, settings, found).removeprefix("best: "),
            }  # fmt: skip
    return {"recipe": recipe, "cards": 0, "GB of each": 0, "needed, GiB": 0, "command": ""}


def show(row: dict[str, Any]) -> dict[str, Any]:
    """Returns a row of the table in docs/scale.md."""
    cards = f"{row['cards']} × {row['GB of each']:g}" if row["cards"] else "more than 8 × 141"
    options = row["command"].partition(" --data PICTURES ")[2] or "none"
    return {
        "recipe": f"`{row['recipe']}`", "cards × GB": cards, "needed on each, GiB": row["needed, GiB"],
        "with": f"`{options}`",
    }  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Study))
