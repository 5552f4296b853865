"""A run tried out: a few updates, one save and one reload, and the plan of the whole."""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import fields
from datetime import timedelta
from pathlib import Path

import torch

from fewstep.parallel.world import current_world, is_spread
from fewstep.recipes.consistency import ConsistencyConfig
from fewstep.train.config import LoopConfig
from fewstep.train.learner import Trainable
from fewstep.train.loop import fit
from fewstep.train.task import Task


def try_out(config: ConsistencyConfig, student: Trainable, task: Task, pictures: int) -> None:
    """Does three updates, one save and one reload in a folder that goes away; then prints the whole run's plan.

    The folder lies beside the run's, where the run will need room too. The weights of `student` are gone afterwards.
    """
    few = {"steps": 3, "log_every": 1, "checkpoint_every": 3, "report_to": ()}  # the save falls into the third
    settings = {field.name: getattr(config, field.name) for field in fields(LoopConfig)} | few
    moments: list[float] = []
    beside = next(parent for parent in config.out.absolute().parents if parent.is_dir())
    with tempfile.TemporaryDirectory(prefix=f".{config.out.name}-dry-run-", dir=beside) as own:
        folder = current_world().gather(own)[0]  # where a state is spread all write into one
        run, model = Path(folder) / "run", Path(folder) / "model"
        fit(task, LoopConfig(**settings), run, "dry run", lambda _: moments.append(time.perf_counter()))
        peak = measure_peak()  # before the reload, which a run does not do
        learning = sum(p.numel() for p in student.learner.weights.parameters() if p.requires_grad)
        student.save(model)
        _release(student)
        if current_world().main:
            student.reload(model)
            size = sum(file.stat().st_size for file in run.glob("checkpoints/*/*"))
    if not current_world().main:
        return
    print(f"saved and loaded again; {learning:,} parameters learn")
    print(
        f"plan: {config.steps} updates of {config.batch_size}, {config.steps * config.batch_size / pictures:.1f} epochs"
    )
    seconds = round((moments[1] - moments[0]) * config.steps)
    print(f"time: {timedelta(seconds=seconds)} of updates, judged by the second")
    print(f"disk: {size / 2**30:.2f} GiB a checkpoint; {config.keep_checkpoints} are kept (--keep-checkpoints)")
    print(f"peak memory: {peak:.2f} GiB")


def _release(student: Trainable) -> None:
    """Gives back the memory of what would be exported, so that the reload finds room."""
    with student.exported() as model:
        if not is_spread(model.network.backbone):
            model.network.backbone.to("meta")


def measure_peak() -> float:
    """Returns the most memory in use since the process began: the GPU's where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
