"""What the studies share: students trained once, scored along the way, and their rows published."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewstep.commands.distill import distill
from fewstep.evaluate.bench import Bench
from fewstep.evaluate.cell import Cell, Row, painter_of
from fewstep.evaluate.report import markdown_table
from fewstep.evaluate.roster import make_scenes_roster
from fewstep.evaluate.scenes_bench import make_scenes_bench
from fewstep.evaluate.scoring import score
from fewstep.models.pipeline_loading import load_pipeline
from fewstep.recipes import named
from fewstep.recipes.distill import Distill
from fewstep.train.config import fingerprint

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


class Table:
    """A study's published rows. A run of the same configuration that they hold already is not made again, though its
    folder be gone."""

    def __init__(self, name: str, n: int, *, keep: bool = False, **protocol: Any) -> None:
        """With `keep`, rows of the same protocol stay that are not made anew."""
        self._keep = keep
        self._file = OUT / f"{name}.json"
        self._protocol = {"n": n, "prompts_sha256": make_scenes_roster(n).sha256, **protocol}
        held = json.loads(self._file.read_text()) if self._file.exists() else {}
        self._before = held if held.get("protocol") == self._protocol else {}
        self.rows: list[Row] = []
        self._runs: dict[str, str] = {}
        self._bench: Bench | None = None

    def add_along(self, config: Distill, labels: Mapping[str, Any], **more: Any) -> None:
        """The evaluations along that run, each behind its labels and the number of updates; `more` are columns from
        a function of the row."""
        run, now = config.out.name, fingerprint(config)
        if self._before.get("runs", {}).get(run) == now:
            rows = [row for row in self._before["rows"] if labels.items() <= row.items() and set(more) <= set(row)]
        else:
            trained(config)
            scores = [json.loads(line) for line in (config.out / "evaluations.jsonl").open()]
            rows = [
                {**labels, "updates": row["step"], **{name: row[name] for name in SHOWN if name in row}}
                for row in scores
            ]
            rows = [row | {name: column(row) for name, column in more.items()} for row in rows]
        self._runs[run] = now
        self.publish(rows)

    def add_final(self, config: Distill, labels: Mapping[str, Any], steps: Sequence[int]) -> None:
        """The exported model of that run at other numbers of steps, scored as those along it are."""
        final = {**labels, "updates": config.steps}
        rows = [row for row in self._before.get("rows", []) if final.items() <= row.items() and row["steps"] in steps]
        if len(rows) < len(steps) or self._before["runs"].get(config.out.name) != fingerprint(config):
            pipeline = load_pipeline(trained(config), "cpu")
            self._bench = self._bench or make_scenes_bench(make_scenes_roster(self._protocol["n"]))
            cells = [Cell("lcm", each, "lcm", config.guidance_scale) for each in steps]
            scores = [
                score(self._bench, cell, painter_of(cell, None, pipeline), pipeline.name, batch_size=64)[0]
                for cell in cells
            ]  # fmt: skip
            rows = [final | {name: row[name] for name in SHOWN if name in row} for row in scores]
        self.publish(rows)

    def publish(self, rows: Sequence[Row]) -> None:
        """Adds rows, writes all so far, and prints them."""
        self.rows += rows
        self._file.parent.mkdir(parents=True, exist_ok=True)
        known = [_name(row) for row in self.rows]
        kept = [row for row in self._before.get("rows", []) if self._keep and _name(row) not in known]
        held = {"protocol": self._protocol, "runs": self._runs, "rows": kept + self.rows}
        self._file.write_text(json.dumps(held, indent=2) + "\n")
        print("\n".join(markdown_table(rows)), flush=True)


def _name(row: Row) -> Row:
    """Returns what says of which model, and at which setting, a row's figures are."""
    return {name: value for name, value in row.items() if name not in (*SHOWN[2:], "to_teacher")}
