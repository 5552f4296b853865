"""`fewstep distill`: a teacher and captioned pictures in, a few-step model out (Latent Consistency Distillation)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fewstep import assets
from fewstep.consistency.path import TeacherPath
from fewstep.diffusion.solvers import SOLVERS, SolverName
from fewstep.errors import UserError
from fewstep.models.families import FamilyName
from fewstep.models.latent_model import LatentModel, load_latent_model, pick_device
from fewstep.models.lora_file import LCM_LORA
from fewstep.recipes.consistency_run import ConsistencyRun, run
from fewstep.recipes.student import Student, build_student, takes_guidance


@dataclass(frozen=True, kw_only=True)
class Distill(ConsistencyRun):
    """Turns a teacher into a model that paints in 1 to 8 steps."""

    teacher: str = assets.SCENES
    """`scenes` (bundled), a diffusers folder in Stable Diffusion's layout, a single-file checkpoint, or a Hub id."""
    out: Path = Path("runs/scenes")
    """Run folder. The same command again goes on where it stopped."""
    family: Literal["any", FamilyName] = "any"
    """The family that the settings are for; a teacher of another is refused."""
    solver: SolverName = "ddim"
    """How the teacher steps from t to s."""
    guided_from: int = 0
    """Time below which the teacher is not guided. Multistep sampling guides again with every answer, which oversteers
    with many steps and much guidance; guided at large t alone it does not (docs/results.md). 0: everywhere, as in the
    paper."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.guided_from < 0:
            raise UserError(f"guided_from is {self.guided_from}; it is a time of the schedule, 0 or later")
        low, high = self.guidance_range
        if self.lora_rank and low != high:
            raise UserError(
                f"a LoRA has no input for guidance and guidance_range is {low:g} to {high:g}; "
                f"give one value twice: --guidance-range {self.guidance_scale:g} {self.guidance_scale:g}"
            )


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
