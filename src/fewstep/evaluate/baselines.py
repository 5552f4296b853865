"""What a few-step model is compared with: its own teacher, sampled by solvers that need no training."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from fewstep.diffusion.multistep import sample_dpm_solver_pp_2m, sample_unipc
from fewstep.diffusion.prediction import Cond
from fewstep.diffusion.sampling import sample_euler, sample_ode
from fewstep.diffusion.schedule import Schedule
from fewstep.diffusion.solvers.base import DDIM, Field, Solver
from fewstep.diffusion.solvers.dpm_solver import SOLVER as DPM_SOLVER_2
from fewstep.diffusion.solvers.midpoint import SOLVER as MIDPOINT
from fewstep.method.paths import TeacherPath
from fewstep.models.family import LatentModel
from fewstep.models.pipeline import seeded_noise


@dataclass(frozen=True)
class Sampler:
    """Samples a teacher without any training."""

    name: str
    title: str
    """Is its name as people write it."""
    evaluations: int
    """Calls of an unguided network a step."""
    sample: Callable[[Schedule, Field, Tensor, list[int]], Tensor]
    """Maps (schedule, field, z_T [b, c, h, w], times, latest first) to z_0 [b, c, h, w]."""


def _use_one_solver(name: str, title: str, solver: Solver) -> Sampler:
    return Sampler(name, title, solver.evaluations, functools.partial(sample_ode, solver=solver))


SAMPLERS: dict[str, Sampler] = {
    sampler.name: sampler
    for sampler in (
        _use_one_solver("ddim", "DDIM", DDIM),
        _use_one_solver("dpm-solver-2", "DPM-Solver-2", DPM_SOLVER_2),
        Sampler("dpm++", "DPM-Solver++ (2M)", 1, sample_dpm_solver_pp_2m),
        Sampler("euler", "Euler", 1, sample_euler),
        Sampler("unipc", "UniPC", 1, sample_unipc),
        _use_one_solver("midpoint", "Midpoint", MIDPOINT),
    )
}

if TYPE_CHECKING:
    SamplerName = str
else:
    SamplerName = Literal[tuple(SAMPLERS)]  # what the command line allows


@torch.no_grad()
def sample_teacher(
    teacher: LatentModel, sampler: SamplerName, times: list[int], cond: Cond, seeds: Sequence[int], omega: float
) -> Tensor:
    """Samples z_0 `[b, c, h, w]` from the same initial noise that `Pipeline.latents` starts from, for these seeds."""
    z_T = seeded_noise(seeds, teacher.codec.shape(teacher.resolution), teacher.device)()
    path = TeacherPath(teacher.network, teacher.schedule, teacher.null(), rescale=teacher.rescale)
    field = path.field(cond, torch.full((len(z_T),), omega, device=teacher.device))
    return SAMPLERS[sampler].sample(teacher.schedule, field, z_T, times)
