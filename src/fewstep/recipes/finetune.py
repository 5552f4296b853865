"""The settings of a latent consistency fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fewstep import assets
from fewstep.errors import UserError
from fewstep.method.named import METHODS
from fewstep.recipes.consistency import ConsistencyConfig


@dataclass(frozen=True, kw_only=True)
class Finetune(ConsistencyConfig):
    """Fine-tunes a few-step model, or makes a teacher few-step on these pictures (LCM, algorithm 4)."""

    model: str = assets.SCENES_LCM
    """The model to fine-tune: `scenes-lcm` (bundled), a few-step model that `distill` wrote, any
    LatentConsistencyModelPipeline, or a teacher, such as `scenes` (bundled)."""
    out: Path = Path("runs/finetuned")
    """Run folder. Give the same command again to resume an interrupted run."""

    @property
    def learns_at(self) -> str:
        return "data"  # nobody is followed

    def __post_init__(self) -> None:
        super().__post_init__()
        if METHODS[self.method].states == "own":
            raise UserError(f"{self.method} asks a teacher, and a fine-tuning has none; give it to `fewstep distill`")
        if self.states not in ("auto", "data"):
            raise UserError(f"{self.states} follow a teacher, and a fine-tuning has none; give --states data")
        if METHODS[self.method].target == "none":
            raise UserError(
                f"{self.method} learns a teacher's guided steps, and a fine-tuning has none; give another --method"
            )


def default_finetune() -> Finetune:
    """Fine-tunes the bundled model in a few hundred updates on two CPU cores, at the guidance it was trained for."""
    return Finetune(
        steps=300, batch_size=32, lr=5e-4, lr_decay="cosine", ema_decay=0.95, shrink=0.5, guidance_range=(1.0, 4.0),
        guidance_scale=2.0,
    )  # fmt: skip
