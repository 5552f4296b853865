"""Every method on the scenes world: what students trained alike paint in 1 to 8 steps, beside their teacher.

    python studies/methods.py                      # a row takes about eight minutes of one core
    python studies/methods.py --rows any-step LCM  # goes on where it stopped

Figures: docs/studies/methods.json, docs/results.md.

Guidance is one value at every t, so that what guidance does to many steps is in full view. Before the first run these
were the predictions: LCM loses accuracy with every doubling of the steps from 2 on, the more the longer it is trained;
PCM is at its best at its own number of phases and useless below it; TCD lies between LCM and PCM by its γ; any-step
stays within a few points from 1 to 8 steps; no student is nearer to its teacher in 8 steps than DDIM's 8.

The study is not complete: of its rows any-step and LCM have been run for 600 and 800 updates and three seeds at
guidance 5; PCM with 2 and with 4 phases, TCD, guided-distill and LCM, judged for 600 updates and one seed; at guidance
1.5 any-step, LCM and any-step, then TDM, and at 8.5 any-step and LCM, for 600 updates and one seed.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from common import RUNS, SHOWN, Table, configured, trained
from fewstep import assets
from fewstep.evaluate.cell import TEACHER_STEPS, Cell, painter_of
from fewstep.evaluate.roster import make_scenes_roster
from fewstep.evaluate.scenes_bench import make_scenes_bench
from fewstep.evaluate.scoring import score
from fewstep.models.loading import load_latent_model
from fewstep.models.pipeline_loading import load_pipeline

ROWS: dict[str, dict[str, Any]] = {
    "LCM": {},
    "LCM, guided from 500": {"guided_from": 500},
    "LCM, walkers": {"states": "walkers"},
    "LCM, judged": {"adversarial": 0.2, "adversarial_real": "pictures"},
    "LCM, judged, weight 0.5": {"adversarial": 0.5, "adversarial_real": "pictures"},
    "PCM, 2 phases": {"method": "pcm", "phases": (2,)},
    "PCM, 4 phases": {"method": "pcm", "phases": (4,)},
    "PCM, 8 phases": {"method": "pcm", "phases": (8,)},
    "PCM 4, adversarial": {"method": "pcm", "phases": (4,), "adversarial": 0.1},
    "TCD": {"method": "tcd"},
    "guided-distill": {"method": "guided-distill"},
    "guided-distill, 8 → 4 → 2 → 1": {"after": "guided-distill", "halved": (4, 2, 1)},
    "any-step": {"method": "any-step", "skip": 125},
    "any-step LoRA": {"method": "any-step", "skip": 125, "lora_rank": 64, "lr": 1e-3},
    "any-step, adversarial": {"method": "any-step", "skip": 125, "adversarial": 0.1},
    "any-step, from data, judged": {
        "method": "any-step",
        "skip": 125,
        "states": "data",
        "adversarial": 0.2,
        "adversarial_real": "pictures",
    },
    "any-step, steps of 25": {"method": "any-step"},
    "any-step, from data": {"method": "any-step", "states": "data"},
    "any-step, λ = 1/jump": {"method": "any-step", "skip": 125, "loss_weight": "inverse-jump"},
    "any-step, whole jumps half the time": {"method": "any-step", "skip": 125, "phases": (1, 1, 1, 2, 4, 8)},
    "any-step, then TDM": {
        "method": "tdm",
        "after": "any-step",
        "steps": 200,
        "lr": 1e-4,
        "fake_lr": 5e-4,
    },
}


@dataclass(frozen=True, kw_only=True)
class Study:
    rows: tuple[str, ...] = tuple(ROWS)
    """Names of the rows to make."""
    n: int = 1000
    """Fresh prompts."""
    updates: tuple[int, ...] = (600,)
    """Lengths of the trainings."""
    seeds: tuple[int, ...] = (0,)
    """Of the trainings."""
    guidance: tuple[float, ...] = (5.0,)
    """What teacher and students are guided by, in diffusers' convention."""
    steps: tuple[int, ...] = (1, 2, 3, 4, 6, 8)
    """Numbers of steps."""
    skip: int = 25
    """Distance t − s."""


def main(study: Study) -> None:
    table = Table("methods", study.n, keep=True)
    teacher = load_latent_model(assets.scenes_teacher(), torch.device("cpu"))
    kept_in = RUNS / "methods" / str(study.n)  # parts of other rosters hold other prompts
    for guidance in study.guidance:
        bench = make_scenes_bench(make_scenes_roster(study.n, repeated=16))
        for count in (TEACHER_STEPS, *study.steps):
            cell = Cell("teacher" if count == TEACHER_STEPS else "ddim", count, "trailing", guidance)
            row, kept = score(bench, cell, painter_of(cell, teacher, None), "teacher", folder=kept_in / "teacher")
            if count == TEACHER_STEPS:
                bench = dataclasses.replace(bench, teacher_latents=kept.latents)
            publish(table, row, model="teacher", updates=0, seed=0)
        for name in study.rows:
            for updates in study.updates:
                for seed in study.seeds:
                    for count, folder in train_students(name, guidance, updates, seed, study).items():
                        student = load_pipeline(folder, "cpu")
                        cell = Cell("lcm", count, "lcm", guidance)
                        row, _ = score(
                            bench,
                            cell,
                            painter_of(cell, None, student),
                            name,
                            folder=kept_in / folder.parent.name,
                        )
                        publish(table, row, model=name, updates=updates, seed=seed)


def train_students(name: str, guidance: float, updates: int, seed: int, study: Study) -> dict[int, Path]:
    """Returns the model that paints in each number of steps: one for all, or where a row halves them each its own."""
    if not (halved := ROWS[name].get("halved")):
        return dict.fromkeys(study.steps, train_row(name, guidance, updates, seed, study.skip))
    folders = {2 * halved[0]: train_row(ROWS[name]["after"], guidance, updates, seed, study.skip)}
    for count in halved:
        start = str(folders[2 * count])
        settings = {"method": "guided-distill", "start": start, "to_steps": count, "steps": updates, "seed": seed}
        guided = {"guided_from": 0, "guidance_range": (guidance, guidance), "guidance_scale": guidance}
        folders[count] = trained(
            configured(f"methods-halved-to-{count}-{guidance:g}-{updates}-{seed}", **settings, **guided)
        )
    return {count: folder for count, folder in folders.items() if count in study.steps}


def train_row(name: str, guidance: float, updates: int, seed: int, skip: int) -> Path:
    """Trains the student of a row, and before it the one that it goes on from; returns its model's folder."""
    changes = dict(ROWS[name])
    if after := changes.pop("after", None):
        changes["start"] = str(train_row(after, guidance, updates, seed, skip))
    settings = {
        "guided_from": 0, "guidance_range": (guidance, guidance), "guidance_scale": guidance, "skip": skip,
        "steps": updates, "seed": seed, **changes,
    }  # fmt: skip
    slug = f"methods-{name.replace(', ', '-').replace(' ', '-')}-{guidance:g}-{updates}-{seed}"
    return trained(configured(slug, **settings))


def publish(table: Table, row: dict[str, Any], **labels: Any) -> None:
    table.publish([{**labels, **{column: row[column] for column in (*SHOWN, "to_teacher") if column in row}}])


if __name__ == "__main__":
    main(tyro.cli(Study))
