"""The task of a distillation whose answers are judged too, as its configuration says."""

from __future__ import annotations

import dataclasses

from fewstep.models.family import LatentModel
from fewstep.recipes.distill import Distill
from fewstep.train.adversarial_task import AdversarialTask, Judge, make_heads
from fewstep.train.config import Optimisation
from fewstep.train.distill_task import DistillTask
from fewstep.train.learner import Trainable


def add_heads(config: Distill, task: DistillTask, student: Trainable, teacher: LatentModel) -> AdversarialTask:
    """Hangs heads on the teacher's features, and lets them judge the student."""
    network = teacher.network
    if config.gradient_checkpointing:  # its features are differentiated too
        network.backbone.enable_gradient_checkpointing()
    judge = Judge(make_heads(network.feature_widths, config.seed).to(teacher.device), network, student.base_alone)
    own = {field.name: getattr(config, field.name) for field in dataclasses.fields(Optimisation)}
    lr = config.adversarial_lr or 2 * config.lr
    optimisation = Optimisation(**{**own, "lr": lr, "lr_decay": "constant", "ema_decay": 0.0})
    student.card = dataclasses.replace(
        student.card, adversarial=config.adversarial, adversarial_real=config.adversarial_real
    )
    return AdversarialTask(
        task, judge, config.seed, weight=config.adversarial, optimisation=optimisation, real=config.adversarial_real
    )
