"""How z_t moves to the earlier z_s, of what one update is computed from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fewstep.diffusion.prediction import Cond, Guided, Network, Prediction, Rescale
from fewstep.diffusion.schedule import Schedule
from fewstep.diffusion.solvers.base import DDIM, Solver
from fewstep.method.landing import BY_DDIM, ConsistencyFunction, solve_clean
from fewstep.method.times import choose_edge


@dataclass(frozen=True)
class TrainingBatch:
    """Data with every draw that its loss needs: z_0 and epsilon `[b, …]`, e ≤ s ≤ t `[b]`, ω `[b]` or None."""

    z_0: Tensor
    cond: Cond
    t: Tensor
    s: Tensor
    e: Tensor
    """The end point, where answers at t and at s land."""
    epsilon: Tensor
    omega: Tensor | None
    z_t: Tensor | None = None
    """Where the batch stands at t, if that is not z_0 with the noise ε."""
    z_s: Tensor | None = None
    """Where the path leads from z_t, if that is known."""


class Path(Protocol):
    """z_s from z_t = α(t)·z_0 + σ(t)·ε; never differentiated."""

    def __call__(self, z_t: Tensor, batch: TrainingBatch) -> Tensor: ...


@dataclass(frozen=True)
class TeacherPath:
    """One solver step of the teacher's (augmented) PF-ODE (LCM, eq. 16).

    Guidance acts inside every evaluation, so that a second-order solver is of second order on the guided ODE.
    With `null_cond` None it is the teacher's own input for ω, if it has one, that guides; with ω None nothing does.
    """

    teacher: Network
    schedule: Schedule
    null_cond: Cond | None
    """Is the empty condition, a batch of one."""
    solver: Solver = DDIM
    guided_from: int = 0
    """Is as `Guided` has it; so is the next one."""
    rescale: Rescale | None = None

    def __call__(self, z_t: Tensor, batch: TrainingBatch) -> Tensor:
        return self.solver.step(self.schedule, self.field(batch.cond, batch.omega), z_t, batch.t, batch.s)

    def field(self, cond: Cond, omega: Tensor | None) -> Callable[[Tensor, Tensor], Prediction]:
        """Returns what the teacher says of z_t at t, guided by ω `[b]`, under a condition `[b, …]`."""
        if self.null_cond is None or omega is None:
            return lambda z_t, t: self.teacher(z_t, t, cond, omega)
        # What the empty condition does not say (a picture's sizes) is as it is.
        null = cond | {name: value.expand(len(omega), *value.shape[1:]) for name, value in self.null_cond.items()}
        return Guided(self.teacher, cond, null, omega, self.guided_from, self.rescale)


@dataclass(frozen=True)
class DataPath:
    """The same picture with less of the same noise: no teacher (LCM, algorithm 4, latent consistency fine-tuning)."""

    schedule: Schedule

    def __call__(self, z_t: Tensor, batch: TrainingBatch) -> Tensor:  # noqa: ARG002  # z_0 and ε say it all
        return self.schedule.diffuse(batch.z_0, batch.epsilon, batch.s)


@dataclass(frozen=True)
class StudentPath:
    """Where a student that has learnt leads from z_t by its own sampler of so many `phases`, from begin to begin."""

    student: Network
    schedule: Schedule
    phases: int
    jumps: int
    """How many of its steps lie between t, where one of them begins, and s."""
    told_end: bool = False
    clean: bool = False
    """Returns, in place of z_s, the clean latents whose one step of DDIM from z_t leads there."""

    def __call__(self, z_t: Tensor, batch: TrainingBatch) -> Tensor:
        f = ConsistencyFunction(self.student, batch.cond, batch.omega, self.schedule, BY_DDIM, self.told_end)
        z, t = z_t, batch.t
        for _ in range(self.jumps):
            e = choose_edge(self.schedule, t, torch.zeros_like(t, dtype=torch.double), (self.phases,))
            z, t = f(z, t, e), e
        return solve_clean(self.schedule, z_t, z, batch.t, batch.s) if self.clean else z


def kept_path(z_t: Tensor, batch: TrainingBatch) -> Tensor:  # noqa: ARG001  # where it led is known
    """Returns what is kept of the step that was taken beforehand."""
    assert batch.z_s is not None
    return batch.z_s
