"""Distribution matching as a task of the training loop: a student on its own chain, and a fake score beside it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.data import draws
from fewstep.data.latents import LatentSource
from fewstep.diffusion.prediction import Cond
from fewstep.method.landing import BY_DDIM, ConsistencyFunction
from fewstep.method.matching import Renoised, draw_tau, fake_losses, matching_losses, noise_on
from fewstep.method.paths import TeacherPath
from fewstep.method.times import jump_times
from fewstep.train.config import Optimisation
from fewstep.train.learner import Learner
from fewstep.train.role import STUDENT, Role
from fewstep.train.task import LatentTask, Loss

FAKE = "fake"
"""Name of the role whose score is that of the student's answers."""


@dataclass(frozen=True)
class _Answer:
    """What the student answered at one step of its chain."""

    z_0: Tensor
    z_e: Tensor
    e: Tensor
    cond: Cond
    valid: Tensor


class MatchingTask(LatentTask):
    """The student paints from noise as its sampler does, in a number of steps drawn for each update, up to a step that
    is drawn too; there it learns that its answers be distributed as the teacher's pictures (TDM, arXiv 2503.06674).

    Pictures are read for their captions alone. Both learn at every update.
    """

    def __init__(  # noqa: PLR0913  # what two roles need
        self, learner: Learner, fake: Learner, teacher: TeacherPath, source: LatentSource, seed: int, *,
        batch_size: int, phases: Sequence[int], omega: float, told_end: bool, optimisation: Optimisation,
    ) -> None:  # fmt: skip
        super().__init__(learner, source, seed)
        self._fake, self._teacher, self._schedule = fake, teacher, teacher.schedule
        self._batch_size, self._phases, self._omega = batch_size, phases, omega
        self._told_end, self._optimisation = told_end, optimisation

    @property
    def roles(self) -> Sequence[Role]:
        return self._learner.as_role(), self._fake.as_role(FAKE, self._optimisation)

    def losses(self, counters: range, due: Collection[str]) -> Iterator[tuple[str, Loss]]:
        answer = self._paint(counters)
        if STUDENT in due:
            judged = self._noise_on("student", answer, counters)
            with torch.no_grad():
                real = self._teacher.field(answer.cond, self._omegas(len(judged.tau)))(judged.z_tau, judged.tau)
                fake = self._fake.student_without_gradient(judged.z_tau, judged.tau, answer.cond, None)
            yield STUDENT, Loss.of_valid(matching_losses(answer.z_0, real.z_0, fake.z_0), answer.valid)
        if FAKE in due:
            judged = self._noise_on("fake", answer, counters)
            told = self._fake.student(judged.z_tau, judged.tau, answer.cond, None)
            yield FAKE, Loss.of_valid(fake_losses(self._schedule, told, judged), answer.valid)

    def draw_step(self, counters: range) -> tuple[int, int]:
        """Returns in how many steps the update of these counters paints, and which of them learns, from 0.

        All parts of a batch have the same, so that their chains are equally long.
        """
        update = range(counters.start // self._batch_size, counters.start // self._batch_size + 1)
        u, v = (float(draws.uniform(self._seed, stream, update)) for stream in ("phases", "step"))
        count = self._phases[int(u * len(self._phases))]
        return count, int(v * count)

    def _paint(self, counters: range) -> _Answer:
        """Follows the student's own chain, without gradient but at its last step."""
        shape = self._source.shape_at(counters)
        data = self._source.batch(counters, self._normal("vae", counters, shape))
        z = self._normal("epsilon", counters, shape)
        count, last = self.draw_step(counters)
        times = list(zip(*jump_times(self._schedule, count), strict=True))[: last + 1]
        with torch.no_grad():
            chain = ConsistencyFunction(
                self._learner.student_without_gradient, data.cond, self._omegas(len(z)), self._schedule, BY_DDIM,
                self._told_end,
            )  # fmt: skip
            for time, end in times[:-1]:
                z = chain(z, *self._stretch(time, end, len(z)))
        t, e = self._stretch(*times[-1], len(z))
        cond = data.cond | {"end": e} if self._told_end else data.cond
        answer = self._learner.student(z, t, cond, self._omegas(len(z)))
        landed = BY_DDIM.land(self._schedule, answer, z, t, e).detach()
        return _Answer(answer.z_0, landed, e, data.cond, data.valid)

    def _noise_on(self, stream: str, answer: _Answer, counters: range) -> Renoised:
        u = draws.uniform(self._seed, f"tau of {stream}", counters).to(self._device, non_blocking=True)
        noise = self._normal(f"noise of {stream}", counters, self._source.shape_at(counters))
        return noise_on(self._schedule, answer.z_e, answer.e, draw_tau(self._schedule, answer.e, u), noise)

    def _omegas(self, count: int) -> Tensor:
        return torch.full((count,), self._omega, device=self._device)

    def _stretch(self, time: int, end: int, count: int) -> tuple[Tensor, Tensor]:
        t, e = (torch.full((count,), each, dtype=torch.long, device=self._device) for each in (time, end))
        return t, e
