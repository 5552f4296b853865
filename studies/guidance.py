"""Guidance ω at 1, 2, 4 and 8 steps: fidelity against obedience, of a student guided everywhere and of the recipe's.

    python studies/guidance.py        # 40 minutes on one core; goes on where it stopped

Figures: docs/studies/guidance.json, docs/results.md; at ω = 4 in 4 steps 96.9 %, FD 13.0, and 97.8 %, FD 20.9.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import tyro

from common import RUNS, SHOWN, Table, configured, trained
from fewstep import assets
from fewstep.evaluate.cell import TEACHER_STEPS, Cell, painter_of
from fewstep.evaluate.roster import make_scenes_roster
from fewstep.evaluate.scenes_bench import make_scenes_bench
from fewstep.evaluate.scoring import score
from fewstep.models.loading import load_latent_model
from fewstep.models.pipeline_loading import load_pipeline


@dataclass(frozen=True, kw_only=True)
class Study:
    n: int = 1000
    """Fresh prompts."""
    omegas: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    """In the papers' convention."""
    steps: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of steps."""


def main(study: Study) -> None:
    bench = make_scenes_bench(make_scenes_roster(study.n, repeated=16))
    teacher = load_latent_model(assets.scenes_teacher(), torch.device("cpu"))
    students = {
        "LCM": load_pipeline(trained(configured("recipe")), "cpu"),
        "LCM, teacher guided at every t": load_pipeline(trained(configured("guided-everywhere", guided_from=0)), "cpu"),
    }
    cells = [("teacher", Cell("teacher", TEACHER_STEPS, "trailing", omega + 1)) for omega in study.omegas]
    cells += [
        (name, Cell("lcm", steps, "lcm", omega + 1))
        for name in students for omega in study.omegas for steps in study.steps
    ]  # fmt: skip
    table = Table("guidance", study.n)
    for name, cell in cells:
        painter = painter_of(cell, teacher, students.get(name))
        row, _ = score(bench, cell, painter, name, folder=RUNS / "guidance" / name.replace(", ", "-"))
        table.publish([{"model": name, "omega": cell.guidance_scale - 1, **{column: row[column] for column in SHOWN}}])


if __name__ == "__main__":
    main(tyro.cli(Study))
