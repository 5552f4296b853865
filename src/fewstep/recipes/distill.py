"""The settings of a distillation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fewstep import assets
from fewstep.diffusion.solvers import SolverName
from fewstep.errors import UserError
from fewstep.models.families import FamilyChoice
from fewstep.recipes.consistency import ConsistencyConfig


@dataclass(frozen=True, kw_only=True)
class Distill(ConsistencyConfig):
    """Turns a teacher into a model that paints in 1 to 8 steps."""

    teacher: str = assets.SCENES
    """`scenes` (bundled), a diffusers folder in Stable Diffusion's layout, a single-file checkpoint, or a Hub id."""
    out: Path = Path("runs/scenes")
    """Run folder. The same command again goes on where it stopped."""
    family: FamilyChoice = "any"
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
