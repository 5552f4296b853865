"""One line of an evaluation's table: a sampler at its number of steps, spacing and guidance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fewstep.diffusion.prediction import Cond
from fewstep.diffusion.sampling import Spacing, sampling_times
from fewstep.evaluate.baselines import SamplerName, network_evaluations, teacher_latents
from fewstep.models.latent_model import LatentModel
from fewstep.models.pipeline import Pipeline

TEACHER_STEPS = 50
Row = dict[str, Any]
"""Column → value."""


@dataclass(frozen=True)
class Cell:
    """Who paints, and how."""

    sampler: Literal["teacher", "lcm"] | SamplerName
    """`teacher` is the reference, DDIM at many steps; `lcm` the few-step model."""
    steps: int
    spacing: Spacing | Literal["lcm"]
    guidance_scale: float
    """diffusers' convention, ω + 1."""

    @property
    def network_evaluations(self) -> int:
        """A few-step model asks its network once a step, a guided teacher twice or four times."""
        return self.steps if self.sampler == "lcm" else network_evaluations(self.solver, self.steps)

    @property
    def solver(self) -> SamplerName:
        """Of a cell that the teacher paints."""
        assert self.sampler != "lcm"
        return "ddim" if self.sampler == "teacher" else self.sampler

    @property
    def slug(self) -> str:
        """Names its folder."""
        return f"{self.sampler}-{self.steps}-{self.spacing}-guidance-{self.guidance_scale:g}"

    def head(self) -> Row:
        """The first columns of its row."""
        return {
            "sampler": self.sampler, "steps": self.steps, "network_evaluations": self.network_evaluations,
            "spacing": self.spacing, "guidance_scale": self.guidance_scale,
        }  # fmt: skip


@dataclass(frozen=True)
class Painter:
    """Paints a cell."""

    model: LatentModel
    """Encodes the prompts and decodes the latents."""
    latents: Callable[[Cond, Sequence[int]], Tensor]
    """(conditions [b, …], b seeds) → z_0 [b, c, h, w]."""


def painter_of(cell: Cell, teacher: LatentModel | None, student: Pipeline | None, *, bf16: bool = False) -> Painter:
    """Who paints this cell; with `bf16` networks compute in it, the autoencoder does not."""
    if cell.sampler == "lcm":
        assert student is not None
        few_step, model = student, student.model
        omega = model.family.omega_of(cell.guidance_scale)

        def sample(cond: Cond, seeds: Sequence[int]) -> Tensor:
            return few_step.latents(cond, seeds, cell.steps, omega)
    else:
        assert teacher is not None
        assert cell.spacing != "lcm"
        model = teacher
        omega = model.family.omega_of(cell.guidance_scale)
        times = sampling_times(model.schedule.num_steps, cell.steps, cell.spacing)

        def sample(cond: Cond, seeds: Sequence[int]) -> Tensor:
            return teacher_latents(model, cell.solver, times, cond, seeds, omega)

    def latents(cond: Cond, seeds: Sequence[int]) -> Tensor:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            return sample(cond, seeds)

    return Painter(model, latents)
