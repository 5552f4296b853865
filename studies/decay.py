"""Why more steps can get worse: multistep consistency sampling with the exact answer in place of a trained one.

    python studies/decay.py        # half an hour on two cores; goes on where it stopped

Figures, with --n 128 (docs/studies/decay-exact.json, docs/results.md): at guidance_scale 5 FD rises from 64 at 1 step
to 145 at 8; guided at t ≥ 850 alone it falls from 48 to 44.

The exact consistency function of the guided teacher is its ODE solved from t to 0, here by DDIM on the sampler's own
grid. Whatever gets worse with more steps under it is no fault of training.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor

from fewstep import assets
from fewstep.diffusion.prediction import Cond, Guided, Prediction
from fewstep.diffusion.sampling import sample_ode
from fewstep.evaluate.cell import Cell, Painter
from fewstep.evaluate.roster import make_scenes_roster
from fewstep.evaluate.scenes_bench import make_scenes_bench
from fewstep.evaluate.scoring import Row, score
from fewstep.method.landing import ConsistencyFunction
from fewstep.method.sampling import sample_consistency
from fewstep.method.times import consistency_times
from fewstep.models.family import LatentModel
from fewstep.models.loading import load_latent_model
from fewstep.models.pipeline import seeded_noise


@dataclass(frozen=True, kw_only=True)
class Study:
    n: int = 256
    """Fresh prompts."""
    grid_size: int = 25
    """Steps of the ODE's solver from T to 0; answers stand on its times."""
    steps: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of answers."""
    guidance: tuple[tuple[float, float, int], ...] = (
        (1.5, 1.5, 0), (3.0, 3.0, 0), (5.0, 5.0, 0), (3.0, 1.0, 0), (5.0, 1.0, 0), (3.0, 3.0, 700), (5.0, 5.0, 700),
        (5.0, 5.0, 850),
    )  # fmt: skip
    """guidance_scale of the first answer, of all later ones, and the time below which the ODE is not guided."""
    work: Path = Path("runs/decay")
    """Folder for painted parts."""
    out: Path = Path("docs/studies/decay-exact.json")
    """File for the rows."""


class ExactAnswer:
    """A network that answers with the end of the guided teacher's ODE."""

    def __init__(self, teacher: LatentModel, grid_size: int, first: float, later: float, guided_from: int) -> None:
        self._teacher, self._skip = teacher, teacher.schedule.num_steps // grid_size
        self._first, self._later, self._guided_from = first, later, guided_from

    def __call__(self, z_t: Tensor, t: Tensor, cond: Cond, _omega: Tensor | None) -> Prediction:
        teacher = self._teacher
        start = int(t[0])
        scale = self._first if start == teacher.schedule.last else self._later
        null = {name: value.expand(len(z_t), *value.shape[1:]) for name, value in teacher.conditioner.null().items()}
        field = Guided(teacher.network, cond, null, torch.full((len(z_t),), scale - 1), self._guided_from)
        z_0 = sample_ode(teacher.schedule, field, z_t, list(range(start, 0, -self._skip)))
        return Prediction(z_0, z_t)


def painter(teacher: LatentModel, study: Study, steps: int, guidance: tuple[float, float, int]) -> Painter:
    network = ExactAnswer(teacher, study.grid_size, *guidance)
    times = consistency_times(teacher.schedule, study.grid_size, steps)

    @torch.no_grad()
    def latents(cond: Cond, seeds: Sequence[int]) -> Tensor:
        draw = seeded_noise(seeds, teacher.codec.shape(teacher.resolution), teacher.device)
        return sample_consistency(ConsistencyFunction(network, cond, None, teacher.schedule), times, draw)

    return Painter(teacher, latents)


def main(study: Study) -> None:
    teacher = load_latent_model(assets.scenes_teacher(), torch.device("cpu"))
    bench = make_scenes_bench(make_scenes_roster(study.n))
    rows: list[Row] = []
    for first, later, guided_from in study.guidance:
        for steps in study.steps:
            if steps == 1 and later != first:
                continue
            cell = Cell("lcm", steps, "lcm", first)
            folder = study.work / f"exact-{study.grid_size}-{study.n}-later-{later:g}-from-{guided_from}"
            row, _ = score(
                bench, cell, painter(teacher, study, steps, (first, later, guided_from)), "exact", folder=folder
            )
            rows.append({**row, "later_guidance_scale": later, "guided_from": guided_from})
            print(first, later, guided_from, steps, f"{row['prompt_accuracy']:.3f} {row['fd']:.1f}", flush=True)
    study.out.parent.mkdir(parents=True, exist_ok=True)
    protocol = {"n": study.n, "prompts_sha256": bench.roster.sha256}
    study.out.write_text(json.dumps({"protocol": protocol, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Study))
