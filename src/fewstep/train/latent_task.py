"""What tasks on latents share: whose names and losses are the source's, whose noise is drawn by position."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fewstep.data import draws
from fewstep.data.latents import DroppedPicture, LatentSource
from fewstep.train.learner import Learner
from fewstep.train.role import Role
from fewstep.train.task import Task


class LatentTask(Task):
    """Trains a learner on a source."""

    asks_teacher: bool = True
    """Whether an update asks the teacher, who else can be let go."""

    def __init__(self, learner: Learner, source: LatentSource, seed: int) -> None:
        self.student, self.averaged = learner.weights, learner.averaged
        self._learner, self._source, self._seed = learner, source, seed
        self._device = next(learner.weights.parameters()).device

    @property
    def roles(self) -> Sequence[Role]:
        return (self._learner.as_role(),)

    def keys(self, counters: range) -> Sequence[str]:
        return self._source.keys(counters)

    def dropped(self) -> list[DroppedPicture]:
        return self._source.dropped()

    def _normal(self, stream: str, counters: range, shape: Sequence[int]) -> Tensor:
        return draws.normal(self._seed, stream, counters, shape).to(self._device, non_blocking=True)
