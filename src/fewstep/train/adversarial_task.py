"""A consistency loss with an adversarial one beside it, as a task of the training loop: a student, and heads that judge
it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, assert_never

import torch
from torch import Tensor

from fewstep.data import draws
from fewstep.data.latents import DroppedPicture
from fewstep.diffusion.prediction import Cond
from fewstep.method.adversarial import Heads, Renoising, draw_tau, heads_losses, student_losses
from fewstep.models.network import BackboneNetwork
from fewstep.parallel.world import current_world
from fewstep.train.config import Optimisation
from fewstep.train.distill_task import Answers, DistillTask
from fewstep.train.learner import replicate_module
from fewstep.train.role import STUDENT, Role
from fewstep.train.task import Loss, Task

Within = Callable[[], AbstractContextManager[None]]
HEADS = "heads"
"""Is the name of the role that judges."""


def make_heads(widths: Sequence[int], seed: int) -> Heads:
    """Makes heads that follow from `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draws.key(seed, HEADS, 0))
        return Heads(widths)


class _WalkedBack(torch.autograd.Function):
    """Losses `[b]` of answers, whose own graph is walked back where `within()` holds.

    What is computed again in a backward pass must find the adapters that it was computed with, and those of this graph
    are others than the student's.
    """

    @staticmethod
    def forward(ctx: Any, answers: Tensor, losses: Callable[[Tensor], Tensor], within: Within) -> Tensor:
        given = answers.detach().requires_grad_()
        with torch.enable_grad():
            found = losses(given)
        ctx.kept = given, found, within
        return found.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        given, found, within = ctx.kept
        with within():
            (gradient,) = torch.autograd.grad(found, given, gradients)
        return gradient, None, None


@dataclass(frozen=True)
class Judge:
    """Heads on the features of a frozen teacher."""

    heads: Heads
    teacher: BackboneNetwork
    alone: Within
    """Lets the teacher's network answer without what else hangs on it, while it lasts."""

    def read(self, z_e: Tensor, renoising: Renoising, cond: Cond) -> list[Tensor]:
        """Returns the teacher's features of answers at e."""
        with self.alone():
            return self.teacher.features(renoising(z_e), renoising.tau, cond)

    def judge(self, z_e: Tensor, renoising: Renoising, cond: Cond) -> tuple[Tensor, list[Tensor]]:
        """Returns the student's loss `[b]` of its answers at e, and the features that it follows from, detached."""
        found: list[Tensor] = []

        def losses(given: Tensor) -> Tensor:
            found[:] = self.read(given, renoising, cond)
            return student_losses(self.heads(found))

        judged: Tensor = _WalkedBack.apply(z_e, losses, self.alone)  # type: ignore[no-untyped-call]  # torch's own
        return judged, [each.detach() for each in found]


class AdversarialTask(Task):
    """Adds to a distillation's loss that of answers which heads tell from real ones; both learn at every update."""

    def __init__(
        self, task: DistillTask, judge: Judge, seed: int, *, weight: float, optimisation: Optimisation,
        real: Literal["target", "pictures"] = "target",
    ) -> None:  # fmt: skip
        """`optimisation` is that of the heads, `weight` that of the student's added loss, and `real` says what the
        heads take for real: the target's answers, or the batch's pictures."""
        self._task, self._judge, self._seed = task, judge, seed
        self._weight, self._optimisation, self._real = weight, optimisation, real
        alone = current_world().size == 1
        self._heads = judge.heads if alone else replicate_module(judge.heads, judge.heads)

    @property
    def roles(self) -> Sequence[Role]:
        heads = Role(
            name=HEADS, weights=self._judge.heads, network=self._heads, optimisation=self._optimisation
        )  # fmt: skip
        return *self._task.roles, heads

    def losses(self, counters: range, due: Collection[str]) -> Iterator[tuple[str, Loss]]:
        answers = self._task.answer(counters)
        renoising, cond = self._draw_renoising(answers, counters), answers.batch.cond
        fake = None
        if STUDENT in due:
            judged, fake = self._judge.judge(answers.from_t, renoising, cond)
            yield STUDENT, Loss.of_valid(self._task.compare(answers) + self._weight * judged, answers.valid)
        if HEADS in due:
            with torch.no_grad():
                fake = fake or self._judge.read(answers.from_t, renoising, cond)
                real = self._judge.read(self._find_real(answers), renoising, cond)
            yield HEADS, Loss.of_valid(heads_losses(self._heads, fake, real), answers.valid)

    def _find_real(self, answers: Answers) -> Tensor:
        """Returns what is real at e: of pictures, those with the noise that they have there."""
        batch = answers.batch
        match self._real:
            case "target":
                return answers.from_s
            case "pictures":
                return self._task.method.schedule.diffuse(batch.z_0, batch.epsilon, batch.e)
            case _:
                assert_never(self._real)

    def keys(self, counters: range) -> Sequence[str]:
        return self._task.keys(counters)

    def dropped(self) -> list[DroppedPicture]:
        return self._task.dropped()

    def _draw_renoising(self, answers: Answers, counters: range) -> Renoising:
        e, schedule = answers.batch.e, self._task.method.schedule
        u = draws.uniform(self._seed, "tau", counters)
        tau = draw_tau(schedule, e, self._task.draw_phase_lengths(answers.batch.t, counters), u)
        noise = draws.normal(self._seed, "noise of tau", counters, answers.from_t.shape[1:])
        return Renoising(schedule, e, tau, noise.to(e.device, non_blocking=True))
