"""`fewstep distill`: a teacher and captioned pictures in, a few-step model out (Latent Consistency Distillation)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep import assets
from fewstep.consistency.path import TeacherPath
from fewstep.diffusion.solvers import SOLVERS, SolverName
from fewstep.errors import UserError
from fewstep.models.latent_model import LatentModel, load_latent_model, pick_device
from fewstep.models.lora_file import LCM_LORA
from fewstep.models.network import student_of
from fewstep.recipes.consistency_run import ConsistencyRun, run
from fewstep.recipes.student import LoraStudent, Student, WholeStudent


@dataclass(frozen=True, kw_only=True)
class Distill(ConsistencyRun):
    """Turns a teacher into a model that paints in 1 to 8 steps."""

    teacher: str = assets.SCENES
    """`scenes` (bundled), a diffusers folder in Stable Diffusion's layout, or a Hub id."""
    out: Path = Path("runs/scenes")
    """Run folder. The same command again goes on where it stopped."""
    solver: SolverName = "ddim"
    """How the teacher steps from t to s."""

    def __post_init__(self) -> None:
        super().__post_init__()
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
    return TeacherPath(student.base, teacher.schedule, teacher.null_cond(), SOLVERS[config.solver])


def load_teacher(config: Distill) -> LatentModel:
    """The teacher, frozen; refuses a model that is already few-step."""
    for name in ("teacher", "data"):
        if not getattr(config, name):
            raise UserError(f"this recipe has no {name} of its own: give --{name}")
    source = assets.scenes_teacher() if config.teacher == assets.SCENES else config.teacher
    teacher = load_latent_model(source, pick_device(config.device))
    if teacher.network.unet.config.time_cond_proj_dim is not None:
        raise UserError(f"{config.teacher} is already a few-step model; give the teacher that it was made from")
    return teacher


def make_student(config: Distill, teacher: LatentModel, resolution: int) -> Student:
    """What learns; with adapters `teacher` itself is given them."""
    settings: Any = {
        "ema": config.ema_decay > 0, "checkpointing": config.gradient_checkpointing,
        "details": model_details(config, teacher),
    }  # fmt: skip
    if config.lora_rank:
        return LoraStudent(teacher, **settings)
    network = student_of(teacher.network, resolution // teacher.pixels_per_latent)
    return WholeStudent(network, teacher, **settings)


def model_details(config: Distill, teacher: LatentModel) -> dict[str, Any]:
    """What is recorded beside the weights."""
    names = ("teacher", "data", "steps", "batch_size", "lr", "ema_decay", "solver", "skip", "guidance_scale", "seed")
    adapters = {"lora_rank": config.lora_rank, "lora_alpha": config.lora_alpha or float(config.lora_rank)}
    return {
        "name": config.out.resolve().name,
        "method": LCM_LORA if config.lora_rank else "LCD",
        **{name: getattr(config, name) for name in names},
        "guidance_range": list(config.guidance_range),
        "grid_size": teacher.schedule.num_steps // config.skip,
        **(adapters if config.lora_rank else {}),
    }
