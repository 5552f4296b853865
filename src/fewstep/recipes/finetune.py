"""`fewstep finetune`: a few-step model on pictures of one's own, without a teacher (Latent Consistency Fine-tuning)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fewstep import assets
from fewstep.consistency.path import DataPath
from fewstep.errors import UserError
from fewstep.models.latent_model import LatentModel, load_latent_model, pick_device
from fewstep.models.lora_file import LCM_LORA
from fewstep.recipes.consistency_run import ConsistencyRun, run
from fewstep.recipes.student import Student, build_student, takes_guidance


@dataclass(frozen=True, kw_only=True)
class Finetune(ConsistencyRun):
    """Fine-tunes a few-step model, or makes a teacher few-step on these pictures (LCM, algorithm 4)."""

    model: str = assets.SCENES_LCM
    """`scenes-lcm` (bundled), a few-step model that `distill` wrote, any LatentConsistencyModelPipeline, or a teacher;
    `scenes` is the bundled teacher."""
    out: Path = Path("runs/finetuned")
    """Run folder. The same command again goes on where it stopped."""


def default_finetune() -> Finetune:
    """A few hundred updates of the bundled model on two CPU cores, at the guidance that it was trained for."""
    return Finetune(
        steps=300, batch_size=32, lr=5e-4, lr_decay="cosine", ema_decay=0.95, shrink=0.5, guidance_range=(1.0, 4.0),
        guidance_scale=2.0,
    )  # fmt: skip


def finetune(config: Finetune) -> None:
    """Trains and exports to `config.out / "model"`."""
    model = load_latent_model(config.model, pick_device(config.device), config.base_config)
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


def make_student(config: Finetune, model: LatentModel, resolution: int) -> Student:
    """What learns: all of the few-step model, adapters on it, or a student made from a teacher."""
    method = LCM_LORA if config.lora_rank and not takes_guidance(model) else "LCF"
    return build_student(
        config, model, resolution, {"method": method, "teacher": config.model, "solver": "none (algorithm 4)"}
    )
