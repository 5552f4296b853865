"""How z_t moves to the earlier z_s, at which time pairs (t, s)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, assert_never

import torch
from torch import Tensor

from fewstep.diffusion.guidance import Guided
from fewstep.diffusion.prediction import Cond, Network
from fewstep.diffusion.schedule import Schedule
from fewstep.diffusion.solvers import DDIM, Solver

Times = Literal["grid", "any"]


def draw_times(
    u: Tensor, schedule: Schedule, skip: int, times: Times, gap: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """t and s = max(t − gap, 0), whole, from `u` `[b]` uniform in [0, 1); `gap` `[b]`, else the skip.

    `grid`: the schedule's grid of T // k times, where LCM samplers land, k apart wherever k divides T. `any`: from k to
    the last time, algorithm 1 as the paper writes it.
    """
    match times:
        case "grid":
            choices = schedule.grid(schedule.grid_size(skip))
        case "any":
            choices = torch.arange(skip, schedule.last + 1)
        case _:
            assert_never(times)
    choices = choices[choices > 0]  # k = 1 would hold t = 0, where f is the identity and nothing is learnt
    t = choices.to(u.device)[(u * len(choices)).long()]
    return t, (t - (skip if gap is None else gap.to(u.device))).clamp(min=0)


def shrinking_gap(progress: Tensor, num_steps: int, skip: int) -> Tensor:
    """t − s `[b]`, whole: k·(T/k)^(1 − p), from T at progress p `[b]` = 0 down to the skip k from p = 1 on.

    The idea is Easy Consistency Tuning's (arXiv 2406.14548): with s = 0 the target is the picture itself, so what
    pictures say is known at every t before consistency refines it.
    """
    left = 1 - progress.double().clamp(0, 1)
    return (skip * (num_steps / skip) ** left).round().long()


@dataclass(frozen=True)
class Sample:
    """A batch of data and of draws: z_0 and epsilon `[b, …]`, t, s `[b]` with s ≤ t, ω `[b]` or None."""

    z_0: Tensor
    cond: Cond
    t: Tensor
    s: Tensor
    epsilon: Tensor
    omega: Tensor | None


class Path(Protocol):
    """z_s from z_t = α(t)·z_0 + σ(t)·ε; never differentiated."""

    def __call__(self, z_t: Tensor, sample: Sample) -> Tensor: ...


@dataclass(frozen=True)
class TeacherPath:
    """One solver step of the teacher's (augmented) PF-ODE (LCM, eq. 16).

    Guidance acts inside every evaluation, so that a second-order solver is of second order on the guided ODE.
    With `null_cond` None, or ω None, the teacher is followed without guidance.
    """

    teacher: Network
    schedule: Schedule
    null_cond: Cond | None
    """The empty condition, batch of one."""
    solver: Solver = DDIM
    guided_from: int = 0
    """As `Guided` has it."""

    def __call__(self, z_t: Tensor, sample: Sample) -> Tensor:
        t, s, cond, omega = sample.t, sample.s, sample.cond, sample.omega
        if self.null_cond is None or omega is None:
            return self.solver.step(self.schedule, lambda z, at: self.teacher(z, at, cond, None), z_t, t, s)
        # What the empty condition does not say (a picture's sizes) is as it is.
        null = cond | {name: value.expand(len(z_t), *value.shape[1:]) for name, value in self.null_cond.items()}
        return self.solver.step(self.schedule, Guided(self.teacher, cond, null, omega, self.guided_from), z_t, t, s)


@dataclass(frozen=True)
class DataPath:
    """The same picture with less of the same noise: no teacher (LCM, algorithm 4, latent consistency fine-tuning)."""

    schedule: Schedule

    def __call__(self, z_t: Tensor, sample: Sample) -> Tensor:  # noqa: ARG002  # z_0 and ε say it all
        return self.schedule.diffuse(sample.z_0, sample.epsilon, sample.s)
