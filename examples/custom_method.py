"""A method of your own: consistency distillation with another distance, on points in a plane, beside LCM's own.

    python examples/custom_method.py                  # a minute; needs no model

A method is a value for each seam of one training step (docs/methods.md). To use a distance in `fewstep distill`, put
it in method/distances.py and name it in the registry there (docs/architecture.md).
"""

from __future__ import annotations

import argparse
import copy

import torch
from torch import Tensor

from fewstep.diffusion.schedule import Tabulated
from fewstep.measure.mixture import CLASSES, MEANS, NULL_COND, STD, Mixture, Student, energy_distance
from fewstep.method.distances import Distance, pseudo_huber
from fewstep.method.landing import ConsistencyFunction
from fewstep.method.paths import TeacherPath, TrainingBatch
from fewstep.method.sampling import sample_consistency
from fewstep.method.step import Method, consistency_losses
from fewstep.method.times import consistency_times

SCHEDULE = Tabulated.from_config({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})
TEACHER, SKIP, SIZE = Mixture(SCHEDULE, MEANS, STD), 20, 256  # four Gaussians, whose ε is known exactly


def log_cosh(x: Tensor, y: Tensor) -> Tensor:
    """The distance of our own `[b]`: quadratic near 0 and linear far off."""
    return torch.log(torch.cosh(x - y)).flatten(1).mean(1)


def train(distance: Distance, updates: int) -> Student:
    """Runs algorithm 1 of LCM by hand; `fewstep distill` does it with checkpoints, precision and processes."""
    method = Method(SCHEDULE, TeacherPath(TEACHER, SCHEDULE, NULL_COND), distance)
    student, draws = Student(SCHEDULE, told_end=False), torch.Generator().manual_seed(0)
    target = copy.deepcopy(student).requires_grad_(False)
    optimiser = torch.optim.AdamW(student.parameters(), lr=2e-3)
    for _ in range(updates):
        weights = CLASSES[torch.randint(2, (SIZE,), generator=draws)]
        t = SCHEDULE.grid(50)[torch.randint(50, (SIZE,), generator=draws)]
        s, e = (t - SKIP).clamp(min=0), torch.zeros_like(t)
        z_0, noise = TEACHER.draw(weights, draws), torch.randn(SIZE, 2, generator=draws)
        batch = TrainingBatch(z_0, {"weights": weights}, t, s, e, noise, omega=torch.zeros(SIZE))
        optimiser.zero_grad()
        consistency_losses(method, student, target, batch).mean().backward()
        optimiser.step()
        torch._foreach_lerp_([*target.parameters()], [*student.parameters()], 0.05)  # the moving average
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=1500)
    given = parser.parse_args()
    weights, draws = CLASSES[torch.arange(2000) % 2], torch.Generator().manual_seed(1)
    real = TEACHER.draw(weights, draws)
    for name, distance in {"log-cosh": log_cosh, "pseudo-Huber": pseudo_huber(0.03)}.items():
        torch.manual_seed(0)
        f = ConsistencyFunction(train(distance, given.updates), {"weights": weights}, torch.zeros(2000), SCHEDULE)
        for steps in (1, 2, 4):
            with torch.no_grad():
                points = sample_consistency(
                    f, consistency_times(SCHEDULE, 50, steps), lambda: torch.randn(2000, 2, generator=draws)
                )  # fmt: skip
            print(f"{name}, {steps} steps: {1000 * energy_distance(points, real):.1f} thousandths from the data")


if __name__ == "__main__":
    main()
