"""`fewstep demo`: the main job on the bundled teacher, scored against the baselines, in minutes on a laptop."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.table import Table

from fewstep import assets
from fewstep.data.pictures import to_images
from fewstep.errors import UserError
from fewstep.evaluate.grid import labelled_grid
from fewstep.evaluate.reader import FEATURES, load_reader
from fewstep.evaluate.scenes_scores import ScenesScores, Scored, fresh_prompts
from fewstep.models.export import model_card
from fewstep.models.latent_model import load_latent_model, pick_device
from fewstep.models.pipeline import load_pipeline
from fewstep.recipes import named
from fewstep.recipes.consistency_run import SAMPLE_STEPS
from fewstep.recipes.distill import Distill, distill
from fewstep.train.config import check_seed

TEACHER_STEPS = 50
GRID_COLUMNS = 8


@dataclass(frozen=True, kw_only=True)
class Demo(Distill):
    """Distils the bundled teacher, paints with it, and scores it against DDIM and DPM-Solver++."""

    n: int = 256
    """Prompts that the table is made of; at least 128, for the Fréchet distance."""
    n_unseen: int = 64
    """Further prompts with a shape in a colour that no training picture shows, scored apart."""
    score_seed: int = 0
    """Picture i of the table starts from noise seeded score_seed + i."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.score_seed, max(1, self.n + self.n_unseen))
        if self.n < 2 * FEATURES or self.n_unseen < 0:
            raise UserError(f"n is {self.n} and n_unseen {self.n_unseen}; at least {2 * FEATURES} and 0 are needed")
        if {self.teacher, self.data} != {assets.SCENES}:
            raise UserError("the demo's scores are about the scenes world; for your own teacher use `fewstep distill`")


def default_demo() -> Demo:
    """The `scenes` recipe, in the demo's own folder."""
    recipe = named.scenes()
    values = {field.name: getattr(recipe, field.name) for field in fields(recipe)}
    return Demo(**{**values, "out": Path("runs/demo")})


def demo(config: Demo) -> None:
    """Leaves `model/`, `grid.png` and `scores.json` in `config.out`."""
    # The run folder belongs to the distillation alone: scoring it otherwise is no other run.
    distill(Distill(**{field.name: getattr(config, field.name) for field in fields(Distill)}))
    if config.dry_run:
        return
    scored, scores = score(config, config.out / "model")
    (config.out / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    details = json.loads((config.out / "model" / "fewstep.json").read_text())
    (config.out / "model" / "README.md").write_text(model_card(details, scores))
    comparison_grid(scored).save(config.out / "grid.png")
    show(scores)
    print(f"pictures: {config.out / 'grid.png'}   scores: {config.out / 'scores.json'}   model: {config.out / 'model'}")


def score(config: Demo, model: Path) -> tuple[list[tuple[Scored, list[str]]], dict[str, Any]]:
    """Every row of the table with its prompts, and the content of `scores.json`."""
    device = pick_device(config.device)
    student = load_pipeline(model, str(device))
    teacher = load_latent_model(assets.scenes_teacher(), device)
    prompts = fresh_prompts(config.n, config.n_unseen)
    omega = config.guidance_scale - 1
    scores = ScenesScores(load_reader(assets.scenes_reader()), teacher, prompts, omega=omega, seed=config.score_seed)
    rows = [scores.teacher_row(TEACHER_STEPS)]
    counts = [steps for steps in SAMPLE_STEPS if steps <= student.grid_size]
    rows += [scores.baseline_row("ddim", steps) for steps in counts]
    rows += [scores.baseline_row("dpm++", steps) for steps in counts]
    rows += [scores.student_row(student, steps) for steps in counts]
    return [(row, prompts.texts) for row in rows], {
        "protocol": scores.protocol() | {"model": str(model)},
        "rows": [row.row for row in rows],
    }


def comparison_grid(scored: list[tuple[Scored, list[str]]]) -> Image.Image:
    """The same prompts and seeds, a row a sampler."""
    names = {"teacher": "teacher", "ddim": "DDIM", "dpm++": "DPM-Solver++", "lcm": "LCM (fewstep)"}
    rows = [
        (f"{names[row.row['sampler']]}, {row.row['steps']}", to_images(row.pixels[:GRID_COLUMNS])) for row, _ in scored
    ]
    return labelled_grid(rows, scored[0][1][:GRID_COLUMNS])


def show(scores: dict[str, Any]) -> None:
    """The table on the terminal."""
    protocol = scores["protocol"]
    guidance = f"guidance_scale {protocol['guidance_scale']:g} (ω = {protocol['omega']:g})"
    table = Table(title=f"{protocol['n']} fresh prompts, {guidance}")
    for heading in ("sampler", "steps", "calls", "spacing", "accuracy", "unseen", "FD", "ms"):
        table.add_column(heading, justify="left" if heading in ("sampler", "spacing") else "right")
    for row in scores["rows"]:
        unseen = row["prompt_accuracy_unseen"]
        table.add_row(
            row["sampler"], str(row["steps"]), str(row["network_evaluations"]), row["spacing"],
            f"{row['prompt_accuracy']:.1%}", "" if unseen is None else f"{unseen:.1%}",
            f"{row['fd']:.2f}", f"{1000 * row['seconds_per_image']:.1f}",
        )  # fmt: skip
    Console().print(table)
