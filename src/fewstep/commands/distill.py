"""`fewstep distill`: a teacher and captioned pictures in, a few-step model out (Latent Consistency Distillation)."""

from __future__ import annotations

from fewstep.diffusion.solvers import SOLVERS
from fewstep.errors import UserError
from fewstep.method.paths import TeacherPath
from fewstep.models.latent_model import LatentModel, load_latent_model, pick_device
from fewstep.models.lora.file import LCM_LORA
from fewstep.recipes.distill import Distill
from fewstep.runs.consistency import run
from fewstep.runs.student import Student, build_student, takes_guidance


def distill(config: Distill) -> None:
    """Trains and exports to `config.out / "model"`."""
    teacher = load_teacher(config)
    run(
        config, teacher, lambda resolution: make_student(config, teacher, resolution),
        lambda student: make_path(config, student, teacher), "distil",
    )  # fmt: skip


def make_path(config: Distill, student: Student, teacher: LatentModel) -> TeacherPath:
    """One step of the solver along the teacher's guided ODE."""
    return TeacherPath(student.base, teacher.schedule, teacher.null_cond(), SOLVERS[config.solver], config.guided_from)


def load_teacher(config: Distill) -> LatentModel:
    """The teacher, frozen; refuses a model that is already few-step."""
    for name in ("teacher", "data"):
        if not getattr(config, name):
            raise UserError(f"this recipe has no {name} of its own: give --{name}")
    teacher = load_latent_model(config.teacher, pick_device(config.device), config.base_config)
    if takes_guidance(teacher):
        raise UserError(f"{config.teacher} is already a few-step model; give the teacher that it was made from")
    if config.family not in ("any", teacher.family.name):
        raise UserError(
            f"this recipe is for the family {config.family} and {config.teacher} is of {teacher.family.name} "
            f"({teacher.family.title}); choose a recipe of that family, or --family any"
        )
    return teacher


def make_student(config: Distill, teacher: LatentModel, resolution: int) -> Student:
    """What learns; with adapters `teacher` itself is given them."""
    method = LCM_LORA if config.lora_rank else "LCD"
    made_by = {
        "method": method, "teacher": config.teacher, "solver": config.solver, "guided_from": config.guided_from,
    }  # fmt: skip
    return build_student(config, teacher, resolution, made_by)
