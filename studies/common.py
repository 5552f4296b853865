"""What the studies share: students trained once, scored along the way, and their rows published."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewstep.evaluate.report import markdown_table
from fewstep.evaluate.roster import scenes_roster
from fewstep.evaluate.scoring import Row
from fewstep.recipes import named
from fewstep.recipes.distill import Distill, distill

RUNS = Path("runs/studies")
OUT = Path("docs/studies")
SHOWN = ("steps", "guidance_scale", "prompt_accuracy", "fd", "diversity")


def configured(name: str, recipe: str = "scenes", **changes: Any) -> Distill:
    """The recipe with these changes, in a folder of that name."""
    return dataclasses.replace(named.find_recipe(recipe), out=RUNS / name, sample_every=0, **changes)


def trained(config: Distill) -> Path:
    """Its model's folder; trained now, unless it stands or from where it stopped."""
    print(f"— {config.out.name}", flush=True)
    distill(config)
    return config.out / "model"


def rows_along(config: Distill, labels: Mapping[str, Any]) -> list[Row]:
    """The evaluations along that run, each behind its labels and the number of updates."""
    rows = [json.loads(line) for line in (config.out / "evaluations.jsonl").open()]
    return [{**labels, "updates": row["step"], **{name: row[name] for name in SHOWN}} for row in rows]


def publish(name: str, n: int, rows: Sequence[Row], **protocol: Any) -> None:
    """Writes the rows of a study and prints their table."""
    OUT.mkdir(parents=True, exist_ok=True)
    held = {"protocol": {"n": n, "prompts_sha256": scenes_roster(n).sha256, **protocol}, "rows": list(rows)}
    (OUT / f"{name}.json").write_text(json.dumps(held, indent=2) + "\n")
    print("\n".join(markdown_table(rows)), flush=True)
