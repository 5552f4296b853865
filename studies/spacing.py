"""Which spacing of the steps is best for the few-step baselines on the bundled teacher.

    python studies/spacing.py        # two minutes on two cores
    python studies/spacing.py --guidance-scale 2 --student runs/demo/model --out docs/demo/spacing-guidance-2.json

Figures: docs/demo/spacing.json and spacing-guidance-2.json, printed in docs/results.md. With one step,
leading and linspace stand at t = 1 and t = 0 and do not paint at all.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
import tyro

from fewstep import assets
from fewstep.diffusion.sampling import Spacing
from fewstep.evaluate.baselines import SamplerName
from fewstep.evaluate.cell import Cell, painter_of
from fewstep.evaluate.roster import scenes_roster
from fewstep.evaluate.scenes_bench import scenes_bench
from fewstep.evaluate.scoring import score
from fewstep.models.latent_model import load_latent_model
from fewstep.models.pipeline import load_pipeline


@dataclass(frozen=True, kw_only=True)
class Study:
    n: int = 256
    """Fresh prompts."""
    guidance_scale: float = 5.0
    """diffusers' convention."""
    samplers: tuple[SamplerName, ...] = ("ddim", "dpm++")
    """Which baselines."""
    steps: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of steps."""
    student: Path | None = None
    """A distilled model to score at the same guidance."""
    out: Path = Path("docs/demo/spacing.json")
    """File for the rows."""


def main(study: Study) -> None:
    teacher = load_latent_model(assets.scenes_teacher(), torch.device("cpu"))
    bench = scenes_bench(scenes_roster(study.n))
    student = load_pipeline(study.student, "cpu") if study.student else None
    rows = []
    for steps in study.steps:
        cells = [
            Cell(sampler, steps, spacing, study.guidance_scale)
            for spacing in get_args(Spacing)
            for sampler in study.samplers
        ]
        cells += [Cell("lcm", steps, "lcm", study.guidance_scale)] if student else []
        names = ("sampler", "steps", "spacing", "guidance_scale", "prompt_accuracy", "fd")
        for cell in cells:
            row, _ = score(bench, cell, painter_of(cell, teacher, student), "")
            rows.append({name: row[name] for name in names})
            print(*rows[-1].values(), flush=True)
    protocol = {"n": study.n, "prompts_sha256": bench.roster.sha256}
    study.out.write_text(json.dumps({"protocol": protocol, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Study))
