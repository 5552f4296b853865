"""`fewstep demo`: distils the bundled teacher and scores the result, in minutes on a laptop."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, fields
from pathlib import Path

from fewstep import assets
from fewstep.commands.distill import distill
from fewstep.commands.evaluate import evaluate
from fewstep.data.draws import check_seed
from fewstep.errors import UserError
from fewstep.evaluate.config import Evaluate
from fewstep.evaluate.reader import FEATURES
from fewstep.evaluate.report import GRID_FILE, markdown_table
from fewstep.files import write_whole
from fewstep.models.card import read_card
from fewstep.models.readme import write_model_card
from fewstep.recipes import named
from fewstep.recipes.distill import Distill

STEPS = (1, 2, 4, 8)
"""Numbers of steps that each sampler is scored at."""
WORKERS = 0
"""Number of processes that paint, as in `Evaluate.workers`."""


@dataclass(frozen=True, kw_only=True)
class Demo(Distill):
    """Distils the bundled teacher, paints with it, and scores it against DDIM and DPM-Solver++."""

    n: int = 256
    """Pictures in each row of the table; at least 128, for the Fréchet distance."""
    n_unseen: int = 64
    """Further pictures in each row, of shapes in colours never trained on, scored apart."""
    n_repeated: int = 16
    """Number of prompts that are painted four more times, to measure the diversity within a prompt; 0 measures none."""
    score_seed: int = 0
    """Seed of the table's first picture; picture i starts from noise of seed + i."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n < 2 * FEATURES:
            raise UserError(f"n is {self.n}; at least {2 * FEATURES} are needed")
        if {self.teacher, self.data} != {assets.SCENES}:
            raise UserError("the demo's scores are about the scenes world; for your own teacher use `fewstep distill`")
        check_seed(self.score_seed, self.n, "score_seed")
        make_evaluation(self)  # refuses now what would be refused after the training


def default_demo() -> Demo:
    """Returns the `scenes` recipe, with a run folder of its own."""
    recipe = named.scenes()
    values = {field.name: getattr(recipe, field.name) for field in fields(recipe)}
    return Demo(**{**values, "out": Path("runs/demo")})


def demo(config: Demo) -> None:
    """Writes `model/`, `evaluation/` and its `grid.png` into `config.out`."""
    # The run folder belongs to the distillation alone: scoring it otherwise is no other run.
    distill(Distill(**{field.name: getattr(config, field.name) for field in fields(Distill)}))
    if config.dry_run:
        return
    evaluation = make_evaluation(config)
    results = evaluate(evaluation)
    model = config.out / "model"
    write_model_card(model, read_card(model), markdown_table(results["rows"]))
    with write_whole(config.out / GRID_FILE) as draft:
        shutil.copyfile(evaluation.out / GRID_FILE, draft)
    print(f"model: {config.out / 'model'}", flush=True)


def make_evaluation(config: Demo) -> Evaluate:
    """Returns the evaluation: all samplers at one guidance scale, each baseline at its best spacing."""
    return Evaluate(
        model=str(config.out / "model"), out=config.out / "evaluation", samplers=("ddim", "dpm++"), steps=STEPS,
        guidance_scale=(config.guidance_scale,), spacings=("trailing", "leading+1"), n=config.n,
        n_unseen=config.n_unseen, n_repeated=config.n_repeated, seed=config.score_seed, workers=WORKERS,
        precision=config.precision, device=config.device,
    )  # fmt: skip
