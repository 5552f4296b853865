"""Runs that follow a student in place of a teacher, as several tests make and paint them."""

from __future__ import annotations

import numpy as np

from fewstep.commands.distill import load_teacher, make_path, make_student
from fewstep.recipes.distill import Distill
from fewstep.runs.consistency import make_task
from fewstep.runs.material import open_material

COMMON = {
    "method": "guided-distill", "steps": 2, "batch_size": 4, "guidance_range": (2.0, 9.0), "lr": 1e-2,
    "ema_decay": 0.5, "device": "cpu", "sample_every": 0, "log_every": 1,
}  # fmt: skip
PROMPT = "a red star"


def make(config):
    """Everything of a run up to its task."""
    teacher = load_teacher(config)
    student = make_student(config, teacher)
    path = make_path(config, student, teacher)
    return student, path, make_task(config, student, path, teacher, open_material(config, teacher).latents())


def paint(pipeline, steps, **more):
    return np.asarray(pipeline(PROMPT, steps=steps, seed=3, **more)[0], dtype=int)


def second_of(followed, teacher, rank, **changes):
    """The second stage of guided-distill, in four steps, of the first one's run of that rank."""
    guidance = (5.0, 5.0) if rank else COMMON["guidance_range"]
    settings = {
        **COMMON,
        "guidance_range": guidance,
        "start": str(followed / str(rank)),
        "lora_rank": rank,
        "to_steps": 4,
    }
    return Distill(**{**settings, **changes}, teacher=str(teacher), data=str(teacher.parent / "photos"))
