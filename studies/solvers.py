"""Solver × skip k: quality along the training, against updates and against network evaluations.

    python studies/solvers.py        # an hour and a half on one core; goes on where it stopped

Figures: docs/studies/solvers.json, docs/results.md; DDIM with k = 20 has 96.1 % at 4 steps and 94.9 % at 1, with k = 1
98.2 and 74.6 %.
"""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from common import Table, configured
from fewstep.diffusion.solvers import SolverName
from fewstep.evaluate.scoring import Row


@dataclass(frozen=True, kw_only=True)
class Study:
    n: int = 1000
    """Fresh prompts."""
    updates: int = 500
    """Of every student."""
    every: int = 125
    """Updates between two scores."""
    solvers: tuple[SolverName, ...] = ("ddim", "dpm-solver-2", "dpm-solver++2s")
    skips: tuple[int, ...] = (1, 20, 50)


def per_picture(solver: SolverName) -> float:
    """Forward passes of a UNet for a training picture: student, target, and the teacher with the prompt and, at the
    half of all t at which the recipe guides, without."""
    return 2 + 1.5 * (1 if solver == "ddim" else 2)


def main(study: Study) -> None:
    table = Table("solvers", study.n)
    for solver in study.solvers:
        for skip in study.skips:
            config = configured(
                f"{solver}-{skip}", solver=solver, skip=skip, steps=study.updates, eval_every=study.every,
                eval_n=study.n, eval_steps=(4,),
            )  # fmt: skip

            def millions(row: Row, each: float = config.batch_size * per_picture(solver)) -> float:
                return round(row["updates"] * each / 1e6, 4)

            labels = {"solver": solver, "skip": skip}
            table.add_along(config, labels, training_evaluations_millions=millions)
            table.add_final(config, labels, (1, 2))


if __name__ == "__main__":
    main(tyro.cli(Study))
