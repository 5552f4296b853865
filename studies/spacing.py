"""Which spacing of the steps is best for the few-step baselines on the bundled teacher.

    python studies/spacing.py        # about four minutes on two cores

Figures: none published yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
import tyro

from fewstep import assets
from fewstep.diffusion.sampling import Spacing
from fewstep.evaluate.reader import load_reader
from fewstep.evaluate.scenes_scores import ScenesScores, fresh_prompts
from fewstep.models.latent_model import load_latent_model


@dataclass(frozen=True, kw_only=True)
class Study:
    n: int = 256
    """Fresh prompts."""
    guidance_scale: float = 5.0
    """diffusers' convention."""
    steps: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of steps."""


def main(study: Study) -> None:
    teacher = load_latent_model(assets.scenes_teacher(), torch.device("cpu"))
    prompts = fresh_prompts(study.n, 0)
    scores = ScenesScores(load_reader(assets.scenes_reader()), teacher, prompts, omega=study.guidance_scale - 1, seed=0)
    print("sampler steps spacing accuracy fd")
    for steps in study.steps:
        for spacing in get_args(Spacing):
            for scored in (scores.ddim_row(steps, spacing), scores.dpm_row(steps, spacing)):
                row = scored.row
                print(row["sampler"], steps, spacing, f"{row['prompt_accuracy']:.3f} {row['fd']:.1f}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Study))
