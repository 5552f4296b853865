"""The task of a distillation on what the teacher walks meanwhile."""

from __future__ import annotations

from fewstep.data.latents import LatentSource
from fewstep.method.step import Method
from fewstep.method.walks import make_walk
from fewstep.models.family import LatentModel
from fewstep.recipes.consistency import ConsistencyConfig
from fewstep.train.distill_task import TimeAndGuidance
from fewstep.train.learner import Trainable
from fewstep.train.walk_task import WalkTask


def make_task(
    config: ConsistencyConfig, student: Trainable, method: Method, drawn: TimeAndGuidance, model: LatentModel,
    latents: LatentSource,
) -> WalkTask:  # fmt: skip
    """Sets walkers on the teacher's way, as many as a batch has rows."""
    walk = make_walk(model.schedule, drawn.skip, drawn.phases, config.batch_size)
    return WalkTask(student.learner, method, latents, drawn, config.seed, walk=walk)
