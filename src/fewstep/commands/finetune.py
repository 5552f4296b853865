"""`fewstep finetune`: a few-step model on pictures of one's own, without a teacher (Latent Consistency Fine-tuning)."""

from __future__ import annotations

from fewstep.errors import UserError
from fewstep.method.paths import DataPath
from fewstep.models.latent_model import LatentModel, load_latent_model, pick_device
from fewstep.models.lora.file import LCM_LORA
from fewstep.recipes.finetune import Finetune, default_finetune
from fewstep.runs.consistency import run
from fewstep.runs.student import Student, build_student, takes_guidance

__all__ = ["Finetune", "default_finetune", "finetune"]


def finetune(config: Finetune) -> None:
    """Trains and exports to `config.out / "model"`."""
    model = load_latent_model(config.model, pick_device(config.device), config.base_config)
    grid_size = model.schedule.grid_size(config.skip)
    held = model.scheduler_config.get("original_inference_steps", grid_size)
    if takes_guidance(model) and held != grid_size:
        raise UserError(
            f"{config.model} paints at {held} times and skip {config.skip} would train it at {grid_size}; "
            f"give --skip {model.schedule.num_steps // held}"
        )
    run(
        config, model, lambda resolution: make_student(config, model, resolution),
        lambda _: DataPath(model.schedule), "fine-tune",
    )  # fmt: skip


def make_student(config: Finetune, model: LatentModel, resolution: int) -> Student:
    """What learns: all of the few-step model, adapters on it, or a student made from a teacher."""
    method = LCM_LORA if config.lora_rank and not takes_guidance(model) else "LCF"
    return build_student(
        config, model, resolution, {"method": method, "teacher": config.model, "solver": "none (algorithm 4)"}
    )
