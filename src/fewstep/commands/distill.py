"""`fewstep distill`: a teacher and captioned pictures in, a few-step model out (Latent Consistency Distillation)."""

from __future__ import annotations

import dataclasses
import importlib

from fewstep.diffusion.solvers import SOLVERS
from fewstep.errors import UserError
from fewstep.method.paths import Path, TeacherPath
from fewstep.models.card import LCD, LCM_LORA
from fewstep.models.family import LatentModel
from fewstep.recipes.distill import Distill
from fewstep.runs.consistency import fit_and_save, make_task, open_run
from fewstep.runs.learning import check_before, load_base, look_at, make_trainable
from fewstep.runs.material import check_data, choose_resolution
from fewstep.runs.reporting import Observed, make_observers, settle_reports
from fewstep.train.config import check_given
from fewstep.train.learner import Trainable
from fewstep.train.task import Task


def distill(config: Distill) -> None:
    """Trains and exports to `config.out / "model"`."""
    config = settle_reports(config)
    teacher = load_teacher(config)
    material = open_run(config, teacher)
    if material is None:
        return None
    student = make_student(config, teacher)
    path = make_path(config, student, teacher)
    latent_task = make_task(config, student, path, teacher, material.latents())
    if (not latent_task.asks_teacher or config.to_steps) and not config.lora_rank:
        teacher.network.backbone.to("meta")  # nobody asks it any more
    task: Task = latent_task
    if config.adversarial:
        # imported only where a run wants it
        task = importlib.import_module("fewstep.runs.adversarial").add_heads(config, latent_task, student, teacher)
    if config.dry_run:
        # imported only where a run wants it
        importlib.import_module("fewstep.runs.trial").try_out(config, student, task, material.count)
        return None
    observe = make_observers(Observed(config, student, material))
    return fit_and_save(config, task, student, "distil", observe)


def load_teacher(config: Distill) -> LatentModel:
    """Loads the teacher, frozen. Raises UserError for a model that is already few-step, or of another family."""
    check_given(config, "teacher", "data")
    check_data(config)
    check_teacher(config)
    if config.follow:
        # imported only where a run wants it
        importlib.import_module("fewstep.runs.following").check_followed(config.follow)
    teacher = load_base(config, config.teacher)
    if teacher.is_few_step:  # by a network that stands in for its own
        raise _refuse_few_step(config)
    teacher.take_side(choose_resolution(config, teacher))
    return dataclasses.replace(teacher, home=teacher.device)  # even where its network is given up


def check_teacher(config: Distill) -> None:
    """Raises UserError for a teacher that is none, is of another family than the recipe's, or has no place for a
    setting, before its weights are read."""
    seen = look_at(config, config.teacher)
    if seen.is_few_step:
        raise _refuse_few_step(config)
    if config.family not in ("any", seen.family.name):
        raise UserError(
            f"this recipe is for the family {config.family} and {config.teacher} is of {seen.family.name} "
            f"({seen.family.title}); choose a recipe of that family, or --family any"
        )
    check_before(config, config.teacher, seen)


def _refuse_few_step(config: Distill) -> UserError:
    return UserError(f"{config.teacher} is already a few-step model; give the teacher that it was made from")


def make_student(config: Distill, teacher: LatentModel) -> Trainable:
    """Makes what learns; with adapters `teacher` itself is given them."""
    begun = None
    if config.start:
        # imported only where a run wants it
        begun = importlib.import_module("fewstep.runs.begun").load_begun(config, teacher)
    return make_trainable(
        config, teacher, method=LCM_LORA if config.lora_rank else LCD, teacher=config.teacher, solver=config.solver,
        guided_from=config.guided_from, begun=begun,
    )  # fmt: skip


def make_path(config: Distill, student: Trainable, teacher: LatentModel) -> Path:
    """Makes one step of the solver along the teacher's guided ODE, or the steps of a student that is followed."""
    if config.follows_student:
        # imported only where a run wants it
        followed: Path = importlib.import_module("fewstep.runs.following").follow_student(config, student, teacher)
        return followed
    solver, null = SOLVERS[config.solver], teacher.null()
    return TeacherPath(student.base, teacher.schedule, null, solver, config.guided_from, teacher.rescale)
