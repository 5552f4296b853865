"""The task of a distillation on trajectories that were walked beforehand."""

from __future__ import annotations

from fewstep.method.step import Method
from fewstep.models.family import LatentModel
from fewstep.models.prepared_trajectories import KeptTrajectories
from fewstep.recipes.consistency import ConsistencyConfig
from fewstep.runs.trajectories import check_stops
from fewstep.train.distill_task import TimeAndGuidance
from fewstep.train.kept_task import KeptTask
from fewstep.train.learner import Trainable


def make_task(
    config: ConsistencyConfig, student: Trainable, method: Method, drawn: TimeAndGuidance, model: LatentModel,
    latents: KeptTrajectories,
) -> KeptTask:  # fmt: skip
    """Makes it where the trajectories stop at the begin of every phase of the student, of one that goes on its own.

    Raises UserError where they do not.
    """
    check_stops(config.data, latents.stops.tolist(), drawn.phases, model)
    return KeptTask(student.learner, method, latents, drawn, config.seed)
