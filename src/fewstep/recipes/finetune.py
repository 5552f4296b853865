"""`fewstep finetune`: a few-step model on pictures of one's own, without a teacher (Latent Consistency Fine-tuning)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep import assets
from fewstep.consistency.path import DataPath
from fewstep.errors import UserError
from fewstep.models.latent_model import LatentModel, load_latent_model, pick_device
from fewstep.models.lora_file import LCM_LORA
from fewstep.models.network import student_of
from fewstep.recipes.consistency_run import ConsistencyRun, run
from fewstep.recipes.student import LoraStudent, Student, WholeStudent


@dataclass(frozen=True, kw_only=True)
class Finetune(ConsistencyRun):
    """Fine-tunes a few-step model, or makes a teacher few-step on these pictures (LCM, algorithm 4)."""

    model: str = "runs/demo/model"
    """A few-step model that `distill` wrote, any LatentConsistencyModelPipeline, or a teacher; `scenes` is the
    bundled teacher."""
    out: Path = Path("runs/finetuned")
    """Run folder. The same command again goes on where it stopped."""


def default_finetune() -> Finetune:
    """A few hundred updates on two CPU cores."""
    return Finetune(steps=300, batch_size=32, lr=1e-4, lr_decay="cosine", ema_decay=0.95, guidance_range=(2.0, 9.0))


def finetune(config: Finetune) -> None:
    """Trains and exports to `config.out / "model"`."""
    source = assets.scenes_teacher() if config.model == assets.SCENES else config.model
    model = load_latent_model(source, pick_device(config.device))
    grid_size = model.schedule.num_steps // config.skip
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


def takes_guidance(model: LatentModel) -> bool:
    """Whether it is a student already."""
    return model.network.unet.config.time_cond_proj_dim is not None


def make_student(config: Finetune, model: LatentModel, resolution: int) -> Student:
    """What learns: all of the few-step model, adapters on it, or a student made from a teacher."""
    settings: Any = {
        "ema": config.ema_decay > 0, "checkpointing": config.gradient_checkpointing,
        "details": model_details(config, model),
    }  # fmt: skip
    if config.lora_rank:
        return LoraStudent(model, **settings)
    if takes_guidance(model):
        return WholeStudent(model.network.requires_grad_(True), model, **settings)
    return WholeStudent(student_of(model.network, resolution // model.pixels_per_latent), model, **settings)


def model_details(config: Finetune, model: LatentModel) -> dict[str, Any]:
    """What is recorded beside the weights."""
    names = ("data", "steps", "batch_size", "lr", "ema_decay", "skip", "guidance_scale", "seed")
    lora = {"lora_rank": config.lora_rank, "lora_alpha": config.lora_alpha or float(config.lora_rank)}
    few_step_lora = config.lora_rank and not takes_guidance(model)
    return {
        "name": config.out.resolve().name,
        "method": LCM_LORA if few_step_lora else "LCF",
        "teacher": config.model,
        "solver": "none (algorithm 4)",
        **{name: getattr(config, name) for name in names},
        "guidance_range": list(config.guidance_range),
        "grid_size": model.schedule.num_steps // config.skip,
        **(lora if config.lora_rank else {}),
    }
