"""The settings of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from fewstep import assets
from fewstep.data.draws import check_seed
from fewstep.diffusion.schedule import Spacing
from fewstep.errors import UserError
from fewstep.evaluate.baselines import SAMPLERS, SamplerName
from fewstep.evaluate.cell import TEACHER_STEPS
from fewstep.models.options import FewStepOptions
from fewstep.parallel.options import ExecutorOptions, check_executor
from fewstep.precision import Precision
from fewstep.train.config import check_not_negative, check_values

LEAST_PICTURES = 20
"""Pictures that a kernel distance needs."""
READER_FEATURES = 64
"""Features of the bundled worlds' readers, which a Fréchet distance needs twice as many pictures as."""


@dataclass(frozen=True, kw_only=True)
class Evaluate(FewStepOptions, ExecutorOptions):
    """Scores a few-step model against its teacher, sampled in the ways that need no training."""

    model: str = assets.SCENES_LCM
    """The few-step model: `scenes-lcm` (bundled), a run that has ended, its model, any LatentConsistencyModelPipeline
    as a folder or a Hub id, or with an LCM-LoRA in --lora its base."""
    teacher: str = ""
    """Model that the few-step model was made from; by default the one that its card records."""
    data: str = ""
    """Prompts and real pictures: `scenes`, `scenes-leaning`, `gallery` or `gallery-twemoji` (bundled, drawn afresh), or
    a folder of captioned pictures that the model was not trained on. By default what its card records."""
    follow_links: bool = False
    """Read what links in the folder of pictures lead to, wherever it is. Without it a link out of the folder is counted
    and not read."""
    out: Path = Path("runs/evaluation")
    """Folder for results.json, table.md, report.html and grid.png. Give the same command again to resume an interrupted
    evaluation."""
    samplers: tuple[SamplerName, ...] = tuple(name for name in SAMPLERS if name != "midpoint")
    """Samplers of the teacher to compare with. `midpoint` is of second order on flows, at two calls a step."""
    steps: tuple[int, ...] = (1, 2, 4, 8)
    """Step counts to score, a row for each of them and each sampler."""
    guidance_scale: tuple[float, ...] = ()
    """Guidance scales to try, in diffusers' convention (1 is no guidance); each sampler is scored at its best one. By
    default 1.5, 3, 5 and 8.5."""
    spacings: tuple[Spacing, ...] = ("trailing", "leading+1", "leading", "linspace")
    """Spacings of the teacher's steps to try; each sampler is scored at its best one."""
    n: int = 1000
    """Pictures in each row; at least twice the number of the extractor's features, which makes 128 for the bundled
    worlds. Below 5000 Fréchet distances are biased upwards."""
    n_unseen: int = 64
    """Further pictures of scenes in each row, of shapes in colours never trained on; they are scored apart."""
    n_repeated: int = 16
    """Number of prompts that are painted four more times, to measure the diversity within a prompt; 0 measures none. Of
    the gallery they are painted 32 more times, and coverage is measured by them."""
    n_tuning: int = 32
    """Pictures, of other prompts, by which guidance scale and spacing are chosen."""
    seed: int = 0
    """Seed of the first picture; picture i starts from noise of seed + i."""
    extractor: str = ""
    """Model whose features the distances compare: `reader` (for the bundled worlds), a folder with CLIP or DINOv2 in
    transformers' layout, or the Inception network in TorchScript. By default the reader, for the bundled worlds."""
    reader: str = ""
    """Folder with the reader of a bundled world, as `train-teacher` or studies/gallery_teacher.py wrote it. By default
    the bundled one."""
    clip: str = ""
    """Folder with CLIP in transformers' layout, for the CLIP score. By default there is no such score."""
    beside: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """Folder of an earlier report of the same protocol, whose few-step rows are added to the table. May be given
    several times."""
    batch_size: int = 0
    """Pictures painted together; 0 takes 16 for pictures of up to 128 pixels, else 8."""
    workers: int = 1
    """Processes that paint, each with its own copy of the models, and of one thread on a CPU. 0 takes one for each core
    for pictures of up to 128 pixels on a CPU, else 1."""
    precision: Precision = "auto"
    """Number format that networks are stored and compute in. `auto` takes bf16 on a GPU that computes in it, fp16 on an
    older GPU, else fp32."""

    def __post_init__(self) -> None:
        check_values(self)
        check_not_negative(self, "n_unseen", "n_repeated", "batch_size", "workers")
        check_executor(self)
        for name in ("n", "n_tuning"):
            if (count := getattr(self, name)) < LEAST_PICTURES:
                more = (
                    f", and n itself twice the features of the extractor: {2 * READER_FEATURES} for the bundled worlds"
                    if name == "n" else ""
                )  # fmt: skip
                raise UserError(f"{name} is {count}; at least {LEAST_PICTURES} are needed{more}")
        check_seed(self.seed, self.n + 100_000_000)
        if not self.steps or not all(1 <= steps <= TEACHER_STEPS for steps in self.steps):
            raise UserError(f"steps are {_listed(self.steps)}; allowed: 1 to {TEACHER_STEPS}")
        if not all(scale >= 1 for scale in self.guidance_scale):
            raise UserError(
                f"guidance_scale is {_listed(self.guidance_scale)}; each must be at least 1, which means no guidance"
            )
        if not self.spacings:
            raise UserError("spacings is empty; give at least one")


def _listed(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers) or "none"


def default_evaluate() -> Evaluate:
    """Returns the command's defaults."""
    return Evaluate(workers=0)
