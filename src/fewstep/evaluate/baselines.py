"""What a few-step model is compared with: its own teacher, sampled by solvers that need no training."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from fewstep.diffusion.guidance import Guided
from fewstep.diffusion.prediction import Cond
from fewstep.diffusion.sampling import (
    sample_dpm_solver_pp_2m,
    sample_euler,
    sample_ode,
    sample_unipc,
)
from fewstep.diffusion.solvers import DPM_SOLVER_2
from fewstep.models.latent_model import LatentModel
from fewstep.models.pipeline import seeded_noise

SamplerName = Literal["ddim", "dpm-solver-2", "dpm++", "euler", "unipc"]
_SAMPLERS: dict[SamplerName, Callable[..., Tensor]] = {
    "ddim": sample_ode, "dpm-solver-2": functools.partial(sample_ode, solver=DPM_SOLVER_2),
    "dpm++": sample_dpm_solver_pp_2m, "euler": sample_euler, "unipc": sample_unipc,
}  # fmt: skip


def network_evaluations(sampler: SamplerName, steps: int) -> int:
    """Of the guided teacher, which is asked with the condition and without, by DPM-Solver-2 twice a step."""
    return 2 * steps * (2 if sampler == "dpm-solver-2" else 1)


@torch.no_grad()
def teacher_latents(
    teacher: LatentModel, sampler: SamplerName, times: list[int], cond: Cond, seeds: Sequence[int], omega: float
) -> Tensor:
    """z_0 `[b, c, h, w]` from the same initial noise that `Pipeline.latents` starts from, for these seeds."""
    z_T = seeded_noise(seeds, teacher.latent_shape(teacher.resolution), teacher.device)()
    null = {name: value.expand(len(z_T), *value.shape[1:]) for name, value in teacher.null_cond().items()}
    field = Guided(teacher.network, cond, null, torch.full((len(z_T),), omega, device=teacher.device))
    return _SAMPLERS[sampler](teacher.schedule, field, z_T, times)
