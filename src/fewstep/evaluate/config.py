"""The settings of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from fewstep import assets
from fewstep.diffusion.sampling import Spacing
from fewstep.errors import UserError
from fewstep.evaluate.baselines import SAMPLERS, SamplerName
from fewstep.evaluate.cell import TEACHER_STEPS
from fewstep.train.config import check_seed, check_values


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Scores a few-step model, and its teacher under samplers that need no training, by the same pictures."""

    model: str = assets.SCENES_LCM
    """What `generate` takes: `scenes-lcm` (bundled), a folder that `distill` wrote, any LatentConsistencyModelPipeline,
    a folder with an LCM-LoRA, or, with --lora, its base."""
    lora: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A LoRA file or run folder, and its scale after a colon; may be given several times."""
    teacher: str = ""
    """What the model was made from; by default what its card records."""
    base_config: str = ""
    """For single-file checkpoints: a diffusers folder of their family."""
    data: str = ""
    """Prompts and real pictures: `scenes` or `scenes-leaning` (drawn afresh), or a folder of captioned pictures, which
    should be none that the model was trained on; by default what its card records."""
    out: Path = Path("runs/evaluation")
    """Folder for results.json, table.md, report.html and grid.png. The same command again goes on where it stopped."""
    samplers: tuple[SamplerName, ...] = tuple(SAMPLERS)
    """What the teacher is sampled with for comparison."""
    steps: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of steps, each a row of every sampler."""
    guidance_scale: tuple[float, ...] = ()
    """diffusers' convention (ω + 1). Of several each sampler takes its best; by default of 1.5, 3, 5 and 8.5."""
    spacings: tuple[Spacing, ...] = ("trailing", "leading+1", "leading", "linspace")
    """Where a baseline's steps may stand; each takes its best."""
    n: int = 1000
    """Pictures a row; at least twice the extractor's features. Under 5,000 Fréchet distances lean upwards."""
    n_unseen: int = 64
    """Scenes: further pictures a row, of a shape in a colour never trained on, scored apart."""
    n_repeated: int = 16
    """Of the prompts so many are painted four times more, for the diversity within a prompt; 0: none."""
    n_tuning: int = 32
    """Pictures, of other prompts, by which guidance and spacing are chosen."""
    seed: int = 0
    """Picture i starts from noise of seed + i."""
    extractor: str = ""
    """Whose features distances compare: `reader` (bundled, for scenes), a folder of CLIP or DINOv2 in transformers'
    layout, or the TorchScript Inception. By default the reader for scenes."""
    clip: str = ""
    """A folder of CLIP in transformers' layout, for the CLIP score."""
    beside: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """An earlier report, of the same protocol, whose few-step rows stand in the table too; may be given several
    times."""
    batch_size: int = 0
    """Every picture is painted in a batch of this size; 0 takes 16 for pictures of up to 128 pixels, else 8."""
    workers: int = 1
    """Processes that paint, each with its own copy of the models; on a CPU of one thread each. 0 takes one for each
    core if pictures are up to 128 pixels wide and painted on a CPU, else 1."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """What networks compute in; `auto` is bf16 on a GPU that has it, fp32 on a CPU."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""

    def __post_init__(self) -> None:
        check_values(self)
        for name in ("n_unseen", "n_repeated", "batch_size", "workers"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}; it may not be negative")
        if self.n < 20 or self.n_tuning < 20:
            raise UserError(f"n is {self.n} and n_tuning {self.n_tuning}; a kernel distance needs at least 20")
        check_seed(self.seed, self.n + 100_000_000)
        if not self.steps or not all(1 <= steps <= TEACHER_STEPS for steps in self.steps):
            raise UserError(f"steps are {_listed(self.steps)}; allowed are 1 to {TEACHER_STEPS}")
        if not all(scale >= 1 for scale in self.guidance_scale):
            raise UserError(
                f"guidance_scale is {_listed(self.guidance_scale)}; each must be at least 1, which is no guidance"
            )
        if not self.spacings:
            raise UserError("spacings is empty; give at least one")


def _listed(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers) or "none"


def default_evaluate() -> Evaluate:
    """Returns the command's defaults."""
    return Evaluate(workers=0)
