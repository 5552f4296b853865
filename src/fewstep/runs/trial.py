"""A run tried out: one batch, one update, one save and one reload, and the plan of the whole."""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import fields
from datetime import timedelta
from pathlib import Path

import torch

from fewstep.models.pipeline import load_pipeline
from fewstep.parallel.world import current_world
from fewstep.recipes.consistency import ConsistencyConfig
from fewstep.runs.shortage import explain_out_of_memory
from fewstep.train.config import LoopConfig
from fewstep.train.loop import fit
from fewstep.train.task import Task
from fewstep.train.trainable import Trainable


def try_out(config: ConsistencyConfig, student: Trainable, task: Task, pictures: int) -> None:
    """Does one batch, one update, one save and one reload in a folder that goes away; then prints the whole's plan."""
    once = LoopConfig(**{field.name: getattr(config, field.name) for field in fields(LoopConfig)} | {"steps": 1})
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        with explain_out_of_memory(config):
            fit(task, once, Path(folder) / "run", "dry run")
        seconds, peak = time.perf_counter() - begun, peak_gib()  # before the reload, which a run does not do
        student.save(Path(folder) / "model")
        if current_world().main:
            load_pipeline(Path(folder) / "model", config.device)
    learning = sum(p.numel() for p in student.learner.weights.parameters() if p.requires_grad)
    print(f"saved and loaded again; {learning:,} parameters learn")
    print(
        f"plan: {config.steps} updates of {config.batch_size}, {config.steps * config.batch_size / pictures:.1f} epochs"
    )
    print(
        f"time: at most {timedelta(seconds=round(seconds * config.steps))}, by the first update, which is the slowest"
    )
    print(f"peak memory: {peak:.2f} GiB")


def peak_gib() -> float:
    """Returns the most memory in use since the process began: the GPU's where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
