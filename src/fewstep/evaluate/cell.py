"""One line of an evaluation's table: a sampler at its number of steps, spacing and guidance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fewstep.diffusion.prediction import Cond
from fewstep.diffusion.sampling import stretch_times
from fewstep.diffusion.schedule import Spacing, sampling_times
from fewstep.evaluate.baselines import SAMPLERS, sample_teacher
from fewstep.evaluate.columns import Column
from fewstep.models.family import LatentModel
from fewstep.models.pipeline import Pipeline
from fewstep.precision import autocast

TEACHER_STEPS = 50
Row = dict[str, Any]
"""Values by their columns' names."""
TITLES: dict[str, str] = {
    "teacher": "teacher", **{sampler.name: sampler.title for sampler in SAMPLERS.values()}, "lcm": "LCM",
}  # fmt: skip
"""Names of all who may paint a cell, as people write them."""
COLUMNS = (
    Column("sampler", "Who paints: the teacher in many steps, or by a solver in few; lcm is the few-step model."),
    Column("steps"),
    Column(
        "network_evaluations",
        "Of the UNet, for one picture; a guided baseline asks it twice a step.",
        heading="calls",
    ),
    Column("spacing", "Where in the schedule a baseline's steps stand: the best of those tried, as its guidance is."),
    Column(
        "guidance_scale", "How strictly prompts are followed: diffusers' guidance_scale, 1 is none.", heading="guid."
    ),
)


@dataclass(frozen=True)
class Cell:
    """Says who paints, and how."""

    sampler: str
    """A name of SAMPLERS; or `teacher`, the reference, DDIM at many steps; or `lcm`, the few-step model."""
    steps: int
    spacing: Spacing | Literal["lcm"]
    guidance_scale: float
    """Is in diffusers' convention, ω + 1."""

    asked: int = 2
    """How often a guided teacher is asked for one evaluation: once where it guides itself."""

    @property
    def network_evaluations(self) -> int:
        """Counts a picture's calls of the network; most teachers are asked with the condition and without."""
        return self.steps * (1 if self.sampler == "lcm" else self.asked * SAMPLERS[self.solver].evaluations)

    @property
    def solver(self) -> str:
        """Names the sampler of a cell that the teacher paints."""
        assert self.sampler != "lcm"
        return "ddim" if self.sampler == "teacher" else self.sampler

    @property
    def slug(self) -> str:
        """Names its folder."""
        return f"{self.sampler}-{self.steps}-{self.spacing}-guidance-{self.guidance_scale:g}"

    def head(self) -> Row:
        """Returns the values of COLUMNS, the first of its row."""
        return {column.name: getattr(self, column.name) for column in COLUMNS}


@dataclass(frozen=True)
class Painter:
    """Paints pictures in the way of one cell."""

    model: LatentModel
    """Encodes the prompts and decodes the latents."""
    latents: Callable[[Cond, Sequence[int]], Tensor]
    """Maps (conditions [b, …], b seeds) to z_0 [b, c, h, w]."""


def painter_of(
    cell: Cell, teacher: LatentModel | None, student: Pipeline | None, dtype: torch.dtype = torch.float32
) -> Painter:
    """Makes who paints this cell; networks whose weights are fp32 compute in `dtype`, the autoencoder does not."""
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
        times = sampling_times(model.schedule, cell.steps, cell.spacing)
        if cell.spacing == "trailing" and (last := model.last_sigma):
            times = stretch_times(model.schedule, times, last)

        def sample(cond: Cond, seeds: Sequence[int]) -> Tensor:
            return sample_teacher(model, cell.solver, times, cond, seeds, omega)

    def latents(cond: Cond, seeds: Sequence[int]) -> Tensor:
        with autocast(model.device, dtype):
            return sample(cond, seeds)

    return Painter(model, latents)
