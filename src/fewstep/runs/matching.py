"""The task of a distillation by distribution matching, as its configuration says."""

from __future__ import annotations

import dataclasses

from fewstep.data.latents import LatentSource
from fewstep.method.paths import TeacherPath
from fewstep.models.card import read_method
from fewstep.models.family import LatentModel
from fewstep.recipes.distill import Distill
from fewstep.train.config import Optimisation
from fewstep.train.fake_score import add_fake
from fewstep.train.learner import Trainable
from fewstep.train.matching_task import MatchingTask


def make_matching_task(
    config: Distill, student: Trainable, path: TeacherPath, model: LatentModel, latents: LatentSource
) -> MatchingTask:
    """Hangs a fake score on the student's base, and lets it judge the student."""
    fake = add_fake(student, config.fake_rank)
    own = {field.name: getattr(config, field.name) for field in dataclasses.fields(Optimisation)}
    optimisation = Optimisation(**{**own, "lr": config.fake_lr or 10 * config.lr, "lr_decay": "constant"})
    guidance, _ = config.guidance_range
    return MatchingTask(
        student.learner, fake, dataclasses.replace(path, teacher=student.base), latents, config.seed,
        batch_size=config.batch_size, phases=student.card.phases or (), omega=model.family.omega_of(guidance),
        told_end=read_method(student.card, config.start).told_end, optimisation=optimisation,
    )  # fmt: skip
